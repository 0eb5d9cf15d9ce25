"""Words of a prompt with where they stand: nothing of the prompt is lost or normalised away.

Left alone, whatever they hold: text in quotation marks (it is to be drawn, not described), anything
in angle brackets (`<lora:x:1>`, `<my-cat>`), links, and words with digits, underscores, `@` or `#`.
Weights such as `(cat:1.2)`, emoji and control characters stand between words and stay.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_MARK = "\u0300-\u036f\u200d\ufe0f"  # what combines with the letter before it
_LETTERS = rf"[^\W\d_][^\W\d_{_MARK}]*(?:[{_MARK}][^\W\d_{_MARK}]*)*"
_QUOTED = r"\"[^\"]*\"|“[^”]*”|«[^»]*»|(?<!\w)'(?=\S)[^\n]+?(?<=\S)'(?!\w)|‘(?=\S)[^\n]+?’(?!\w)"
_ALONE = (
    r"<[^<>\s][^<>]*>"
    r"|(?:https?://|www\.)\S+"
    rf"|(?=[\w'’@#{_MARK}-]*[\d_@#])[\w'’@#{_MARK}-]+"
    rf"|{_LETTERS}(?:\.{_LETTERS})+"
)
_WORD = rf"(?P<word>{_LETTERS}(?:['’\-]{_LETTERS})*)"
_READ = re.compile(rf"{_QUOTED}|{_ALONE}|{_WORD}")
_READ_QUOTES_TOO = re.compile(rf"{_ALONE}|{_WORD}")
_POSSESSIVE = re.compile(r"['’][sS]$")


@dataclass(frozen=True, slots=True)
class Token:
    """A word as it stands at `prompt[start:end]`, without its possessive `'s`.

    `plain` is it in the lexicon's spelling: lower case, composed accents. `fixed` words are context
    that is never replaced: contractions, and what the module's first lines name. `gap` is what
    stands between the word before and this one.
    """

    text: str
    start: int
    end: int
    gap: str
    fixed: bool
    possessive: bool

    @property
    def plain(self) -> str:
        return unicodedata.normalize("NFC", self.text).lower().replace("’", "'")


def tokenise(prompt: str) -> tuple[Token, ...]:
    """The words of a prompt, left to right.

    Where quotation marks hold the whole prompt, they are looked into.

    Example:
        >>> [token.text for token in tokenise("(cat:1.2), a dog's hat, 8k") if not token.fixed]
        ['cat', 'a', 'dog', 'hat']
    """
    tokens = _read(prompt, _READ)
    if all(token.fixed for token in tokens):
        tokens = _read(prompt, _READ_QUOTES_TOO)
    return tokens


def _read(prompt: str, pattern: re.Pattern[str]) -> tuple[Token, ...]:
    found = []
    before = 0
    for match in pattern.finditer(prompt):
        start, end = match.span()
        fixed = match["word"] is None
        possessive = not fixed and _POSSESSIVE.search(match[0]) is not None
        stop = end - 2 if possessive else end
        text = prompt[start:stop]
        fixed = fixed or "'" in text or "’" in text
        found.append(Token(text, start, stop, prompt[before:start], fixed, possessive))
        before = end
    return tuple(found)
