"""Affix files: the tokens of a prefix and a suffix as safetensors, with where they come from.

`prefix` [M, d] and `suffix` [M, d] float32, and the metadata `tiller`, a JSON object: kind, format,
width, anchored, model (and its source, pipeline and dtype, to load it by), model_fingerprint (of
the weights alone), digest (of the tokens), seal (of all that decides what is drawn; files of before
it have none), and whatever its maker says of the training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.paths import located
from tiller.models.base import FrozenModel
from tiller.spaces.affixes import Affix

FORMAT = 1
TENSORS = ("prefix", "suffix")
SEALED: dict[str, type | UnionType] = {
    "anchored": bool,
    "model_fingerprint": str,
    "model_source": str | None,
    "pipeline": str,
    "dtype": str,
    "sampler": dict,
}
"""Metadata that decides what is drawn, here or by an export, and its types where it is there."""


@dataclass(frozen=True)
class SavedAffix:
    """An affix that was read.

    Attributes:
        affix: its tokens, a batch of one.
        about: the metadata.
    """

    affix: Affix
    about: dict[str, Any]


def encode_affix(affix: Affix, model: FrozenModel, about: Mapping[str, Any]) -> bytes:
    """The bytes of an affix file, for an affix (a batch of one) that was found on `model`."""
    from safetensors.torch import save

    pairs = zip(TENSORS, (affix.prefix, affix.suffix), strict=True)
    tensors = {
        name: tokens[0].detach().cpu().float().clone(memory_format=torch.contiguous_format)
        for name, tokens in pairs
    }
    own = {
        "kind": "affix",
        "format": FORMAT,
        "width": affix.prefix.shape[2],
        "anchored": affix.anchored,
        "model": model.source or model.name,
        "model_source": model.source,
        "model_fingerprint": model.weights_fingerprint(),
        "pipeline": model.pipeline_class,
        "dtype": str(model.dtype).removeprefix("torch."),
        "digest": _digest(tensors),
    }
    whole = {**about, **own}
    whole["seal"] = _seal(whole)
    return save(tensors, {"tiller": json.dumps(whole, sort_keys=True)})


def read_affix(path: str | Path) -> SavedAffix:
    """The affix in a file.

    Raises:
        InvalidInput: there is no such file, it is truncated or altered, or it is no affix.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read the affix {path}: {error.strerror or error}") from None
    try:
        size = int.from_bytes(data[:8], "little")
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise InvalidInput(
            f"{path} is damaged or no safetensors file ({error}); expected what `tiller affix "
            "train` writes"
        ) from None
    return _affix(path, tensors, metadata)


def _affix(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> SavedAffix:
    about = _json_object(metadata.get("tiller", ""))
    if about.get("kind") != "affix" or not all(name in tensors for name in TENSORS):
        raise InvalidInput(
            f"{path} is not an affix, it holds {', '.join(sorted(tensors)[:4]) or 'nothing'}; "
            "expected what `tiller affix train` writes"
        )
    if about.get("format") not in range(1, FORMAT + 1):
        raise InvalidInput(
            f"{path} was written by a newer tiller (format {about.get('format')}, this version "
            f"reads up to {FORMAT}); upgrade tiller"
        )
    prefix, suffix = (tensors[name] for name in TENSORS)
    if not _alike(prefix, suffix) or _digest(tensors) != about.get("digest"):
        raise InvalidInput(
            f"{path} was altered: its tokens are not those that were saved; train it again, or "
            "take the file as `tiller affix train` wrote it"
        )
    _check_sealed(path, about)
    if not all(bool(side.isfinite().all()) for side in (prefix, suffix)):
        raise InvalidInput(f"{path} holds tokens that are not finite; train it again, with less lr")
    return SavedAffix(Affix(prefix[None], suffix[None], about.get("anchored") is True), about)


def _check_sealed(path: str | Path, about: Mapping[str, Any]) -> None:
    """Refuse metadata that is not what was saved, or nothing that could have been."""
    for name, kind in SEALED.items():
        if name in about and not isinstance(about[name], kind):
            raise InvalidInput(
                f"{path} was altered: it says {name}={about[name]!r}, which is no {name}; train it "
                "again, or take the file as `tiller affix train` wrote it"
            )
    dtype = about.get("dtype", "float32")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InvalidInput(f"{path} was altered: it says dtype={dtype!r}, which torch has not")
    if "seal" in about and about["seal"] != _seal(about):
        raise InvalidInput(
            f"{path} was altered: one of {', '.join(SEALED)} is not what was saved; train it "
            "again, or take the file as `tiller affix train` wrote it"
        )


def load_affixes(spec: str, model: FrozenModel) -> list[Affix]:
    """The affixes that `spec` names, weighted, in the order in which they go around a prompt.

    A weight multiplies the tokens, so that more of them speaks louder, as in the emphasis of other
    programs.

    Args:
        spec: `FILE`, `FILE:WEIGHT`, or several with commas between them; empty for none.
        model: what they are for.

    Raises:
        InvalidInput: a file that cannot be read, or that belongs to another model.
    """
    found = []
    for path, weight in parse_affixes(spec):
        saved = read_affix(path)
        check_model(saved, model, path)
        found.append(saved.affix.times(weight))
    return found


def check_model(saved: SavedAffix, model: FrozenModel, path: str | Path) -> None:
    """Refuse an affix for another model.

    Raises:
        InvalidInput: the width or the fingerprint differs.
    """
    width = model.encode([""]).prompt_embeds.shape[2]
    if saved.affix.prefix.shape[2] != width:
        raise InvalidInput(
            f"{path} has tokens of width {saved.affix.prefix.shape[2]}, made for "
            f"{saved.about.get('model')}; {model.name} reads width {width}. Train one on it"
        )
    known = model.weights_fingerprint(), model.fingerprint()  # older files have the latter
    if saved.about.get("model_fingerprint") not in known:
        raise InvalidInput(
            f"{path} was trained on {saved.about.get('model')} with other weights or precision "
            f"than {model.name} has here; train it again, or load the model as it was"
        )


def parse_affixes(spec: str) -> list[tuple[str, float]]:
    """Paths and weights; where there is a file of the whole name, that is the path.

    Example:
        >>> parse_affixes("style.safetensors, mood.safetensors:0.5")
        [('style.safetensors', 1.0), ('mood.safetensors', 0.5)]

    Raises:
        InvalidInput: a weight that is no positive number.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        path, said = _weighted(part)
        if said is None or located(part).is_file():
            path, said = part, 1.0
        if not 0 < said < float("inf"):
            raise InvalidInput(
                f"an affix's weight must be positive and finite, got {part!r}; leave the affix "
                "out instead of giving it 0"
            )
        found.append((path, said))
    return found


def _weighted(part: str) -> tuple[str, float | None]:
    """The path and the weight that its end says, None where it says none."""
    path, colon, text = part.rpartition(":")
    try:
        return (path, float(text)) if colon else (part, None)
    except ValueError:  # a colon of the path's own
        return part, None


def absolute_affixes(spec: str) -> str:
    """The same files by their absolute paths.

    Example:
        >>> absolute_affixes("/a/style.safetensors, /a/mood.safetensors:0.5")
        '/a/style.safetensors,/a/mood.safetensors:0.5'
    """
    found = [(located(path).absolute(), weight) for path, weight in parse_affixes(spec)]
    return ",".join(
        f"{path}:{weight!r}" if weight != 1 or _weighted(str(path))[1] is not None else str(path)
        for path, weight in found
    )


def affix_digests(spec: str) -> list[str]:
    """What tells the contents of the files apart, for a run's settings."""
    found = [read_affix(path).about for path, _ in parse_affixes(spec)]
    return [str(about.get("seal", about["digest"])) for about in found]


def _alike(prefix: Tensor, suffix: Tensor) -> bool:
    """Whether both have the shape and the precision that are saved."""
    flat = all(side.ndim == 2 and side.dtype == torch.float32 for side in (prefix, suffix))
    return flat and prefix.shape[1] == suffix.shape[1]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in TENSORS:
        digest.update(str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _seal(about: Mapping[str, Any]) -> str:
    """A hash of the tokens' own and of the metadata that decides what is drawn."""
    told = {name: about.get(name) for name in ("digest", *SEALED)}
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
