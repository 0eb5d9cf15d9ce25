"""Learned words: vectors that a frozen model reads where a prompt says their token.

How they are learned is `tiller.concepts`' business, how they are kept in files `concept_files`'.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.models.pieces import Piece, Tokens, brief

MOST_VECTORS = 64  # of one concept: prompts have 75 places
LONGEST = 64  # characters of a token


@dataclass(frozen=True, eq=False)
class Concept:
    """A learned word.

    Attributes:
        token: what stands for it in prompts, such as `<duck>`; upper and lower case are one.
        vectors: [k, D_e] one tensor for each text encoder, float32 on the CPU: k pseudo-words, of
            the scale of the encoder's token embeddings.
        about: where it comes from, for people; texts by name.

    Raises:
        InvalidInput: a token that cannot stand in a prompt, or vectors that cannot be read.

    Example:
        >>> duck = Concept("<duck>", (torch.zeros(2, 768),))
        >>> len(duck)
        2

    Source: Gal et al. 2022, "An image is worth one word", section 4.
    """

    token: str
    vectors: tuple[Tensor, ...]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_token(self.token)
        counts = {len(vectors) for vectors in self.vectors if vectors.ndim == 2}
        if any(vectors.ndim != 2 for vectors in self.vectors) or len(counts) != 1:
            shapes = [list(vectors.shape) for vectors in self.vectors]
            raise InvalidInput(
                f"{self.token} needs vectors [k, D], as many for each text encoder; got {shapes}"
            )
        if not 1 <= len(self) <= MOST_VECTORS:
            raise InvalidInput(f"{self.token} must have 1 to {MOST_VECTORS} vectors, got {counts}")
        for vectors in self.vectors:
            if not vectors.is_floating_point() or not bool(torch.isfinite(vectors).all()):
                raise InvalidInput(
                    f"the vectors of {self.token} must be finite numbers, got {vectors.dtype} with "
                    f"{int((~torch.isfinite(vectors)).sum())} that are not; learn it again"
                )

    def __len__(self) -> int:
        return len(self.vectors[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """D_e of each text encoder."""
        return tuple(vectors.shape[1] for vectors in self.vectors)

    @property
    def parts(self) -> list[str]:
        """The names that diffusers gives to its k tokens: `<duck>`, `<duck>_1`, ..."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self)))]

    def piece(self) -> Tokens:
        """What `FrozenModel.encode_pieces` reads."""
        return Tokens(self.vectors, self.token)


def check_token(token: Any) -> None:
    """Refuse what cannot stand for a concept in a prompt.

    Raises:
        InvalidInput: it is empty, too long, or holds a blank or a character that is not printable.
    """
    remedy = "expected one word such as <duck>"
    if not isinstance(token, str) or not token.strip():
        raise InvalidInput(f"a concept needs a token, {remedy}; got {token!r}")
    if any(c.isspace() or not c.isprintable() for c in token):
        raise InvalidInput(f"a token has no blanks or control characters, {remedy}; got {token!r}")
    if len(token) > LONGEST:
        raise InvalidInput(
            f"a token has at most {LONGEST} characters, {remedy}; got {len(token)}: {token[:20]!r}…"
        )
    if not re.search(r"\w", token) or token.startswith("<|"):
        raise InvalidInput(f"a token has a letter or a digit, {remedy}; got {token!r}")


def check_new(token: str, tokenizers: Sequence[Any]) -> None:
    """Refuse a token that the model's vocabulary has already.

    Raises:
        InvalidInput: prompts that mean the ordinary word would change their meaning.
    """
    check_token(token)
    for tokenizer in tokenizers:
        known = tokenizer.get_vocab()
        if token in known or f"{token.lower()}</w>" in known:
            raise InvalidInput(
                f"{token!r} is a word that the model knows; expected a new one, such as <{token}>"
            )


class Vocabulary:
    """The concepts that a model was given, and how a prompt that names them is read.

    Args:
        concepts: any number of them.
        tokenizers: the model's, one a text encoder.
        widths: of its token embeddings, one a text encoder.

    Raises:
        InvalidInput: two with one token, a token of the vocabulary, or another model's vectors.
    """

    def __init__(
        self, concepts: Sequence[Concept], tokenizers: Sequence[Any], widths: Sequence[int]
    ) -> None:
        names: dict[str, str] = {}
        for concept in concepts:
            check_new(concept.token, tokenizers)
            if concept.widths != tuple(widths):
                raise InvalidInput(
                    f"{concept.token} has vectors of width {_sizes(concept.widths)}, and this "
                    f"model's text encoders read {_sizes(widths)}: it was learned for another model"
                )
            for part in concept.parts:
                if (other := names.get(part.casefold())) is not None:
                    raise InvalidInput(
                        f"two concepts use the token {part!r}, {other} and {concept.token}; give "
                        "one of them another: --concept FILE=<NAME>"
                    )
                names[part.casefold()] = concept.token
        self.concepts = {concept.token.casefold(): concept for concept in concepts}
        self._pattern = _pattern([concept.token for concept in concepts])

    def __len__(self) -> int:
        return len(self.concepts)

    def read(self, text: str) -> list[Piece]:
        """`text` cut at the concepts' tokens: words, and vectors in their place.

        Example:
            >>> duck = Concept("<duck>", (torch.zeros(1, 4),))
            >>> known = Vocabulary([duck], [], [4])
            >>> [p if isinstance(p, str) else "*" for p in known.read("a photo of <Duck> in snow")]
            ['a photo of', '*', 'in snow']
        """
        pieces: list[Piece] = []
        for part in self._pattern.split(text) if self.concepts else [text]:
            concept = self.concepts.get(part.casefold())
            if concept is not None:
                pieces.append(concept.piece())
            elif part.strip() or len(self.concepts) == 0:
                pieces.append(part.strip() if self.concepts else part)
        return pieces or [""]


def notice_unnamed(concepts: Sequence[Concept], texts: Sequence[str]) -> None:
    """Say which concepts none of the texts names: they change nothing."""
    every = {one.token: _pattern([one.token]) for one in concepts}
    missing = [name for name, own in every.items() if not any(map(own.search, texts))]
    if missing:
        warnings.warn(
            f"the prompt names none of {', '.join(missing)}: {brief(texts[0])!r}",
            TillerNotice,
            stacklevel=3,
        )


def notice_capitals(concepts: Sequence[Concept], texts: Sequence[str]) -> None:
    """Say which tokens of several vectors the texts write otherwise: Tiller reads these alone."""
    for one in concepts:
        written = {found for text in texts for found in _pattern([one.token]).findall(text)}
        if len(one) > 1 and (other := sorted(written - {one.token})):
            warnings.warn(
                f"of {other[0]} diffusers would read another word; write {one.token}, and a plain "
                "pipeline draws the same picture",
                TillerNotice,
                stacklevel=3,
            )


def _pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Any of the tokens, the longest first; one that ends in a letter ends with its word."""
    found = []
    for token in sorted(tokens, key=len, reverse=True):
        before = r"(?<!\w)" if re.match(r"\w", token) else ""
        after = r"(?!\w)" if re.search(r"\w$", token) else ""
        found.append(before + re.escape(token) + after)
    return re.compile(f"({'|'.join(found)})" if found else "(?!)", re.IGNORECASE)


def _sizes(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))
