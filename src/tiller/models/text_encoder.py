"""A CLIP text encoder with its tokenizer: texts made of pieces in, the encoder's output out.

The encoder is transformers' own and takes token ids alone, so vectors that are no token's enter by
a forward hook on its input embedding, and pass through positions, causal mask and all layers.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.pieces import Choice, Piece, Text, brief, readable
from tiller.models.quiet import quietly

CACHED_WORDS = 1 << 16  # tokenized pieces that are kept
_NAMED = 200  # letters of the words that a notice says are dropped

SUM_TOLERANCE = 1e-3  # of the weights of one Choice


class Weights:
    """The weights of all undecided stretches of some texts, laid end to end.

    Attributes:
        flat: [W] of all weights, with their graph; float32 at least.

    Raises:
        InvalidInput: weights below 0, or whose sum is not 1.
    """

    def __init__(self, texts: Iterable[Text], device: torch.device) -> None:
        choices = {id(p.weights): p for text in texts for p in text if isinstance(p, Choice)}
        parts = [choice.weights for choice in choices.values()]
        if len({part.device for part in parts}) > 1:
            parts = [part.to(device) for part in parts]
        flat = (torch.cat(parts) if parts else torch.zeros(0)).to(device)  # moved in one go
        self.flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        self._values: list[float] = self.flat.detach().tolist()
        self._start: dict[int, int] = {}
        start = 0
        for key, choice in choices.items():
            self._start[key] = start
            own = self._values[start : start + len(choice.options)]
            if not all(value >= 0 for value in own) or abs(sum(own) - 1) > SUM_TOLERANCE:
                raise InvalidInput(
                    f"the weights of {choice.options!r} must be at least 0 with sum 1, got {own}; "
                    "use a softmax of them"
                )
            start += len(own)

    def start(self, choice: Choice) -> int:
        """Where the weights of this stretch start in `flat`."""
        return self._start[id(choice.weights)]

    def without_words(self, text: Text) -> bool:
        """Whether nothing is left of the text when each stretch is its heaviest option."""
        return not any(self._wording(piece).strip() for piece in text)

    def _wording(self, piece: Piece) -> str:
        if isinstance(piece, Choice):
            return piece.options[self.heaviest(piece)]
        return piece if isinstance(piece, str) else "learned"

    def heaviest(self, choice: Choice) -> int:
        """The index of the option with the largest weight, the first of equals."""
        start = self.start(choice)
        own = self._values[start : start + len(choice.options)]
        return own.index(max(own))


Mix = tuple[tuple[int, ...], tuple[int, ...]]
"""The options that count at one position of a stretch, and the token of each."""


@dataclass
class Row:
    """One text as token ids, without its ends, and what takes the place of some of them."""

    ids: list[int] = field(default_factory=list)
    mixed: dict[int, tuple[int, Mix]] = field(default_factory=dict)
    """position -> (where the stretch's weights start, which options count there)."""
    given: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    """position -> (vectors, row of them)."""
    names: dict[int, str] = field(default_factory=dict)
    """position -> what stands for the vectors in prompts."""


class TextEncoder:
    """A tokenizer and its CLIP text encoder, which reads texts made of pieces.

    Args:
        tokenizer: a CLIP tokenizer; texts are cut at its `model_max_length`.
        encoder: a `CLIPTextModel` or `CLIPTextModelWithProjection` with frozen weights.
        convert: what the pipeline does to a text first (multi-vector tokens that it has loaded).
        index: which of a text's `Tokens.vectors` are this encoder's.
        of: how many text encoders the model has.
    """

    def __init__(
        self, tokenizer: Any, encoder: Any, convert: Callable[[str], str], index: int, of: int
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.index = index
        self.of = of
        self._convert = convert
        self._words: dict[str, list[int]] = {}

    @property
    def limit(self) -> int:
        """How many tokens it reads, both ends included."""
        return int(self.tokenizer.model_max_length)

    @property
    def table(self) -> Tensor:
        """[V, D] the embedding of each token of the vocabulary, frozen."""
        weight: Tensor = self.encoder.get_input_embeddings().weight
        return weight.detach()

    def lengths(self, texts: Sequence[Text], cut: bool = True) -> list[int]:
        """How many tokens of each text are read, both ends included; all that it has if not cut."""
        rows = self.read(texts, Weights(texts, self.encoder.device))
        return [min(len(row.ids) + 2, self.limit) if cut else len(row.ids) + 2 for row in rows]

    def read(self, texts: Sequence[Text], weights: Weights) -> list[Row]:
        """The texts as token ids, however long they are."""
        words: dict[str, None] = {}
        for text in texts:
            for piece in text:
                if isinstance(piece, str):
                    words[piece] = None
                elif isinstance(piece, Choice):
                    words.update(dict.fromkeys(piece.options))
        self._tokenize(words)
        mixes: dict[tuple[tuple[str, ...], int], list[Mix]] = {}
        return [self._row(text, weights, mixes) for text in texts]

    def warnings(self, rows: Sequence[Row], name: str) -> list[str]:
        """For each row that is too long, how long it is and which of its words are dropped."""
        found = []
        body = self.limit - 2
        for row in rows:
            if len(row.ids) > body:
                dropped = range(body, len(row.ids))
                rest = [row.ids[p] for p in dropped if p not in row.given]
                parts = [brief(self.tokenizer.decode(rest).strip(), _NAMED)]
                lost = Counter(row.names[p] for p in dropped if p in row.names)
                parts += [f"{count} of the vectors of {word}" for word, count in lost.items()]
                found.append(
                    f"the prompt has {len(row.ids)} tokens and {name} reads {body}; these words "
                    f"are dropped: {', '.join(filter(None, parts))}"
                )
        return found

    def __call__(self, rows: Sequence[Row], weights: Weights, **options: Any) -> Any:
        """The encoder's output for n rows, as one batch; `options` go to its `forward`."""
        body = self.limit - 2
        lengths = [min(len(row.ids), body) for row in rows]
        tokenizer = self.tokenizer
        first, last, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        ids = torch.tensor(
            [
                [first, *row.ids[:n], last, *[pad] * (body - n)]
                for row, n in zip(rows, lengths, strict=True)
            ],
            device=self.encoder.device,
        )
        mask = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            reach = torch.tensor(lengths, device=ids.device) + 2
            mask = (torch.arange(self.limit, device=ids.device) < reach[:, None]).long()
        with self._replaced(rows, weights):
            return self.encoder(ids, attention_mask=mask, **options)

    @contextlib.contextmanager
    def _replaced(self, rows: Sequence[Row], weights: Weights) -> Iterator[None]:
        """The input embedding's output, while this lasts, with the rows' own vectors in place."""
        body = self.limit - 2
        mixed = [(r, p) for r, row in enumerate(rows) for p in row.mixed if p < body]
        given = [(r, p) for r, row in enumerate(rows) for p in row.given if p < body]
        parts = []
        if mixed:
            parts.append(self._mixtures([rows[r].mixed[p] for r, p in mixed], weights))
        if given:
            parts.append(self._vectors([rows[r].given[p] for r, p in given]))
        if not parts:
            yield
            return
        vectors = torch.cat([part.to(self.table.dtype) for part in parts])
        at = torch.tensor(mixed + given, device=vectors.device)
        where = (at[:, 0], at[:, 1] + 1)  # after the first token

        def replace(module: Any, args: Any, output: Tensor) -> Tensor:
            return output.index_put(where, vectors)

        handle = self.encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _mixtures(self, positions: list[tuple[int, Mix]], weights: Weights) -> Tensor:
        """[S, D] the weighted mean of token embeddings at each position, equation of `Choice`."""
        entries: tuple[list[int], list[int], list[int]] = ([], [], [])
        for s, (start, (options, own)) in enumerate(positions):
            entries[0].extend([s] * len(own))
            entries[1].extend([start + option for option in options])
            entries[2].extend(own)
        at, which, token = torch.tensor(entries, device=weights.flat.device)
        tokens, column = torch.unique(token, return_inverse=True)
        table = self.table[tokens.to(self.table.device)]
        dtype = torch.promote_types(table.dtype, weights.flat.dtype)
        shares = weights.flat.new_zeros(len(positions), len(tokens))
        shares = shares.index_put((at, column), weights.flat[which], accumulate=True)
        shares = shares / shares.sum(1, keepdim=True)
        # Products of 1 and 0 with finite numbers: one-hot weights give the token's own embedding.
        mean: Tensor = shares.to(dtype) @ table.to(dtype)
        return mean

    def _vectors(self, positions: list[tuple[Tensor, int]]) -> Tensor:
        """[S, D] of the learned tokens at each position."""
        tensors = {id(tensor): tensor for tensor, _ in positions}
        start, starts = 0, {}
        for key, tensor in tensors.items():
            if tensor.shape[1] != self.table.shape[1]:
                raise InvalidInput(
                    f"expected learned vectors of width {self.table.shape[1]} for text encoder "
                    f"{self.index + 1}, got {tensor.shape[1]}: made for another model"
                )
            starts[key] = start
            start += len(tensor)
        device = self.table.device
        flat = torch.cat([tensor.to(device) for tensor in tensors.values()])
        return flat[torch.tensor([starts[id(tensor)] + k for tensor, k in positions])]

    def _row(
        self, text: Text, weights: Weights, mixes: dict[tuple[tuple[str, ...], int], list[Mix]]
    ) -> Row:
        row = Row()
        for piece in text:
            if isinstance(piece, str):
                row.ids += self._words[piece]
            elif isinstance(piece, Choice):
                start, heaviest = weights.start(piece), weights.heaviest(piece)
                key = piece.options, heaviest
                if key not in mixes:
                    mixes[key] = self._mixes(*key)
                for p, mix in enumerate(mixes[key], len(row.ids)):
                    row.mixed[p] = start, mix
                row.ids += self._words[piece.options[heaviest]]
            else:
                if len(piece.vectors) != self.of:
                    raise InvalidInput(
                        f"expected Tokens with vectors for {self.of} text encoders, got "
                        f"{len(piece.vectors)}: made for another model"
                    )
                vectors = piece.vectors[self.index]
                for k in range(len(vectors)):
                    row.given[len(row.ids)] = (vectors, k)
                    row.names[len(row.ids)] = piece.name
                    # Not the last token, by whose place the pooled state is found.
                    row.ids.append(int(self.tokenizer.bos_token_id))
        return row

    def _mixes(self, options: tuple[str, ...], heaviest: int) -> list[Mix]:
        """What is mixed at each position of a stretch."""
        nothing = int(self.tokenizer.eos_token_id)
        read = [self._words[option] for option in options]
        found = []
        for p in range(len(read[heaviest])):
            here = [o for o, tokens in enumerate(read) if p < len(tokens) or not tokens]
            own = tuple(read[o][p] if read[o] else nothing for o in here)
            found.append((tuple(here), own))
        return found

    def _tokenize(self, texts: Iterable[str]) -> None:
        """Read the token ids, without ends, of each text that was not seen before."""
        if len(self._words) > CACHED_WORDS:
            self._words.clear()
        new = [text for text in texts if text not in self._words]
        if new:
            with quietly():  # what is too long is cut, and said, by us
                read = self.tokenizer(
                    [self._convert(readable(text)) for text in new],
                    add_special_tokens=False,
                    verbose=False,
                ).input_ids
            self._words.update(zip(new, read, strict=True))
