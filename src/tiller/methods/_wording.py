"""The words that a method may choose from, for one prompt and one model."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiller.core.errors import TillerNotice
from tiller.methods.base import Task
from tiller.models.base import FrozenModel
from tiller.models.loader import is_emoji
from tiller.models.pieces import brief
from tiller.models.quiet import quietly
from tiller.rewards._tower import BUNDLED, EMOJI, tower_for
from tiller.spaces.words import Wording
from tiller.words.choices import Choices, load_choices
from tiller.words.ladder import Direction, Substitute
from tiller.words.similarity import Embed, Similarity, sentence_encoder, within
from tiller.words.substitutions import (
    Slot,
    Substitutions,
    Suggestions,
    negative_substitutions,
    positive_substitutions,
)

_SHOWN = 3  # substitutes that a notice names, of those that are not the user's


def wording_of(
    task: Task,
    *,
    positive: bool,
    negative: bool,
    n: int = 5,
    library: int = 4,
    choices: str | None = None,
    llm: bool = False,
    least: float = 0.0,
    encoder: str = EMOJI,
) -> Wording:
    """What may change in a task's prompt and negative prompt.

    Words that the text encoder would not read are left alone, and substitutes that would push words
    out of what it reads are left out, each with a notice; of the library as many slots are taken as
    it reads.

    Args:
        task: the prompts, and the model that reads them.
        positive: whether the prompt's words may be replaced.
        negative: whether the negative prompt may say more.
        n: substitutes a word, at most.
        library: slots of generic negative words.
        choices: the user's file.
        llm: ask a language model too.
        least: similarity to the user's prompt that a prompt must keep; words that alone take it
            below are left out.
        encoder: what measures it.

    Raises:
        InvalidInput: a number out of its range, or a file, server or encoder that cannot be used.
        LLMError: the language model was to be asked and gives no answer.
    """
    own = load_choices(choices) if choices else Choices()
    words = Wording(task.prompt, task.negative_prompt)
    lost = Lost()
    if positive:
        similarity = Similarity(task.prompt, sentences(encoder)) if least > 0 else None
        if similarity and encoder in BUNDLED and not is_emoji(task.model):
            _say(
                f"{encoder=}, which compares prompts, was trained on captions of 64x64 emoji "
                "scenes; name another, such as encoder=openai/clip-vit-large-patch14"
            )
        words = replace(words, similarity=similarity, least=least)
        llm_words = _suggested(task.prompt, "synonyms", n, llm)
        found = positive_substitutions(task.prompt, n=n, choices=own, llm=llm_words)
        words, lost = _positive(words, found, task.model)
    else:
        _say_unused(least, encoder)
    if negative:
        llm_words = _suggested(task.prompt, "antonyms", n, llm)
        against = negative_substitutions(
            task.prompt, n=n, library=library, choices=own, llm=llm_words
        )
        words = replace(words, negative=_fitting(against, task.model, task.negative_prompt))
    if not words.positions:
        _say_nothing_to_choose(words, lost)
    return words


def sentences(source: str) -> Embed:
    """What embeds sentences: a bundled CLIP's text tower, another CLIP's, or a sentence encoder.

    Raises:
        InvalidInput: it cannot be loaded.
    """
    if source not in BUNDLED and not _is_clip(source):
        with quietly():
            return sentence_encoder(source)
    tower = tower_for(source, torch.zeros(1))

    def embed(texts: Sequence[str]) -> Tensor:
        with warnings.catch_warnings():  # the reward says it of the user's prompt
            warnings.simplefilter("ignore", TillerNotice)
            return tower.embed_texts(texts)

    return embed


def _is_clip(source: str) -> bool:
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.from_pretrained(source).model_type == "clip")
    except (OSError, ValueError, KeyError):
        return False  # `sentence_encoder` says what is wrong


def answered(prompt: str, parts: str, n: int) -> bool:
    """Whether the language model has words for a prompt; they are kept where replies are cached.

    Args:
        parts: for which words: positive, negative or both.
        n: substitutes a word, at most.

    Raises:
        InvalidInput: no server is configured, or it refuses the key or the model.
    """
    from tiller.llm import optional_suggestions

    directions: dict[str, tuple[Direction, ...]] = {
        "positive": ("synonyms",),
        "negative": ("antonyms",),
        "both": ("synonyms", "antonyms"),
    }
    return all(optional_suggestions(prompt, one, n) is not None for one in directions[parts])


def _suggested(prompt: str, direction: Direction, n: int, wanted: bool) -> Suggestions | None:
    if not wanted:
        return None
    from tiller.llm import suggestions

    return suggestions(prompt, direction, n)


@dataclass(frozen=True)
class Lost:
    """How many substitutes of the prompt's words are left out, and why."""

    overlong: int = 0
    unlike: int = 0


def _positive(words: Wording, space: Substitutions, model: FrozenModel) -> tuple[Wording, Lost]:
    """With the part of a prompt's space that is read, and what was lost of it."""
    limit = _limit(model)
    longest = max(limit, *model.token_counts([space.prompt], cut=False))
    begun = _read(space, model)
    read = begun.where(
        lambda texts: [count <= longest for count in model.token_counts(texts, cut=False)]
    )
    overlong = _without(begun, read)
    if overlong:
        _say(
            f"left out of the search, as they would push words out of the {limit - 2} tokens that "
            f"the text encoder reads, are {_named(overlong)}; shorten the prompt to have them"
        )
    near = within(read, words.similarity, words.least) if words.similarity else read
    unlike = _without(read, near)
    own = [(word, option) for word, option in unlike if option.source == "user"]
    if own:
        _say(
            "left out of the search, as they alone take the prompt below min_similarity="
            f"{words.least:g}, are your {_named(own)}; set a lower min_similarity to have them"
        )
    return replace(words, positive=near, longest=longest), Lost(len(overlong), len(unlike))


def _without(before: Substitutions, after: Substitutions) -> list[tuple[str, Substitute]]:
    """The options of one space that another no longer has, each with its word; the user's first."""
    kept = {(slot.start, option) for slot in after.slots for option in slot.options}
    lost = [
        (slot.word, option)
        for slot in before.slots
        for option in slot.options
        if (slot.start, option) not in kept
    ]
    return sorted(lost, key=lambda one: one[1].source != "user")


def _named(options: Sequence[tuple[str, Substitute]]) -> str:
    """The options in a line: all of the user's, and some."""
    own = sum(option.source == "user" for _, option in options)
    some = options[: max(own, _SHOWN)]
    shown = [f"{brief(option.text)!r} for {brief(word)!r}" for word, option in some]
    rest = len(options) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _read(space: Substitutions, model: FrozenModel) -> Substitutions:
    """The slots of a prompt that the text encoder reads: those that begin before its limit."""
    starts = [space.prompt[: slot.start] for slot in space.slots]
    limit = _limit(model)
    counts = model.token_counts(starts) if starts else []
    kept = [slot for slot, count in zip(space.slots, counts, strict=True) if count < limit]
    return _cut(space, kept, limit)


def _fitting(space: Substitutions, model: FrozenModel, own: str) -> Substitutions:
    """The first slots of a negative prompt that the text encoder reads together, words' first.

    Counted by options of middling length: few choices are longer, and their ends are cut.
    """
    limit = _limit(model)
    used = model.token_counts([own])[0]
    kept: list[Slot] = []
    for slot in space.slots:
        counts = model.token_counts([f", {option.text}" for option in slot.options])
        used += round(statistics.median(counts)) - 2  # without the ends
        if used > limit:
            break
        kept.append(slot)
    return _cut(space, kept, limit)


def _limit(model: FrozenModel) -> int:
    """How many tokens the text encoders read, both ends included."""
    return min(int(tokenizer.model_max_length) for tokenizer in model.tokenizers)


def _cut(space: Substitutions, kept: Sequence[Slot], limit: int) -> Substitutions:
    """The space of the slots that are kept, with a notice of words that are not."""
    words = [slot for slot in space.slots if slot.end]
    dropped = [slot.word for slot in words if slot not in kept]
    if dropped:
        where = "negative prompt" if space.negative else "prompt"
        _say(
            f"the text encoder reads {limit - 2} tokens: {len(dropped)} of {len(words)} words are "
            f"left out of the search of the {where}, from {dropped[0]!r} on"
        )
    return replace(space, slots=tuple(kept))


def _say_unused(least: float, encoder: str) -> None:
    """What limits the prompt's words has nothing to do where none of them is searched."""
    given = [f"min_similarity={least:g}"] if least else []
    given += [f"encoder={encoder}"] if encoder != EMOJI else []
    if given:
        _say(
            f"{' and '.join(given)}: this concerns the prompt's words, and none of them is "
            "searched, so it changes nothing; set space=positive or space=both to search them"
        )


def _say_nothing_to_choose(words: Wording, lost: Lost) -> None:
    why, remedies = [], ["name some in a file (--set choices=words.json, see docs/words.md)"]
    if lost.overlong:
        why.append("that the text encoder reads beside the others")
        remedies.append("shorten the prompt")
    if lost.unlike:
        why.append(f"that keeps the prompt {words.least:g} similar")
        remedies.append("set a lower min_similarity")
    if words.negative is None and not words.least:
        remedies.append("set space=negative")
    _say(
        f"no word of {brief(words.prompt)!r} has a substitute {' and '.join(why)}".rstrip()
        + f", so there is nothing to search; {', or '.join(remedies)}"
    )


def _say(text: str) -> None:
    warnings.warn(text, TillerNotice, stacklevel=6)
