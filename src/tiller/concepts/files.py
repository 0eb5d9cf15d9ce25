"""Writing concepts for other programs; `tiller.models.concept_files` reads them back."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from torch import Tensor

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.core.paths import located
from tiller.models.concept_files import FIRST, SDXL, SECOND, read_concept
from tiller.models.concepts import Concept
from tiller.runs.files import explained, write_atomically

FORMATS = ("diffusers", "a1111", "comfyui")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # a hub id, or a bundled name


def write_concept(concept: Concept, folder: str | Path, to: str = "diffusers") -> list[Path]:
    """Write `concept` for another program; returns the files, all in `folder`.

    A file of the same word is replaced, one of another word or of anything else is not: diffusers'
    files have one name whatever they hold. A second encoder's file of the same word is removed if
    the concept has one encoder, whose vectors would else be read together with it.

    A1111 and ComfyUI call a concept by its file's name, which is the token without brackets.

    Raises:
        InvalidInput: an unknown format, three text encoders, or a token that diffusers misreads,
            or something else stands where the files go.
        RunError: a file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> duck = Concept("<duck>", (torch.zeros(2, 768),))
        >>> [path.name for path in write_concept(duck, tempfile.mkdtemp(), "a1111")]
        ['duck.safetensors']
    """
    files = encoded(concept, to)
    target = located(folder).absolute()
    names = [*files]
    if to == "diffusers":
        check_small(concept.token, len(concept))
        notice_inside(concept.token)
        names = [FIRST, SECOND]
    for name in names:
        _check_free(target / name, concept.token)
    with explained(target, "make the concept's folder"):
        target.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(target / name, data, f"write {name}")
    for name in set(names) - set(files):
        with explained(target / name, "remove the second encoder's file"):
            (target / name).unlink(missing_ok=True)
    return [target / name for name in files]


def encoded(concept: Concept, to: str) -> dict[str, bytes]:
    """The files of a format as bytes, by name.

    Raises:
        InvalidInput: as `write_concept`.
    """
    if to not in FORMATS:
        raise InvalidInput(f"unknown format {to!r}; expected one of {', '.join(FORMATS)}")
    if len(concept.vectors) > len(SDXL):
        raise InvalidInput(
            f"these formats hold a concept of one or two text encoders, {concept.token} has "
            f"{len(concept.vectors)}"
        )
    if to == "diffusers":
        named = zip((FIRST, SECOND), concept.vectors, strict=False)
        return {name: _saved({concept.token: vectors}, concept) for name, vectors in named}
    keys = ("emb_params",) if len(concept.vectors) == 1 else SDXL
    tensors = dict(zip(keys, concept.vectors, strict=True))
    return {f"{file_name(concept.token)}.safetensors": _saved(tensors, concept)}


def _check_free(file: Path, token: str) -> None:
    if not file.is_file():
        return
    try:
        there = read_concept(file).token
    except InvalidInput:
        there = "something else"
    if there.casefold() != token.casefold():
        raise InvalidInput(
            f"{file} holds {there} already, and {token} would take its place; give another folder "
            "(--out), or move it away"
        )


def check_small(token: str, vectors: int) -> None:
    """Refuse a token of several vectors with capital letters.

    diffusers asks the tokenizer which tokens a prompt has and puts `<duck> <duck>_1` in the place
    of `<duck>`; CLIP's tokenizer answers in small letters, so that of `<Duck>` only the first
    vector would be read.

    Raises:
        InvalidInput: it has capital letters.
    """
    if vectors > 1 and token != token.lower():
        raise InvalidInput(
            f"diffusers reads all {vectors} vectors of a token in small letters only, got "
            f"{token!r}; take --token {token.lower()!r}"
        )


def notice_inside(token: str) -> None:
    """Say that diffusers finds a token without brackets inside other words, as Tiller does not."""
    if re.search(r"^\w|\w$", token):
        warnings.warn(
            f"diffusers finds {token} inside other words too, Tiller only where it is a word by "
            f"itself: the same prompt may draw another picture there; <{file_name(token)}> is "
            "found alike",
            TillerNotice,
            stacklevel=3,
        )


def shareable(model: str) -> str:
    """A model as others may know it: a bundled name or a hub id; "" for a path of this machine."""
    return model if _NAME.fullmatch(model) else ""


def _saved(tensors: dict[str, Tensor], concept: Concept) -> bytes:
    from safetensors.torch import save

    model = shareable(concept.about.get("model", ""))
    about = json.dumps({**concept.about, "model": model, "token": concept.token})
    plain = {name: vectors.contiguous() for name, vectors in tensors.items()}
    return save(plain, {"tiller": about})  # one name: safetensors writes several in any order


def file_name(token: str) -> str:
    """A token as a file's name: its brackets and what no file system takes left out.

    Example:
        >>> file_name("<my/duck>")
        'my-duck'
    """
    inner = token.strip("<>[]{}()")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in inner).strip(".-")
    return safe or "concept"
