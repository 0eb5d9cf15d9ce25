"""A fake Promptist: a tiny GPT-2 with random weights, in the hub's layout. It writes nonsense."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

END = "<|endoftext|>"


def save_fake_rewriter(folder: Path, *, seed: int = 0, tokenizer: bool = True) -> Path:
    """A model and a tokenizer of single characters, saved in `folder`, which is returned.

    Args:
        folder: made where it is not there.
        seed: of the weights.
        tokenizer: without, as Promptist's own repository is.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = [*sorted(ByteLevel.alphabet()), END]
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    end = len(letters) - 1
    config = GPT2Config(
        vocab_size=len(letters),
        n_positions=128,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.5,
    )
    model = GPT2LMHeadModel(config)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    if tokenizer:
        save_fake_tokenizer(folder)
    return folder


def save_fake_tokenizer(folder: Path) -> Path:
    """The tokenizer alone."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = [*sorted(ByteLevel.alphabet()), END]
    vocab = {letter: index for index, letter in enumerate(letters)}
    GPT2Tokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    return folder
