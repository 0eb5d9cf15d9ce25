"""Reading concepts that diffusers, A1111, ComfyUI or Tiller wrote (`tiller.concepts.files` writes).

| format | file | inside |
| --- | --- | --- |
| diffusers | `learned_embeds.safetensors`, for a second encoder `learned_embeds_2.safetensors` | the token: [k, D] |
| a1111, comfyui | `NAME.safetensors`, the name is the token | `emb_params` [k, D]; for two encoders (SDXL) `clip_l` and `clip_g` |
| a1111, older | `NAME.pt` | `string_to_param`: `*`: [k, D], and `name` |
| diffusers, older | `learned_embeds.bin` | the token: [D] |
"""  # noqa: E501  # a table

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.paths import located
from tiller.models.concepts import MOST_VECTORS, Concept, check_token
from tiller.models.pickled_tensors import MOST_BYTES, read_pickled

FIRST, SECOND = "learned_embeds.safetensors", "learned_embeds_2.safetensors"
PICKLED = (".pt", ".bin")
SDXL = ("clip_l", "clip_g")  # in the order of the pipeline's text encoders
WIDEST = 65_536  # numbers of a vector; the widest text encoder has 4,096


def read_concept(path: str | Path, token: str | None = None) -> Concept:
    """The concept in a file, or in a folder that holds `learned_embeds.safetensors`.

    Args:
        path: any of the formats above, or a run's folder.
        token: what stands for it, in place of what the file says; A1111's files have only their
            name, which becomes `<name>`.

    Raises:
        InvalidInput: no such file, not one concept in it, or a pickle that is none of tensors.

    Example:
        >>> duck = read_concept("runs/20260101-120000-gfti-1a2b3c4d")       # doctest: +SKIP
        >>> duck.token, duck.widths                                         # doctest: +SKIP
        ('<duck>', (192,))
    """
    file = located(path)
    if file.is_dir():
        folder, file = file, file / FIRST
        if not file.is_file():
            raise InvalidInput(f"expected {FIRST} in the folder {str(folder)!r}, there is none")
    if not file.is_file():
        raise InvalidInput(f"expected a concept's file at {str(file)!r}, there is none")
    own, vectors, about = _contents(file)
    second = file.with_name(file.name.replace(FIRST, SECOND))
    if second != file and second.is_file():
        other, more, _ = _contents(second)
        if own and other and own != other:
            raise InvalidInput(
                f"{second.name} holds {other!r} and {file.name} {own!r}: expected the same "
                "word for both text encoders; move one of them away"
            )
        vectors = (*vectors, *more)
    given = token or _checked(own or f"<{file.stem}>", file)  # as A1111 names it
    plain = tuple(v.detach().to("cpu", torch.float32).contiguous() for v in vectors)
    return Concept(given, plain, about)


def read_named(spec: str | os.PathLike[str]) -> Concept:
    """The concept of `FILE`, or of `FILE=<TOKEN>` under another token.

    Raises:
        InvalidInput: as `read_concept`.
    """
    return read_concept(*split_named(os.fspath(spec)))


def split_named(spec: str) -> tuple[Path, str | None]:
    """The file and the token of `FILE=<TOKEN>`; a file whose own name has an `=` is one.

    Example:
        >>> split_named("duck.safetensors=<my-duck>")
        (PosixPath('duck.safetensors'), '<my-duck>')
    """
    file, equals, token = spec.rpartition("=")
    whole = located(spec)
    return (located(file), token) if equals and not whole.exists() else (whole, None)


def _contents(path: Path) -> tuple[str | None, tuple[Tensor, ...], dict[str, str]]:
    """The token that a file names, if any, its vectors, and what it says about itself."""
    data, about = _read(path)
    named, vectors = _found(data, path)
    return about.get("token") or named, vectors, about


def _checked(token: str, path: Path) -> str:
    """A token that the file says or is called, if it can stand in a prompt."""
    try:
        check_token(token)
    except InvalidInput as error:
        raise InvalidInput(
            f"{path.name} makes no token: {error}. Give another one: --concept FILE=<NAME> to "
            "draw, --token to convert; or rename the file, if it is called so"
        ) from None
    return token


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """What is in the file, and what a file of ours says about itself."""
    if path.suffix in PICKLED:
        return read_pickled(path), {}
    if path.suffix != ".safetensors":
        raise InvalidInput(
            f"expected a concept as .safetensors, .pt or .bin, got {path.name!r}; a picture is "
            "what `tiller concept learn` takes"
        )
    from safetensors import SafetensorError, safe_open

    if path.stat().st_size > MOST_BYTES:
        raise InvalidInput(
            f"expected an embedding file, got {path.name} with {path.stat().st_size >> 20} MB; "
            "is it a model?"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            own = json.loads((file.metadata() or {}).get("tiller", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} is no safetensors file, or damaged: {error}") from error
    about = own if isinstance(own, dict) else {}
    if not isinstance(about.get("token", ""), str):
        raise InvalidInput(
            f"{path.name}: expected a text as the token in its metadata, got "
            f"{type(about['token']).__name__}; write the file again"
        )
    return tensors, {str(k): str(v) for k, v in about.items()}


def _found(data: Any, path: Path) -> tuple[str | None, tuple[Tensor, ...]]:
    """The token that the data names, if any, and the vectors of each text encoder.

    Raises:
        InvalidInput: it has not the structure of one concept.
    """
    if isinstance(data, Mapping) and "string_to_param" in data:
        inner = data["string_to_param"]
        if not isinstance(inner, Mapping) or list(inner) != ["*"]:
            raise InvalidInput(f"{path.name}: expected string_to_param with '*' alone")
        name = data.get("name")
        token = None
        if isinstance(name, str) and name.strip():
            token = name if name.startswith("<") and name.endswith(">") else f"<{name}>"
        return token, (_vectors(inner["*"], path),)
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{path.name}: expected named tensors, got {type(data).__name__}")
    if set(SDXL) <= set(data):
        if extra := ", ".join(sorted(str(key) for key in data if key not in SDXL)[:4]):
            raise InvalidInput(
                f"{path.name}: expected {' and '.join(SDXL)} alone, got {extra} as well: made for "
                "a model with other text encoders, which is not supported"
            )
        return None, tuple(_vectors(data[key], path) for key in SDXL)
    if len(data) != 1:
        names = ", ".join(map(str, list(data)[:4])) or "nothing"
        raise InvalidInput(
            f"{path.name}: expected one concept, got {len(data)} tensors ({names}); give a file "
            "of each"
        )
    ((name, tensor),) = data.items()
    plain = name in ("emb_params", *SDXL) or not isinstance(name, str)
    return None if plain else name, (_vectors(tensor, path),)


def _vectors(value: Any, path: Path) -> Tensor:
    """[k, D] of a tensor [k, D] or [D]; nothing is copied, a small file may claim a huge one."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.is_floating_point():
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"{path.name}: expected vectors [k, D] or [D], got {shape}")
    rows, width = value.shape if value.ndim == 2 else (1, len(value))
    if not 1 <= rows <= MOST_VECTORS or not 1 <= width <= WIDEST:
        raise InvalidInput(
            f"{path.name}: a concept must have 1 to {MOST_VECTORS} vectors of at most {WIDEST:,} "
            f"numbers, got {rows} of {width:,}; is it an embedding?"
        )
    return value[None] if value.ndim == 1 else value
