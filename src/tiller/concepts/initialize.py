"""Where a concept's search begins: e0, the general condition initialization of the paper.

Source: Fei et al. 2023, "Gradient-free textual inversion", section 3.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiller.concepts.objective import ConceptLoss
from tiller.concepts.vocabulary import Words, embedded
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw
from tiller.models.base import FrozenModel
from tiller.models.loader import is_emoji
from tiller.rewards._tower import EMOJI, Tower, tower_for
from tiller.spaces.concept import Vectors
from tiller.words.inflection import article

NEAREST, TRIALS = 12, 4  # words that may be the start, and trials of a round
PHRASES, SKETCHED = 24, 8  # those that sketches are made of, and those that go on as words do
POOL, BEAM = 256, 32  # words that phrases are made of, and phrases that are made longer
HALVINGS = (1, 1, 2)  # rounds before the better half goes on
_FIRST_ROUND, _SKETCHES = -8, -9  # no search has them, and the watch has the last two before 0
BATCH = 256  # sentences that go through the CLIP at once
CLIP_OF_WIDTH = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}


def clip_of(model: FrozenModel, name: str) -> Tower:
    """The CLIP called `name`; of `auto`, the model's own where it is known.

    Raises:
        InvalidInput: it is not known, or cannot be loaded.
    """
    width = model.token_embeddings[0].shape[1]
    if name != "auto":
        source = name
    elif is_emoji(model):
        source = EMOJI
    elif width in CLIP_OF_WIDTH:
        source = CLIP_OF_WIDTH[width]
    else:
        raise InvalidInput(
            f"no CLIP is known for a text encoder of width {width}; name one (--set clip=FOLDER)"
        )
    return tower_for(source, torch.zeros(1, device=model.device))


def attended(similarity: Tensor, tables: Sequence[Tensor], temperature: float) -> list[Tensor]:
    """e0 [D_e] for each text encoder: equation 4, rescaled to the length of a word.

        e0 = 1/N sum_i sum_v softmax_v(temperature s_iv) e_v,   then |e0| = median_v |e_v|

    Without a temperature the weights are nearly even, because cosines are, and e0 is the mean of
    the vocabulary: CLIP's own scale is 100. A mean of many words is shorter than any of them, and
    the text encoder adds positions to it, so its length is put back.

    Args:
        similarity: [N, V] cosines of pictures and words.
        tables: [V, D_e] the words' embeddings.
        temperature: what cosines are multiplied by.

    Example:
        >>> words = torch.eye(3)
        >>> attended(torch.tensor([[1.0, 0.0, 0.0]]), [words], 100.0)[0].round(decimals=6).tolist()
        [1.0, 0.0, 0.0]
    """
    weights = (temperature * similarity.double()).softmax(dim=1).mean(0)
    found = []
    for table in tables:
        mixed = weights @ table.double()
        length = table.double().norm(dim=1).median()
        found.append((mixed * (length / mixed.norm().clamp(min=1e-12))).float())
    return found


@torch.no_grad()
def similarities(
    tower: Tower, pictures: Tensor, words: Words, sentence: str, most: int = 5
) -> tuple[Tensor, list[str]]:
    """Cosines [N, V] of pictures [N, 3, H, W] with `sentence` about each word, and the best words.

    The sentences go through the CLIP in batches of one length, so that none is padded.
    """
    pixels = pictures.to(tower.model.device)
    seen = tower.embed_images(pixels)
    said = embed_sentences(tower, [sentence.replace("{}", name) for name in words.names])
    similarity = (seen @ said.T).float().cpu()
    best = similarity.mean(0).topk(min(most, len(words.names))).indices.tolist()
    return similarity, [words.names[i] for i in best]


@torch.no_grad()
def nearest_phrases(
    tower: Tower, pictures: Tensor, pool: Sequence[str], sentence: str, words: int, *, thing: bool
) -> list[str]:
    """Phrases of so many words whose `sentence` is near to pictures [N, 3, H, W].

    A beam search by the CLIP: the nearest words are made longer at either end, and the nearest of
    what comes of that again. A phrase says what no word of the vocabulary does ("a pink dog", for a
    unicorn).

    Args:
        tower: the CLIP.
        pictures: what is to be named.
        pool: the words, those of the sentence itself left out.
        sentence: with a `{}`.
        words: of a phrase, its article included.
        thing: it begins with an article, as nouns do in captions.
    """
    seen = tower.embed_images(pictures.to(tower.model.device))
    said_already = {"a", "an", "the", *sentence.split()}
    pool = [name for name in pool if name not in said_already] or list(pool)

    def written(phrase: str) -> str:
        return f"{article(phrase)} {phrase}" if thing else phrase

    def nearest(phrases: Sequence[str]) -> list[str]:
        said = embed_sentences(tower, [sentence.replace("{}", written(p)) for p in phrases])
        near = (seen @ said.T).mean(0).topk(min(BEAM, len(phrases))).indices.tolist()
        return [phrases[i] for i in near]

    found = nearest(pool)
    for _ in range(words - 1 - thing):
        pairs = [pair for one in found for other in pool for pair in ((one, other), (other, one))]
        found = nearest(list(dict.fromkeys(" ".join(pair) for pair in pairs)))
    return [written(phrase) for phrase in found[:PHRASES]]


@torch.no_grad()
def embed_sentences(tower: Tower, sentences: Sequence[str]) -> Tensor:
    """Unit vectors [n, D] of many sentences, in batches of equal length."""
    ids = tower.tokenizer(list(sentences), truncation=True, max_length=tower.limit).input_ids
    by_length: dict[int, list[int]] = {}
    for i, own in enumerate(ids):
        by_length.setdefault(len(own), []).append(i)
    found: dict[int, Tensor] = {}
    for rows in by_length.values():
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            batch = torch.tensor([ids[i] for i in part], device=tower.model.device)
            out: Any = tower.model.get_text_features(input_ids=batch)
            features = out if isinstance(out, Tensor) else out.pooler_output
            found.update(zip(part, F.normalize(features, dim=-1), strict=True))
    return torch.stack([found[i] for i in range(len(ids))])


def of_words(model: FrozenModel, phrases: str, tokens: int) -> list[Tensor]:
    """e0 [k, D_e] of words that the user names: each pseudo-word gets one, in turn.

    A word of several tokens is their mean.

    Raises:
        InvalidInput: no word, or more than there are pseudo-words.
    """
    named = phrases.split()
    if not named:
        raise InvalidInput(f"expected a word to begin with, such as duck; got {phrases!r}")
    if len(named) > tokens:
        raise InvalidInput(
            f"init={phrases!r} names {len(named)} words to begin with, one a token, and {tokens=}; "
            f"name fewer, or --set tokens={len(named)}"
        )
    rows = [embedded(model, named[i % len(named)]) for i in range(tokens)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@torch.no_grad()
def promising(loss: ConceptLoss, starts: Sequence[list[Tensor]], seed: int) -> list[int]:
    """Which of the starts, k times [D_e] each, have the lowest `loss`, of sketches, in order."""
    tried = loss.render(_together(starts), Draw(seed, _SKETCHES)).mean(dim=1)
    return tried.argsort(stable=True)[:SKETCHED].tolist()


@torch.no_grad()
def lowest(loss: ConceptLoss, starts: Sequence[list[Tensor]], seed: int) -> int:
    """Which of the starts, e0 [k, D_e] for each text encoder, has the lowest loss.

    Successive halving: all are tried, the better half once more, and the better half of these
    twice. A search stays near its start, so a wrong one is not made good.
    """
    x = _together(starts)
    total, left = torch.zeros(len(starts)), torch.arange(len(starts))
    rounds = itertools.count(_FIRST_ROUND)
    for times in HALVINGS:
        tried = tuple(vectors[left.to(vectors.device)] for vectors in x)
        for round_ in itertools.islice(rounds, times):
            total[left] += loss.render(tried, Draw(seed, round_)).mean(dim=1).cpu()
        left = left[total[left].argsort(stable=True)][: max(1, len(left) // 2)]
    return int(left[0])


def _together(starts: Sequence[list[Tensor]]) -> Vectors:
    """[n, k, D_e] for each text encoder."""
    return tuple(torch.stack(column) for column in zip(*starts, strict=True))


def at_random(words: Words, tokens: int, generator: torch.Generator) -> list[Tensor]:
    """e0 [k, D_e] of words drawn from the vocabulary: the paper's "without initialization"."""
    picks = torch.randint(len(words.names), (tokens,), generator=generator)
    return [table[picks] for table in words.tables]
