"""The words that a model knows: what e0 is mixed from, and what the subspace is taken from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.models.base import FrozenModel
from tiller.models.loader import is_emoji

SHORTEST = 3  # letters of a word that may fill "a photo of ..."
_NAMED = 8  # known words that a notice gives


@dataclass(frozen=True)
class Words:
    """Whole words that are one token, and their embeddings.

    Attributes:
        names: [V] the words.
        tables: [V, D_e] their token embeddings, for each text encoder; float32 on the CPU.
    """

    names: tuple[str, ...]
    tables: tuple[Tensor, ...]

    @property
    def norms(self) -> tuple[float, ...]:
        """The median length of a word's embedding, for each text encoder."""
        return tuple(float(table.norm(dim=1).median()) for table in self.tables)


def words_of(model: FrozenModel) -> Words:
    """The words of the model's vocabulary: letters only, at least three of them.

    Pieces of words are left out: they fill no sentence, and few pictures were ever captioned with
    them. The bundled model's tokenizer also has words that no caption held, whose embeddings are as
    they were drawn; only those of its captions are taken.

    Raises:
        InvalidInput: the model has no text encoder, or two with different vocabularies.
    """
    tables = model.token_embeddings
    vocabularies = [tokenizer.get_vocab() for tokenizer in model.tokenizers]
    first = vocabularies[0]
    if is_emoji(model):
        from tiller.models.bundled.tokenizer import caption_words

        names = [name for name in caption_words() if f"{name}</w>" in first]
    else:
        whole = [token.removesuffix("</w>") for token in first if token.endswith("</w>")]
        names = [name for name in whole if name.isalpha() and len(name) >= SHORTEST]
        names.sort(key=lambda name: int(first[f"{name}</w>"]))
    ids = [first[f"{name}</w>"] for name in names]
    if any(v[f"{n}</w>"] != i for v in vocabularies[1:] for n, i in zip(names, ids, strict=True)):
        raise InvalidInput("the model's text encoders number their words differently")
    if not names:  # a tokenizer of bytes or of single letters: all its tokens are its words
        names = sorted(first, key=first.__getitem__)  # tokenizers list them in any order
        ids = [first[name] for name in names]
    return Words(tuple(names), tuple(table[ids].float().cpu() for table in tables))


def embedded(model: FrozenModel, phrase: str) -> tuple[Tensor, ...]:
    """[D_e] the mean embedding of the phrase's tokens, for each text encoder.

    Raises:
        InvalidInput: the phrase has no token.
    """
    found = []
    for tokenizer, table in zip(model.tokenizers, model.token_embeddings, strict=True):
        ids = tokenizer(phrase, add_special_tokens=False).input_ids
        if not ids:
            raise InvalidInput(f"expected a word to begin with, such as duck; got {phrase!r}")
        found.append(table[torch.tensor(ids, device=table.device)].float().mean(0).cpu())
    return tuple(found)


def notice_untaught(model: FrozenModel, phrases: Sequence[str]) -> None:
    """Say which words the bundled model does not know: its numbers for them were never trained."""
    if not is_emoji(model):
        return
    known = words_of(model).names
    said = re.findall(r"\w+", " ".join(phrases).lower())
    foreign = [word for word in dict.fromkeys(said) if word not in known]
    if foreign:
        warnings.warn(
            f"the bundled model does not know {', '.join(foreign)}, which no caption taught "
            f"it; it knows {', '.join(known[:_NAMED])} and {len(known) - _NAMED} more words",
            TillerNotice,
            stacklevel=3,
        )
