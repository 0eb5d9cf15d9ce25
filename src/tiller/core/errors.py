"""One exception root. A message states what was expected, what came, and the remedy.

The command line turns every `TillerError` into one line and exit code 2; anything else is our bug
and exits with code 1.
"""

from __future__ import annotations


class TillerError(Exception):
    """Root of every error that Tiller raises on purpose."""


class InvalidInput(TillerError):
    """A value from the user is unusable: a prompt, a field, a file, a budget."""


class Incompatible(TillerError):
    """A space, an objective and a solver do not fit; found before the first model call."""


class RewardError(TillerError):
    """A reward raised, or returned scores of a wrong shape, NaN or infinite."""


class MissingDependency(TillerError):
    """An optional package is not installed; the message carries the install command."""


class LLMError(TillerError):
    """A language model's server cannot be reached, fails, or answers what cannot be used."""


class RunError(TillerError):
    """A run folder cannot be written, read, locked or resumed."""


class TillerNotice(UserWarning):
    """A fact that the user should know and that stops nothing: a reward treated as a black box."""
