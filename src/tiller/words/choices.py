"""What the user says about substitutes: words to keep, candidates to veto, pin or add.

A JSON file, every part optional:

    {"keep": ["background"],
     "synonyms": {"veto": ["pussycat"], "pin": {"cat": ["kitty"]}, "add": {"cat": ["moggy"]}},
     "antonyms": {"veto": [], "pin": {"red": ["blue"]}, "add": {}},
     "library": {"veto": ["watermark"], "add": ["double exposure"]}}

A word of the prompt is named as it stands or by its lemma, in any case. Pinned candidates come
first, however many they are; added ones come next and count towards the limit; vetoed ones never
come. A search drops those that take the prompt too far from what it says or make it too long, with
a notice. Words that a prompt does not hold are passed over, so that one file serves many prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput

Words = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Edits:
    """Changes to the candidates of one direction; words and vetoes in lower case."""

    veto: frozenset[str] = frozenset()
    pin: Words = field(default_factory=dict)
    add: Words = field(default_factory=dict)


@dataclass(frozen=True)
class LibraryEdits:
    """Changes to the library of negative prompts; vetoes in lower case."""

    veto: frozenset[str] = frozenset()
    add: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """All that the user says; the default changes nothing."""

    keep: frozenset[str] = frozenset()
    synonyms: Edits = Edits()
    antonyms: Edits = Edits()
    library: LibraryEdits = LibraryEdits()


def load_choices(path: str | Path) -> Choices:
    """Read the user's file.

    Raises:
        InvalidInput: it is not there, not JSON, or not of the form above; names the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # as editors on Windows write it, too
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"expected a JSON file of word choices, got {str(path)!r}, which cannot be read "
            f"({error}); name a readable UTF-8 file."
        ) from error
    try:
        tree = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"expected JSON in {str(path)!r}, got text that is not ({error}); correct it there."
        ) from error
    return parse_choices(tree, str(path))


def parse_choices(tree: Any, name: str = "choices") -> Choices:
    """The choices in a JSON tree; `name` says in messages where it comes from.

    Raises:
        InvalidInput: the tree is not of the form in the module's first lines.

    Example:
        >>> parse_choices({"antonyms": {"pin": {"Red": ["blue"]}}}).antonyms.pin
        {'red': ('blue',)}
    """
    top = _table(tree, name, ("keep", "synonyms", "antonyms", "library"))
    library = _table(top.get("library", {}), f"{name}: library", ("veto", "add"))
    return Choices(
        keep=_lower(_texts(top.get("keep", []), f"{name}: keep")),
        synonyms=_edits(top.get("synonyms", {}), f"{name}: synonyms"),
        antonyms=_edits(top.get("antonyms", {}), f"{name}: antonyms"),
        library=LibraryEdits(
            _lower(_texts(library.get("veto", []), f"{name}: library.veto")),
            _texts(library.get("add", []), f"{name}: library.add"),
        ),
    )


def _edits(tree: Any, place: str) -> Edits:
    table = _table(tree, place, ("veto", "pin", "add"))
    return Edits(
        _lower(_texts(table.get("veto", []), f"{place}.veto")),
        _words(table.get("pin", {}), f"{place}.pin"),
        _words(table.get("add", {}), f"{place}.add"),
    )


def _words(tree: Any, place: str) -> dict[str, tuple[str, ...]]:
    table = _table(tree, place, None)
    return {word.lower(): _texts(texts, f"{place}.{word}") for word, texts in table.items()}


def _table(tree: Any, place: str, allowed: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise InvalidInput(f"expected an object {{...}} at {place}, got {tree!r}")
    unknown = sorted(tree.keys() - allowed) if allowed is not None else []
    if unknown:
        raise InvalidInput(
            f"expected only {', '.join(allowed or ())} at {place}, got {unknown[0]!r}"
        )
    return tree


def _texts(tree: Any, place: str) -> tuple[str, ...]:
    if not isinstance(tree, list):
        raise InvalidInput(f'expected a list of texts ["...", ...] at {place}, got {tree!r}')
    for text in tree:
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise InvalidInput(
                f"expected texts of printable characters, not empty, at {place}, got {text!r}"
            )
    return tuple(text.strip() for text in tree)


def _lower(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(text.lower() for text in texts)
