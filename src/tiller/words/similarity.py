"""How alike two texts are: the cosine of their sentence embeddings.

d(s, s_user) >= lambda keeps a searched prompt close to what the user said. Imported by name, not
with the package: unlike the rest of `words` it needs torch.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), equation 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.words.substitutions import Substitutions

Embed = Callable[[Sequence[str]], Tensor]
"""Texts to their embeddings [n, D], of any length."""

_REMEMBERED = 1 << 16
_AT_ONCE = 64


class Similarity:
    """Cosines of texts with one reference; each text is embedded once.

    Args:
        reference: what the texts are compared with, the user's prompt.
        embed: a sentence encoder.

    Example:
        >>> letters = lambda texts: torch.tensor([[t.count(c) for c in "abc"] for t in texts])
        >>> [round(x, 3) for x in Similarity("ab", letters)(["ba", "c", "abb"]).tolist()]
        [1.0, 0.0, 0.949]
    """

    def __init__(self, reference: str, embed: Embed) -> None:
        self.reference = reference
        self._embed = embed
        self._known: dict[str, float] = {reference: 1.0}
        self._unit: Tensor | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The cosine [n] of each text's embedding with the reference's, in float64."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > _REMEMBERED:
            self._known = {self.reference: 1.0}
            new = [text for text in dict.fromkeys(texts) if text != self.reference]
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            self._known.update(zip(some, self._cosines(some), strict=True))
        return torch.tensor([self._known[text] for text in texts], dtype=torch.float64)

    def _cosines(self, texts: Sequence[str]) -> list[float]:
        if self._unit is None:
            self._unit = self._units([self.reference])[0]
        found: list[float] = (self._units(texts) @ self._unit).tolist()
        return found

    @torch.no_grad()
    def _units(self, texts: Sequence[str]) -> Tensor:
        found = self._embed(texts)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(texts):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidInput(
                f"expected sentence embeddings [{len(texts)}, D] of {len(texts)} texts, got {got}; "
                "correct the encoder"
            )
        return F.normalize(found.double().cpu(), dim=-1)


def within(space: Substitutions, similarity: Similarity, least: float) -> Substitutions:
    """The space without the options that alone take the prompt below `least`, and empty slots."""
    return space.where(lambda texts: [one >= least for one in similarity(texts).tolist()])


def sentence_encoder(source: str) -> Embed:
    """A sentence encoder of transformers: the mean of its last states over a text's tokens.

    Args:
        source: a folder or hub id with safetensors weights and a tokenizer, such as
            "sentence-transformers/all-MiniLM-L6-v2".

    Raises:
        InvalidInput: it cannot be loaded, or gives no states a token.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, use_safetensors=True).requires_grad_(False).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InvalidInput(
            f"cannot load the sentence encoder {source!r}: expected 'emoji', or the folder or hub "
            f"id of a transformers encoder with safetensors weights; got: {first}"
        ) from error

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:  # one by one, so that no vector depends on the others' lengths
            batch = tokenizer(text, truncation=True, return_tensors="pt")
            states = getattr(model(**batch), "last_hidden_state", None)
            if states is None:
                raise InvalidInput(
                    f"expected an encoder with last_hidden_state, got {type(model).__name__} in "
                    f"{source!r}; name a sentence encoder"
                )
            rows.append(states[0].mean(dim=0))
        return torch.stack(rows)

    return embed
