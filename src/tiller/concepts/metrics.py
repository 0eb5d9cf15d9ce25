"""How well a concept was learned: does it come back, and can it be put elsewhere?

Source: Fei et al. 2023, "Gradient-free textual inversion", section 4.3; after Gal et al. 2022.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiller.concepts import templates
from tiller.concepts.drawing import check_seeds, sample, told_by, vocabulary
from tiller.concepts.grounds import place_of
from tiller.core.errors import InvalidInput, TillerError
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.concepts import Concept
from tiller.models.loader import is_emoji
from tiller.models.pieces import Piece
from tiller.rewards._tower import EMOJI, EMOJI_HELD_OUT, Tower, tower_for

OnPrompt = Callable[[str, int], None]
"""Called with each prompt, and how many pictures of it, before it is drawn."""

BATCH, ACCELERATED = 16, 256  # pictures of 64 x 64 drawn at once, on a CPU and elsewhere


@dataclass(frozen=True)
class Seen:
    """What one CLIP says.

    Attributes:
        reconstruction: mean cosine of each drawn picture of the plainest sentence with each given
            picture.
        placed: the same where the sentence ends with the ground of one given picture ("on a blue
            background"), with that picture; None where no given picture has a plain ground. Ours.
        editability: mean over the edits of the cosine between the mean drawn picture's embedding
            and the prompt without the token.
        edits: the latter for each prompt.
    """

    reconstruction: float
    placed: float | None
    editability: float
    edits: dict[str, float]


@dataclass(frozen=True)
class Judged:
    """What the bundled model's judge says; shares of the drawn pictures.

    Attributes:
        same_subject: in which it sees what it sees in most of the given pictures; None of styles,
            whose pictures show different things.
        same_colour: likewise the colour.
        edited: of the edits, in which it sees what the prompt asks for beside the token.
    """

    same_subject: float | None
    same_colour: float | None
    edited: float


@dataclass(frozen=True)
class Measured:
    """One concept, or one word, measured.

    Attributes:
        token: the concept's token, or the word.
        images: pictures drawn of each prompt.
        clips: what each CLIP says, by its name; the first decides.
        judge: what the judge says, of the bundled model.
    """

    token: str
    images: int
    clips: dict[str, Seen]
    judge: Judged | None

    @property
    def reconstruction(self) -> float:
        """The first CLIP's."""
        return next(iter(self.clips.values())).reconstruction

    @property
    def placed(self) -> float | None:
        """The first CLIP's."""
        return next(iter(self.clips.values())).placed

    @property
    def editability(self) -> float:
        """The first CLIP's."""
        return next(iter(self.clips.values())).editability

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **asdict(self),
            "reconstruction": self.reconstruction,
            "placed": self.placed,
            "editability": self.editability,
        }


def evaluate(
    model: FrozenModel,
    concept: Concept | str,
    pictures: Tensor,
    *,
    subject: str = "object",
    images: int = 64,
    seed: int = 0,
    clips: Sequence[str] | None = None,
    on_prompt: OnPrompt | None = None,
) -> Measured:
    """Draw the concept plainly and in other surroundings, and compare with the given pictures.

        reconstruction = mean_ij <c(drawn_i), c(given_j)>
        placed         = mean_ij <c(drawn_i on the ground of given_j), c(given_j)>
        editability    = mean_p <normalized mean_i c(drawn_pi), c(p without the token)>

    Reconstruction compares grounds too: a word that says nothing of the thing and draws grounds
    like the given ones is near. What is placed was asked for the ground, so the thing decides.

    Args:
        model: the frozen model.
        concept: a learned word, or any words, to compare with.
        pictures: [N, 3, H, W] in [0, 1], what it was learned from.
        subject: object or style.
        images: pictures of each prompt (the paper: 64); seeds from `seed` on, the same for all.
            Those of the grounds share as many.
        seed: of the noises; one that the search has not drawn with.
        clips: the CLIPs that compare, the first decides. By default the bundled ones for the
            bundled model: the held-out first, since the other chose where the search began.
        on_prompt: see `OnPrompt`.

    Raises:
        InvalidInput: no CLIP is known for this model, or a number that cannot be.
    """
    if images < 1:
        raise InvalidInput(f"expected at least one picture of each prompt, got {images=}")
    emoji = is_emoji(model)
    sources = list(clips or ((EMOJI_HELD_OUT, EMOJI) if emoji else ()))
    if not sources:
        raise InvalidInput(
            "expected a CLIP to compare with, got none; name one, such as "
            "--clip openai/clip-vit-base-patch32"
        )
    named, _ = _reader(model, concept)
    on_device = torch.zeros(1, device=model.device)
    towers = {source: tower_for(source, on_device) for source in sources}  # before minutes of work
    seeds = range(seed, seed + images)
    check_seeds([seeds[0], seeds[-1]])

    edits = templates.edits(subject, emoji=emoji)
    asked = [templates.training(subject, emoji=emoji)[0], *(template for template, _ in edits)]
    plain, *edited = drawings(model, concept, asked, seeds, on_prompt)
    placed = on_grounds(model, concept, pictures, subject, seeds, on_prompt)
    said = [rest for _, rest in edits]
    return Measured(
        token=named,
        images=images,
        clips={
            name: _seen(tower, pictures, plain, placed, edited, said)
            for name, tower in towers.items()
        },
        judge=_judged(pictures, plain, edited, said, subject) if emoji else None,
    )


def drawings(
    model: FrozenModel,
    concept: Concept | str,
    asked: Sequence[str],
    seeds: Sequence[int],
    on_prompt: OnPrompt | None = None,
) -> list[Tensor]:
    """Pictures [n, 3, H, W] of the concept in each template, one a seed, some templates at once."""
    named, read = _reader(model, concept)
    most, count = _at_once(model), len(seeds)
    drawn: list[Tensor] = []
    for some in _several(asked, max(1, most // count)):
        if on_prompt is not None:
            for template in some:
                on_prompt(templates.filled(template, named), count)
        told = [told_by(model, read(template)).expand(count) for template in some]
        found = sample(model, Conditioning.cat(told), [*seeds] * len(some), at_once=most)
        drawn += torch.split(found.to(model.device), count)
    return drawn


def on_grounds(
    model: FrozenModel,
    concept: Concept | str,
    pictures: Tensor,
    subject: str,
    seeds: Sequence[int],
    on_prompt: OnPrompt | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Drawings [m, 3, H, W] that were asked for a ground, and the pictures that have it; of each.

    m is the grounds' share of the seeds, rounded up; each takes the first m.
    """
    grounds = grounds_of(model, concept, pictures, subject)
    if not grounds:
        return []
    plainest = templates.training(subject, emoji=is_emoji(model))[0]
    asked = [f"{plainest} {ground}" for ground in grounds]
    few = seeds[: -(-len(seeds) // len(grounds))]
    drawn = drawings(model, concept, asked, few, on_prompt)
    return [(found, pictures[own]) for found, own in zip(drawn, grounds.values(), strict=True)]


def grounds_of(
    model: FrozenModel, concept: Concept | str, pictures: Tensor, subject: str
) -> dict[str, list[int]]:
    """What the sentence of `placed` ends with, and which pictures [N, 3, H, W] have that ground.

    None of them where the text encoders would not read the sentence whole.
    """
    found: dict[str, list[int]] = {}
    for i, picture in enumerate(pictures.cpu()):
        if place := place_of(picture):
            found.setdefault(place, []).append(i)
    sentence = templates.training(subject, emoji=is_emoji(model))[0]
    tokens = 0
    if isinstance(concept, str):
        sentence = templates.filled(sentence, concept)
    else:
        tokens = len(concept.vectors[0])
    whole = all(templates.fits(f"{sentence} {end}", model.tokenizers, tokens) for end in found)
    return found if whole else {}


def _reader(model: FrozenModel, concept: Concept | str) -> tuple[str, Callable[[str], list[Piece]]]:
    """What stands for it, and how a template about it is read."""
    if isinstance(concept, Concept):
        token, known = concept.token, vocabulary(model, [concept])
        return token, lambda template: known.read(templates.filled(template, token))
    if not concept.strip():
        raise InvalidInput(f"expected a word to compare with, got {concept!r}")
    return concept, lambda template: [templates.filled(template, concept)]


def _at_once(model: FrozenModel) -> int:
    """How many pictures of the model's size make one batch."""
    most = BATCH if model.device.type == "cpu" else ACCELERATED
    return max(1, most * 64 * 64 // (model.defaults.height * model.defaults.width))


def _several(asked: Sequence[str], count: int) -> list[Sequence[str]]:
    """The prompts, `count` at a time."""
    return [asked[first : first + count] for first in range(0, len(asked), count)]


@torch.no_grad()
def likeness(tower: Tower, drawn: Tensor, given: Tensor) -> float:
    """The mean cosine of each drawn picture [n, 3, H, W] with each given one [N, 3, H, W]."""
    own, wanted = tower.embed_images(drawn), tower.embed_images(given.to(drawn))
    return float((own @ wanted.T).mean())


def mean_likeness(tower: Tower, placed: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The mean over the grounds of what `on_grounds` drew."""
    return sum(likeness(tower, drawn, own) for drawn, own in placed) / len(placed)


@torch.no_grad()
def _seen(
    tower: Tower,
    given: Tensor,
    plain: Tensor,
    placed: Sequence[tuple[Tensor, Tensor]],
    edited: Sequence[Tensor],
    said: Sequence[str],
) -> Seen:
    words = tower.embed_texts(list(said))
    found = {}
    for rest, pictures, word in zip(said, edited, words, strict=True):
        middle = F.normalize(tower.embed_images(pictures).mean(0), dim=-1)
        found[rest] = float(middle @ word)
    return Seen(
        reconstruction=likeness(tower, plain, given),
        placed=mean_likeness(tower, placed) if placed else None,
        editability=sum(found.values()) / len(found),
        edits=found,
    )


def _judged(
    given: Tensor, plain: Tensor, edited: Sequence[Tensor], said: Sequence[str], subject: str
) -> Judged:
    """The judge's verdicts; it knows 32 subjects and calls everything else by the nearest."""
    from tiller.models.bundled.loaders import load_judge

    judge = load_judge().to(plain.device)
    shares = []
    for rest, pictures in zip(said, edited, strict=True):
        right = [_shows(verdict, rest) for verdict in judge.verdict(pictures)]
        shares.append(sum(right) / len(right))
    same: list[float | None] = [None, None]
    if subject == "object":
        first = [verdict.spec.subjects[0] for verdict in judge.verdict(given)]
        ours = [verdict.spec.subjects[0] for verdict in judge.verdict(plain)]
        for place in (0, 1):
            seen = [one[place] for one in first]
            wanted = max(sorted(set(seen), key=str), key=seen.count)
            same[place] = sum(one[place] == wanted for one in ours) / len(ours)
    return Judged(same[0], same[1], sum(shares) / len(shares))


def _shows(verdict: Any, rest: str) -> bool:
    """Whether a picture shows what the rest of its prompt names: a background, or a thing."""
    from tiller.models.bundled.captions import parse

    if (ground := re.search(r"(\w+) background", rest)) is not None:
        return bool(verdict.spec.background == ground[1])
    try:
        ((thing, colour),) = parse(rest).subjects
    except TillerError:
        return False
    return any(s == thing and (colour is None or c == colour) for s, c in verdict.spec.subjects)
