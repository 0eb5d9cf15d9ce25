"""Texts made of pieces: fixed words, undecided stretches and learned vectors.

A text is a list of pieces, each of which ends and begins at a word boundary; a plain string is a
piece too. `FrozenModel.encode_pieces` sends them through the text encoder, with gradients to the
weights of what is undecided and to the vectors of what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tiller.core.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Choice:
    """An undecided stretch of a text: one of several wordings, each with a weight.

    The stretch has as many positions as its heaviest option has tokens. The input embedding at
    position p is sum_o w_o e(o, p) / sum_o w_o over the options o that have a token e(o, p) there;
    the option "" has the embedding of the end token at every position, and where it is the heaviest
    itself the stretch has no position (and its weights no gradient). So one-hot weights are exactly
    the ordinary text.

    Attributes:
        options: words or phrases of any number of tokens, "" for nothing.
        weights: [O], at least 0, with sum 1; may hold a graph.

    Raises:
        InvalidInput: no options, or not one weight for each.

    Example:
        >>> import torch
        >>> colour = Choice(("red", "dark green", ""), torch.tensor([0.5, 0.3, 0.2]))
        >>> text = ["a", colour, "cat"]

    Source: the relaxation of DPO-Diff (arXiv 2407.01606, section 4.2), sent through the encoder.
    """

    options: tuple[str, ...]
    weights: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.options, tuple) or not self.options:
            raise InvalidInput(
                f"a Choice needs a tuple of at least one option, got {self.options!r}"
            )
        for option in self.options:
            if not isinstance(option, str):
                raise InvalidInput(f"the options of a Choice must be texts, got {option!r}")
        given = self.weights
        if not isinstance(given, Tensor) or not given.is_floating_point():
            raise InvalidInput(f"the weights of a Choice must be a float tensor, got {given!r}")
        if tuple(given.shape) != (len(self.options),):
            raise InvalidInput(
                f"expected {len(self.options)} weights, one for each option of "
                f"{self.options!r}, got the shape {list(given.shape)}"
            )


@dataclass(frozen=True, eq=False)
class Tokens:
    """Vectors in place of k tokens: a learned concept.

    Attributes:
        vectors: one tensor [k, D_e] for each text encoder e, of the scale of its token embeddings;
            may hold a graph.
        name: what stands for them in prompts, for people.

    Raises:
        InvalidInput: no vectors, or another number of them for another encoder.

    Example:
        >>> import torch
        >>> duck = Tokens((torch.zeros(2, 768),))
        >>> text = ["a photo of", duck, "on a beach"]

    Source: textual inversion (arXiv 2208.01618, section 4).
    """

    vectors: tuple[Tensor, ...]
    name: str = "a learned word"

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, tuple) or not self.vectors:
            raise InvalidInput(
                "Tokens needs a tuple of one tensor [k, D] for each text encoder, got "
                f"{type(self.vectors).__name__}"
            )
        for given in self.vectors:
            if not isinstance(given, Tensor) or given.ndim != 2 or not given.is_floating_point():
                shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise InvalidInput(
                    f"the vectors of Tokens must be float tensors [k, D], got {shape}"
                )
        counts = {len(given) for given in self.vectors}
        if len(counts) != 1 or counts == {0}:
            raise InvalidInput(
                f"expected k >= 1 vectors, as many for each text encoder, got {sorted(counts)}"
            )

    def __len__(self) -> int:
        return len(self.vectors[0])


Piece = str | Choice | Tokens
Text = Sequence[Piece]


def checked(texts: Sequence[Text], what: str) -> list[list[Piece]]:
    """The texts as lists of pieces, with half surrogates, which no tokenizer takes, replaced.

    Raises:
        InvalidInput: no text, a bare string in place of a list, or something that is no piece.
    """
    if isinstance(texts, str) or any(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{what} must be lists of pieces, got a text; write [['a cat']]")
    if not texts:
        raise InvalidInput(f"expected at least one text in {what}, got none")
    return [[_clean(piece, what) for piece in text] for text in texts]


def plain(text: Text) -> str | None:
    """The whole text where every piece is fixed, else None."""
    words = [piece for piece in text if isinstance(piece, str)]
    return " ".join(words) if len(words) == len(text) else None


def readable(text: str) -> str:
    """The text with half surrogates replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def brief(text: str, most: int = 60) -> str:
    """A text as messages quote it: its first letters where there are more than `most`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _clean(piece: Piece, what: str) -> Piece:
    if isinstance(piece, str):
        return readable(piece)
    if isinstance(piece, (Choice, Tokens)):
        return piece
    raise InvalidInput(
        f"{what} must be made of texts, Choice and Tokens, got a {type(piece).__name__}"
    )
