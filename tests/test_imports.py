"""The tree is the architecture: what may import what, by a walk over the sources and by running.

Every `import` counts, also inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tiller

SOURCE = Path(tiller.__file__).parent

# package -> the tiller packages and modules below it; a dotted entry allows that module alone.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "models": {"core"},
    "spaces": {"core", "models.base", "models.inputs", "models.pieces", "words"},
    "rewards": {"core", "models.base", "models.bundled", "models.quiet"},
    "solvers": {"core"},
    "methods": {"core", "models", "spaces", "rewards", "solvers", "words", "llm"},
    "words": {"core"},
    "llm": {"core"},
    "runs": {"core", "models.schedulers"},
    "executors": {"core"},
    "affixes": {
        "core",
        "models",
        "spaces",
        "rewards",
        "solvers",
        "methods",
        "tasks",
        "runs",
        "learning",
    },
    "concepts": {
        "core",
        "models",
        "spaces",
        "rewards",
        "solvers",
        "runs",
        "learning",
        "words.inflection",
    },
    "tasks": {"core", "models.base", "rewards", "runs", "executors"},
    "automl": {"core", "solvers", "runs", "executors", "llm"},
    # Suites and fakes of a layer, and nothing above it.
    "testing": {"core"},
    "testing.method_conformance": {"core", "methods", "models", "rewards", "spaces", "solvers"},
}
# What stands above the packages: they may import everything, and no package imports them.
TOP = {
    "__init__",
    "__main__",
    "api",
    "batch_view",
    "cli",
    "commands",
    "doctor",
    "driver",
    "guard",
    "learning",
    "listing",
    "run",
    "session",
    "terminal",
    "unseen",
    "web",
}

# The core is torch and the standard library; jaxtyping only names shapes in annotations.
CORE_OUTSIDE = {"torch", "jaxtyping"}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")
}
PACKAGED = {name: path for name, path in MODULES.items() if "." in name}


def imported(name: str, path: Path) -> dict[str, int]:
    """The absolute names of modules that a file imports, with the line."""
    package = ["tiller", *name.split(".")[:-1]]
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                inside = whole.removeprefix("tiller.")
                known = inside in MODULES or f"{inside}.__init__" in MODULES
                found[whole if known else source] = node.lineno
    return found


def rule(name: str) -> tuple[str, set[str]]:
    """The layer of a module and what that layer may import; a module's own rule comes first."""
    layer = name if name in MAY_IMPORT else name.split(".")[0]
    return layer, MAY_IMPORT[layer]


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    """Else the rules below would hold of anything."""
    source = (
        "import torch.nn\n"
        "from tiller import api\n"
        "from . import space\n"
        "from .search import Step\n"
        "from ..models.base import FrozenModel\n"
        "def lazily():\n"
        "    from tiller.rewards import make_reward\n"
    )
    (tmp_path / "new.py").write_text(source)
    assert imported("core.new", tmp_path / "new.py").keys() == {
        "torch.nn",
        "tiller.api",
        "tiller.core.space",
        "tiller.core.search",
        "tiller.models.base",
        "tiller.rewards",
    }


def test_every_package_has_its_rule() -> None:
    packages = {name.split(".")[0] for name in PACKAGED}
    assert packages <= MAY_IMPORT.keys() | TOP, "design.md section 2 says what it may import"
    assert {name for name in MODULES if "." not in name} <= TOP


@pytest.mark.parametrize("name", sorted(n for n in PACKAGED if n.split(".")[0] not in TOP))
def test_a_package_imports_only_what_is_below_it(name: str) -> None:
    layer, allowed = rule(name)
    wrong = [
        f"line {line}: {module}"
        for module, line in imported(name, MODULES[name]).items()
        if module.split(".")[0] == "tiller"
        and module != "tiller"
        and not within(module.removeprefix("tiller."), allowed | {layer.split(".")[0]})
    ]
    assert not wrong, f"tiller.{name} may import {sorted(allowed)}: {wrong}"


@pytest.mark.parametrize("name", sorted(n for n in PACKAGED if n.startswith("core.")))
def test_the_core_is_torch_and_the_standard_library(name: str) -> None:
    outside = {module.split(".")[0] for module in imported(name, MODULES[name])}
    assert outside <= sys.stdlib_module_names | CORE_OUTSIDE | {"tiller"}


def test_no_package_imports_the_facade() -> None:
    """`import tiller` inside the package would make its order of loading matter."""
    for name in (n for n in PACKAGED if n.split(".")[0] not in TOP):
        assert "tiller" not in imported(name, MODULES[name]), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_unpickles_and_nothing_needs_torchvision(name: str) -> None:
    modules = imported(name, MODULES[name])
    assert not {module.split(".")[0] for module in modules} & {
        "pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "torchvision",
    }
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    loads = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) in ("torch.load", "numpy.load", "np.load", "pickle.loads")
        and not (name == "models.pickled_tensors" and "weights_only=True" in ast.unparse(node))
    ]
    assert not loads, f"tiller.{name} reads files that may hold pickles, lines {loads}"


DRAWING = ("diffusers", "transformers", "scipy")
HEAVY = ("torch", "diffusers", "transformers", "PIL", "numpy", "huggingface_hub", "matplotlib")


COMMAND = "import sys; from tiller.cli import main; sys.argv = ['tiller', {}]; run(main)"


@pytest.mark.parametrize(
    "code",
    [
        "import tiller; tiller.__version__; dir(tiller)",
        "from tiller.words import load_lexicon; load_lexicon().senses('cat', 'n')",
        COMMAND.format("'--help'"),
        COMMAND.format("'--version'"),
        COMMAND.format("'models'"),
        COMMAND.format("'steer', '-h'"),
        COMMAND.format("'steer', '--o'"),
    ],
)
def test_a_fresh_interpreter_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code, HEAVY) == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        "'methods'",
        "'rewards'",
        "'steer', 'a cat', '--method', 'dni'",
        "'steer', 'a cat', '--method', 'dno', '--set', 'ler=1'",
        "'steer', 'a cat', '--reward', 'clop'",
        "'steer', 'a cat', '--held-out', 'clop'",
        "'steer', 'a cat', '--budget', 'step=5'",
        "'steer', 'a cat', '--model', 'nowhere/at/all'",
        "'affix', 'train', '{prompts}', '--out', 'a.safetensors', '--reward', 'clop'",
        "'affix', 'train', '{prompts}', '--out', 'a.safetensors', '--set', 'ler=1'",
    ],
)
def test_what_draws_nothing_does_not_wait_for_what_draws(arguments: str, tmp_path: Path) -> None:
    """A list, or a typing error, answers before the libraries that draw are imported."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na blue dog\na green owl\n")
    assert loaded_by(COMMAND.format(arguments.format(prompts=prompts)), DRAWING) == "[]"


def loaded_by(code: str, names: tuple[str, ...]) -> str:
    """Which of the modules a fresh interpreter has loaded after `code`."""
    script = f"""
def run(main):
    try:
        main()
    except SystemExit:
        pass
{code}
import sys
print([name for name in {names!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stderr.splitlines()[-1]
