"""What there is, as plain data: methods, rewards and models, their fields and what those mean.

Fields, defaults and their sentences are read from the classes themselves, so nothing is said twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput
from tiller.core.settings import unknown

PROMPT = '"a black rabbit on a green background"'
_SECTION = re.compile(r"(?:Attributes|Args):\s*$")
_ENTRY = re.compile(r"(\w+): (.*)")


def methods() -> list[dict[str, Any]]:
    """Every method: name, idea, needs_gradient, default_budget."""
    from tiller.methods._catalog import available

    return [
        {
            "name": name,
            "idea": idea(kind),
            "needs_gradient": kind.needs_gradient,
            "default_budget": str(kind.default_budget),
        }
        for name, kind in available().items()
    ]


def method(name: str) -> dict[str, Any]:
    """One method with its text, its fields, the paper and a command that runs it.

    Raises:
        InvalidInput: no such method.
    """
    from tiller.concepts.learn import methods as learners
    from tiller.methods._catalog import available

    if name in learners():
        return _learner(name, learners()[name])
    kind = _named("method", name, available())
    own = [
        f for f in fields(kind) if f["name"] in kind.__annotations__ and f["default"] is not None
    ]
    first = shlex.quote(f"{own[0]['name']}={own[0]['default']}") if own else ""
    setting = f" --set {first}" if own else ""
    row = next(row for row in methods() if row["name"] == name)
    command = f"attack {PROMPT}" if name == "attack" else f"steer {PROMPT} --method {name}"
    return {
        **row,
        "about": about(kind),
        "fields": fields(kind),
        "citation": kind.citation,
        "example": f"tiller {command} --budget {kind.default_budget}{setting}",
    }


def _learner(name: str, kind: type[Any]) -> dict[str, Any]:
    """One method of learning a concept, which steers no picture."""
    return {
        "name": name,
        "idea": idea(kind),
        "default_budget": str(kind.default_budget),
        "about": about(kind),
        "fields": fields(kind),
        "citation": kind.citation,
        "example": f'tiller concept learn photos/*.png --token "<duck>" --method {name}',
    }


def rewards() -> list[dict[str, Any]]:
    """Every reward: name, idea, differentiable, settings."""
    from tiller.rewards import available

    return [
        {
            "name": name,
            "idea": idea(kind),
            "differentiable": bool(kind.differentiable),
            "settings": [f["name"] for f in fields(kind)],
        }
        for name, kind in available().items()
    ]


def reward(name: str) -> dict[str, Any]:
    """One reward with its text, its settings and an option that uses it.

    Raises:
        InvalidInput: no such reward.
    """
    from tiller.rewards import available

    known = available()
    kind = _named("reward", name, known)
    row = next(row for row in rewards() if row["name"] == name)
    needed = [f["name"] for f in fields(kind) if f["default"] == REQUIRED]
    used = ":".join([name, *(need.upper() for need in needed)])
    return {
        **row,
        "about": about(kind),
        "fields": fields(kind),
        "example": f"tiller steer {PROMPT} --reward {used}",
    }


def models() -> list[dict[str, Any]]:
    """The models that come with the package: name, idea, installed."""
    return [
        {
            "name": "emoji",
            "idea": "the bundled model: 64 x 64 scenes of emoji, in the Stable Diffusion layout",
            "installed": (bundled_folder() / "model_index.json").is_file(),
        }
    ]


LOADABLE = (
    "a hub id (owner/name), a folder in the hub's layout, or a .safetensors file, each of a Stable "
    "Diffusion 1.x, 2.x, XL or LCM pipeline; in Python a pipeline object as well"
)


def model(name: str) -> dict[str, Any]:
    """One model: how it draws by itself and, for the bundled one, how well it was measured.

    Another name, folder or file is loaded to find out.

    Raises:
        InvalidInput: it cannot be loaded.
    """
    row: dict[str, Any] = next((row for row in models() if row["name"] == name), {"name": name})
    if row.get("installed") is False:
        return {**row, "remedy": "train it: python -m tiller.models.bundled all"}
    if not row.get("installed"):
        return {**row, **_loaded(name)}
    folder = bundled_folder()
    weights = [path for path in folder.rglob("*") if path.is_file()]
    return {
        **row,
        "folder": str(folder),
        "megabytes": round(sum(path.stat().st_size for path in weights) / 1e6, 1),
        "defaults": _read_json(folder / "defaults.json"),
        "metrics": _read_json(folder / "metrics.json"),
        "example": f"tiller steer {PROMPT} --model emoji",
    }


def bundled_folder() -> Path:
    """Where the bundled model's weights are; asking loads neither torch nor diffusers."""
    return Path(__file__).parent / "models" / "bundled" / "weights"


REQUIRED = "required"


def fields(kind: type[Any]) -> list[dict[str, Any]]:
    """The settings of a dataclass: name, type, default (`required` without one), doc."""
    if not dataclasses.is_dataclass(kind):
        return []
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        said |= _field_docs(inspect.cleandoc(vars(base).get("__doc__") or ""))
    return [
        {
            "name": f.name,
            "type": f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type)),
            "default": REQUIRED if f.default is dataclasses.MISSING else f.default,
            "doc": said.get(f.name, ""),
        }
        for f in dataclasses.fields(kind)
        if f.init
    ]


def idea(kind: type[Any]) -> str:
    """One sentence: its file's first, where that is `label: idea`, else the class's own."""
    file = (sys.modules[kind.__module__].__doc__ or "").strip().split("\n")[0]
    label, _, rest = file.partition(": ")
    text = rest if rest and len(label.split()) <= 3 else (inspect.getdoc(kind) or "").split("\n")[0]
    return text.split(". ")[0].rstrip(".")


def about(kind: type[Any]) -> str:
    """The class's text up to its sections."""
    kept: list[str] = []
    for line in (inspect.getdoc(kind) or "").split("\n"):
        if re.fullmatch(r"(Attributes|Args|Raises|Example|Returns|Warns):", line):
            break
        kept.append(line)
    return "\n".join(kept).strip()


def _field_docs(doc: str) -> dict[str, str]:
    """The entries of a docstring's `Attributes:` and `Args:` sections."""
    found: dict[str, str] = {}
    inside, current = False, ""
    for line in doc.split("\n"):
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            inside, current = _SECTION.match(line) is not None or (inside and not line), ""
        elif inside and depth == 4 and (entry := _ENTRY.match(line.strip())):
            current = entry[1]
            found[current] = entry[2]
        elif inside and current:
            found[current] += " " + line.strip()
    return found


def _named(what: str, name: str, known: dict[str, type[Any]]) -> type[Any]:
    if name in known:
        return known[name]
    raise InvalidInput(unknown(what, name, list(known)))


def _loaded(name: str) -> dict[str, Any]:
    from tiller.models import load_model

    found = load_model(name)
    return {
        "source": found.source,
        "defaults": dataclasses.asdict(found.defaults),
        "latent_shape": list(found.latent_shape),
        "dtype": str(found.dtype).removeprefix("torch."),
        "device": str(found.device),
        "example": f"tiller steer {PROMPT} --model {name}",
    }


def _read_json(path: Path) -> Any:
    """A JSON file of the package, or None if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
