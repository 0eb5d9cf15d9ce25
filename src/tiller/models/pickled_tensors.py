"""Tensors out of a `.pt` or `.bin` file, which is a pickle, without running what it may hold.

A pickle is a program. Its text is read first, without executing it: it may name nothing but what
tensors are made of, and only then does torch's own restricted reader (`weights_only`) see it.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from tiller.core.errors import InvalidInput

MOST_BYTES = 64 << 20  # of an embedding file; the largest of people's have a few hundred kB
SAFE_TORCH = (2, 6)  # before it, `weights_only` could be led to run code (CVE-2025-32434)

# All that a file of tensors needs to name.
_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int")),
}
_HIDING = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote to `path`: dicts, lists, plain values and tensors on the CPU.

    Raises:
        InvalidInput: it is no such file, too large, names anything but tensors, or torch is too old
            to read it safely.
    """
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise InvalidInput(
            f"{path.name} is a pickle, which torch {torch.__version__} cannot read safely; "
            "upgrade torch to 2.6, or convert the file to safetensors elsewhere"
        )
    _check(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may fail anywhere in torch's reader
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise InvalidInput(f"{path.name} cannot be read: {first[:200]}") from error


def _check(path: Path) -> None:
    """Refuse a file whose pickle could do more than make tensors."""
    if path.stat().st_size > MOST_BYTES:
        raise InvalidInput(
            f"expected an embedding file, got {path.name} with {path.stat().st_size >> 20} MB; "
            f"they have at most {MOST_BYTES >> 20}. Is it a model?"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > MOST_BYTES:
                raise InvalidInput(f"{path.name} unpacks to more than {MOST_BYTES >> 20} MB")
            programs = [info for info in infos if info.filename.endswith("data.pkl")]
            if len(programs) != 1:
                raise InvalidInput(f"{path.name} is no file of torch.save: it has no data.pkl")
            named = _names(archive.read(programs[0]))
    except zipfile.BadZipFile:
        raise InvalidInput(
            f"{path.name} is no file of torch.save since version 1.6 (a zip archive), got "
            f"{path.read_bytes()[:8]!r}; convert it to safetensors elsewhere"
        ) from None
    except (ValueError, IndexError, OSError, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(f"{path.name} is damaged: {error}") from error
    if foreign := sorted(named - _ALLOWED):
        raise InvalidInput(
            f"{path.name} is a pickle that would run {', '.join(foreign[:3])}, which no embedding "
            "needs; it was not opened. Delete it, and get the embedding as safetensors"
        )


def _names(program: bytes) -> set[str]:
    """All that a pickle imports, as "module name".

    `torch.save` names things plainly (GLOBAL); what takes names from the stack, where they can be
    put together, is given by its own name, which nothing allows.

    Raises:
        ValueError: it is no pickle.
    """
    codes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(program)]
    plain = {str(argument) for name, argument in codes if name == "GLOBAL"}
    return plain | {f"the opcode {name}" for name, _ in codes if name in _HIDING}
