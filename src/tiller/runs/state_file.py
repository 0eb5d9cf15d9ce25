"""A saved state: one safetensors file that knows whether it is whole.

The tensors are the file's, the JSON tree is in its metadata, and so is a checksum: BLAKE2b over
the whole file with the checksum's own place filled with zeros. So a flip of any byte is found,
be it in a number, a name or the padding, and any safetensors reader can still open the file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

from tiller.core.errors import RunError
from tiller.core.state import Packed
from tiller.runs.files import to_json

FORMAT = 1
_DIGITS = 64
_FIELD = b'"checksum":"'
_BLANK = b"0" * _DIGITS


def encode_state(packed: Packed) -> bytes:
    """The bytes of a state file.

    Example:
        >>> import torch
        >>> from tiller.core.state import pack
        >>> decode_state(encode_state(pack({"a": torch.ones(2), "b": 1}))).tree
        {'a': {'tensor': 'a'}, 'b': 1}
    """
    from safetensors.torch import save

    metadata = {"format": str(FORMAT), "tree": to_json(packed.tree), "checksum": _BLANK.decode()}
    data = save(unshared(packed.tensors), metadata)
    place = data.index(_FIELD + _BLANK) + len(_FIELD)
    checksum = _checksum(data).encode()
    return data[:place] + checksum + data[place + _DIGITS :]


def decode_state(data: bytes) -> Packed:
    """The state in `data`.

    Raises:
        RunError: `data` is truncated or altered, or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header_size = int.from_bytes(data[:8], "little")
    try:
        place = data.index(_FIELD, 8, 8 + header_size) + len(_FIELD)
        found = data[place : place + _DIGITS].decode()
        if _checksum(data[:place] + _BLANK + data[place + _DIGITS :]) != found:
            raise ValueError("its checksum does not match")
        metadata: dict[str, Any] = json.loads(data[8 : 8 + header_size])["__metadata__"]
        if int(metadata["format"]) > FORMAT:
            raise RunError(
                f"the saved state has format {metadata['format']}, this version of tiller reads "
                f"up to {FORMAT}. Upgrade tiller"
            )
        return Packed(json.loads(metadata["tree"]), load(data))
    except (ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise RunError(f"the saved state is damaged: {error}") from error


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGITS // 2).hexdigest()


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none sharing memory with another: what safetensors can write."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        whole = storage.nbytes() == plain.nbytes
        if not whole or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate
