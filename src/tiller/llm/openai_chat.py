"""Any server that speaks OpenAI's chat completions, through the `openai` SDK.

llama.cpp, vLLM, Ollama, LM Studio and OpenAI itself. Nothing beyond the plain protocol is assumed:
what a server does not take (JSON mode, a seed, a temperature) it is asked without.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiller.core.budget import count
from tiller.core.errors import InvalidInput, LLMError, MissingDependency, TillerError
from tiller.llm.base import Chat, Reply, Request
from tiller.llm.cache import ReplyCache, default_folder

OPENAI = "https://api.openai.com/v1"
_QUOTED = 200  # characters of a server's message that are shown
_LETTERS = 4  # of a token, where a server does not say how many there were


def open_chat(model: str = "", *, timeout: float = 120.0) -> OpenAIChat:
    """The model that the environment names; nothing is sent yet.

    OPENAI_BASE_URL is the server (OpenAI's own without it), OPENAI_API_KEY its key (a local server
    needs none), OPENAI_MODEL the model where `model` is empty.

    Args:
        model: its name on the server.
        timeout: seconds that one answer may take.

    Raises:
        MissingDependency: the `openai` package is not installed.
        InvalidInput: no server, no model, or an address that is none.
    """
    url = os.environ.get("OPENAI_BASE_URL", "").strip()
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    model = model or os.environ.get("OPENAI_MODEL", "").strip()
    if not (url or key):
        raise InvalidInput(
            "no LLM server is configured: set OPENAI_BASE_URL (a local one: "
            "http://127.0.0.1:8080/v1) or OPENAI_API_KEY, and OPENAI_MODEL; see docs/llm.md"
        )
    if not model:
        raise InvalidInput(
            f"no LLM is named: set OPENAI_MODEL to a model of {url or OPENAI} ({url or OPENAI}"
            "/models lists them)"
        )
    return OpenAIChat(model, url or OPENAI, key, timeout=timeout)


@dataclass(frozen=True)
class OpenAIChat(Chat):
    """A model behind an OpenAI-compatible server; every reply is kept on disk.

    A cached reply is found by the whole request and the model's name, not by the server's address,
    and costs no tokens. The SDK tries again after connection errors, timeouts, 429 and 5xx, as long
    as the server's Retry-After says (up to its limit of two minutes, else about a second).

    Attributes:
        model: its name on the server.
        base_url: of the API, as a rule ending in /v1.
        api_key: what the server wants to see; it is never stored or shown.
        timeout: seconds that one answer may take.
        max_retries: tries after the first one.
        folder: of the cached replies; None for `default_folder()`.

    Raises:
        MissingDependency: the `openai` package is not installed.
        InvalidInput: a field is unusable.

    Example:
        >>> chat = OpenAIChat("m", "http://127.0.0.1:8080/v1")
        >>> chat.reply(Request((Message("user", "Hello"),))).text       # doctest: +SKIP
        'Hello! How can I help?'
    """

    model: str
    base_url: str = OPENAI
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    max_retries: int = 2
    folder: Path | None = None
    _refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("openai") is None:
            raise MissingDependency(
                "asking an LLM needs the package openai, which is not installed: pip install openai"
            )
        if not 0 < self.timeout < float("inf"):
            raise InvalidInput(
                f"timeout must be a positive number of seconds, got timeout={self.timeout}"
            )
        if self.max_retries < 0:
            raise InvalidInput(
                f"max_retries must be at least 0, got max_retries={self.max_retries}"
            )
        try:
            parts = urlsplit(self.base_url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # not a port, not an IPv6 address
            sound = False
        if not sound:
            raise InvalidInput(
                "expected the LLM server's address as http://host:port/v1, got "
                f"{self.base_url!r}; correct OPENAI_BASE_URL"
            )

    def reply(self, request: Request) -> Reply:
        """The cached reply, else the server's; only the latter's tokens are billed.

        Raises:
            LLMError: the server cannot be reached, is too slow, fails or limits the rate.
            InvalidInput: it refuses the key, or does not know the model.
        """
        kept = self._cache.load(self._key(request))
        if kept is not None:
            return kept
        reply = self._ask(request)
        count(tokens=reply.tokens)
        self._cache.save(self._key(request), reply)
        return reply

    def forget(self, request: Request) -> None:
        """Drop the cached reply."""
        self._cache.drop(self._key(request))

    @property
    def _cache(self) -> ReplyCache:
        return ReplyCache(self.folder or default_folder())

    def _key(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": _messages(request),
            "temperature": request.temperature,
            "seed": request.seed,
            "json": request.json,
        }

    def _ask(self, request: Request) -> Reply:
        """The server's answer, without what it does not take."""
        import openai

        optional = {
            "response_format": {"type": "json_object"} if request.json else None,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        given = {k: v for k, v in optional.items() if v is not None and k not in self._refused}
        asked = {"model": self.model, "messages": _messages(request)}
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key or "none",  # the SDK wants one, a local server does not look
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
        try:
            with client:
                try:
                    answer = client.chat.completions.create(**asked, **given)
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    unwanted = {name for name in given if name in str(error)} or set(given)
                    if not unwanted:
                        raise
                    rest = {name: value for name, value in given.items() if name not in unwanted}
                    answer = client.chat.completions.create(**asked, **rest)
                    self._refused.update(unwanted)  # from now on at once
        except (openai.OpenAIError, ValueError) as error:
            raise self._explained(error) from error
        return self._read(answer, request)

    def _read(self, answer: Any, request: Request) -> Reply:
        """The reply in a completion, which the SDK hands over unchecked."""
        try:
            text = answer.choices[0].message.content
            text = "" if text is None else text
            usage = answer.usage
            spent = (usage.prompt_tokens, usage.completion_tokens) if usage else None
        except (AttributeError, LookupError, TypeError):
            text, spent = None, None
        if not isinstance(text, str):
            raise LLMError(
                f"{self.base_url} answered what is no chat completion; check that "
                "OPENAI_BASE_URL is the address of an OpenAI-compatible API, as a rule ending in "
                "/v1"
            )
        if spent is None or not all(type(n) is int and n >= 0 for n in spent):
            said = sum(len(message.content) for message in request.messages)
            spent = (-(-said // _LETTERS), -(-len(text) // _LETTERS))
        return Reply(text, *spent)

    def _explained(self, error: Exception) -> TillerError:
        """What happened, in one line, with what to do."""
        import openai

        where, said = self.base_url, self._said(error)
        tries = f"{self.max_retries + 1} tries" if self.max_retries else "1 try"
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return InvalidInput(
                    f"the LLM server {where} refused the key; set OPENAI_API_KEY to one of its own"
                )
            case openai.NotFoundError():
                return InvalidInput(
                    f"the LLM server {where} knows no model {self.model!r} ({said}); set "
                    "OPENAI_MODEL to one that it lists under /models, and OPENAI_BASE_URL to an "
                    "address that ends in /v1"
                )
            case openai.RateLimitError():
                return LLMError(
                    f"the LLM server {where} limits the rate, after {tries} ({said}); wait, and "
                    "give the command again or resume the run"
                )
            case openai.APITimeoutError():
                return LLMError(
                    f"the LLM server {where} gave no answer in {self.timeout:g} s, in {tries}; "
                    "allow more time (docs/llm.md says how) or take a smaller model"
                )
            case openai.APIConnectionError():
                return LLMError(
                    f"cannot reach the LLM server {where} ({tries}: {said}); start it, or correct "
                    "OPENAI_BASE_URL"
                )
            case openai.APIStatusError(status_code=code):
                return LLMError(
                    f"the LLM server {where} failed with status {code} ({said}); see its own log"
                )
            case _:
                return LLMError(
                    f"the LLM server {where} answered what cannot be read ({said}); check that "
                    "OPENAI_BASE_URL is an OpenAI-compatible API"
                )

    def _said(self, error: Exception) -> str:
        """The server's words in one line, the key blotted out."""
        body = getattr(error, "body", None)
        own = body.get("message") if isinstance(body, Mapping) else None
        cause = error.__cause__ if str(error) == "Connection error." else None
        text = " ".join(str(own or cause or error).split())
        text = text.replace(self.api_key, "***") if self.api_key else text
        return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _messages(request: Request) -> list[dict[str, str]]:
    """As the protocol has them; half surrogates, which UTF-8 cannot carry, become '?'."""
    return [
        {
            "role": message.role,
            "content": message.content.encode("utf-8", "replace").decode("utf-8"),
        }
        for message in request.messages
    ]
