"""A fake LLM server: a real HTTP server on this machine that speaks the chat completions protocol.

Its answers are scripted, bad ones included, so that tests go through the real SDK and a real
socket. It understands nothing.

    with FakeServer(['{"prompts": ["a cat"]}', Answer(status=500)]) as server:
        chat = OpenAIChat("fake", server.url)
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One scripted answer.

    Attributes:
        text: what the model says, or the message of an error.
        status: of HTTP; from 400 up the body is an error.
        body: sent as it is, in place of a completion; a cut or wrong one for instance.
        headers: more of them, such as Retry-After.
        delay: seconds before anything is sent.
        tokens: of prompt and completion; None for a server that does not say.
    """

    text: str = ""
    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    tokens: tuple[int, int] | None = (10, 5)

    def encoded(self, model: str) -> bytes:
        """The body of the HTTP response."""
        if self.body is not None:
            return self.body
        if self.status >= 400:
            return json.dumps({"error": {"message": self.text, "type": "fake"}}).encode()
        message = {"role": "assistant", "content": self.text}
        tree: Body = {
            "id": "fake",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        if self.tokens is not None:
            prompt, completion = self.tokens
            tree["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
        return json.dumps(tree).encode()


Script = Sequence[Answer | str] | Callable[[Body], Answer | str]


class FakeServer:
    """Answers in turn, or by a function of the request; used as a context.

    Args:
        script: answers, one a request (the request after the last gets status 500), or a function
            of the request's JSON. A text is an ordinary answer.

    Attributes:
        requests: the JSON of each request, in order.
        headers: of each request, their names in lower case.

    Example:
        >>> with FakeServer(["hello"]) as server:
        ...     server.url.endswith("/v1")
        True
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """The base URL, for OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make it the configured server."""
        return {
            "OPENAI_BASE_URL": self.url,
            "OPENAI_MODEL": "fake",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self, request: Body, headers: dict[str, str]) -> Answer:
        """The answer to a request, which is noted."""
        with self._lock:
            index = len(self.requests)
            self.requests.append(request)
            self.headers.append(headers)
        if callable(self.script):
            answer = self.script(request)
        elif index < len(self.script):
            answer = self.script[index]
        else:
            answer = Answer(f"the script has {len(self.script)} answers only", status=500)
        return Answer(answer) if isinstance(answer, str) else answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what tests of slow answers are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_POST(self) -> None:  # the name is http.server's
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._send(Answer(f"no such path: {self.path}", status=404), "")
        answer = self.server.fake.next(body, {k.lower(): v for k, v in self.headers.items()})
        time.sleep(answer.delay)
        return self._send(answer, str(body.get("model")))

    def _send(self, answer: Answer, model: str) -> None:
        data = answer.encoded(model)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        with suppress(OSError):  # nobody waits any more
            self.send_response(answer.status)
            for name, value in {**headers, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed."""
