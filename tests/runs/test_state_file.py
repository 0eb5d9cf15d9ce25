"""A state file says itself whether it is whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from tiller.core.errors import RunError
from tiller.core.state import Packed, pack
from tiller.runs.state_file import decode_state, encode_state

STATE = pack(
    {
        "tensor": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        'a "checksum":"0" of one\'s own': [1, 2.5, None, float("inf"), "ü\U0001f989"],
        "whole": torch.arange(4),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
    }
)
WHOLE = encode_state(STATE)


def test_a_state_comes_back_bit_by_bit():
    back = decode_state(WHOLE)
    assert back.tree == STATE.tree
    assert back.tensors.keys() == STATE.tensors.keys()
    for name, tensor in STATE.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


def test_any_safetensors_reader_opens_it():
    assert torch.equal(load(WHOLE)["tensor"], STATE.tensors["tensor"])


@given(place=st.integers(0, len(WHOLE) - 1), mask=st.integers(1, 255))
def test_any_changed_byte_is_found(place, mask):
    damaged = bytearray(WHOLE)
    damaged[place] ^= mask
    with pytest.raises(RunError, match="damaged"):
        decode_state(bytes(damaged))


@given(size=st.integers(0, len(WHOLE) - 1))
def test_any_truncation_is_found(size):
    with pytest.raises(RunError, match="damaged"):
        decode_state(WHOLE[:size])


def test_more_bytes_than_there_should_be_are_found():
    with pytest.raises(RunError, match="damaged"):
        decode_state(WHOLE + b"\0")


def test_tensors_that_share_memory_are_saved_each():
    base = torch.arange(6.0)
    shared = Packed({}, {"a": base, "b": base, "view": base[2:4], "row": base.view(2, 3)[1]})
    back = decode_state(encode_state(shared)).tensors
    assert all(torch.equal(back[name], shared.tensors[name]) for name in shared.tensors)
