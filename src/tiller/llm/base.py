"""What a language model is here: messages in, a text and its tokens out.

Everything that asks a model (`suggestions`, `rewrite`, the search over programs) asks a `Chat`, so
a test, a server and a third party's client are told apart nowhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """All that an answer depends on, the model apart.

    Attributes:
        messages: the conversation so far.
        temperature: of the sampling; None for the server's own.
        seed: of the sampling, for servers that take one; None for none.
        json: whether the answer is to be one JSON object. The messages must say so too: a server
            that knows no such option is asked without it.
    """

    messages: tuple[Message, ...]
    temperature: float | None = None
    seed: int | None = None
    json: bool = False


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the answer; empty where the model said nothing.
        prompt_tokens: read by the model.
        completion_tokens: written by it.
        cached: it came from the disk, and cost nothing.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False

    @property
    def tokens(self) -> int:
        """What the answer cost: 0 where it was cached."""
        return 0 if self.cached else self.prompt_tokens + self.completion_tokens


class Chat(ABC):
    """A language model that can be asked.

    Implementations add each reply's `tokens` to the cost meter (`tiller.core.budget.count`).
    """

    @abstractmethod
    def reply(self, request: Request) -> Reply:
        """The model's answer.

        Raises:
            LLMError: there is none.
            InvalidInput: something that the user has set is wrong: the key, the model's name.
        """

    def forget(self, request: Request) -> None:  # noqa: B027  # who keeps nothing drops nothing
        """Ask anew the next time: drop what is kept of this request, where anything is kept."""
