"""The real SDK against a real HTTP server: what is sent, what is read, and every way to fail."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import pytest

from tiller.core.budget import metered
from tiller.core.errors import InvalidInput, LLMError, MissingDependency, TillerError
from tiller.llm import Message, OpenAIChat, Reply, Request, open_chat
from tiller.testing.fake_server import Answer

HELLO = Request((Message("user", "Hello"),))
SOON = {"Retry-After-Ms": "20"}


def fails(chat: OpenAIChat, request: Request = HELLO) -> TillerError:
    with pytest.raises(TillerError) as caught:
        chat.reply(request)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_sent_and_what_is_read(serve: Any) -> None:
    server, chat = serve([Answer("Good day.", tokens=(7, 3))], api_key="secret")
    request = Request(
        (Message("user", "Hello"), Message("assistant", "?"), Message("user", "\ud800Hello")),
        temperature=0.5,
        seed=11,
        json=True,
    )
    assert chat.reply(request) == Reply("Good day.", 7, 3)
    assert server.requests == [
        {
            "model": "fake",
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "?"},
                {"role": "user", "content": "?Hello"},
            ],
            "temperature": 0.5,
            "seed": 11,
            "response_format": {"type": "json_object"},
        }
    ]
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(chat)


def test_what_is_not_asked_for_is_not_sent(serve: Any) -> None:
    server, chat = serve(["Hi."])
    chat.reply(HELLO)
    assert server.requests[0].keys() == {"model", "messages"}


def test_tokens_are_metered_once_and_cached_replies_cost_nothing(serve: Any) -> None:
    server, chat = serve([Answer("Hi.", tokens=(20, 4)), Answer("Ho.", tokens=(1, 1))])
    with metered() as meter:
        first = chat.reply(HELLO)
    assert meter.cost.tokens == first.tokens == 24
    with metered() as meter:
        again = chat.reply(HELLO)
    assert meter.cost.tokens == again.tokens == 0
    assert again == Reply("Hi.", 20, 4, cached=True)
    chat.forget(HELLO)
    assert chat.reply(HELLO).text == "Ho."
    assert len(server.requests) == 2


def test_a_server_that_does_not_count_is_billed_by_length(serve: Any) -> None:
    _, chat = serve([Answer("a" * 41, tokens=None)])
    with metered() as meter:
        chat.reply(Request((Message("user", "b" * 9),)))
    assert meter.cost.tokens == 3 + 11


def test_rate_limits_are_waited_out_as_the_server_says(serve: Any) -> None:
    wait = Answer("slowly", status=429, headers={"Retry-After": "0.3"})
    server, chat = serve([wait, wait, "Hi."])
    started = time.monotonic()
    assert chat.reply(HELLO).text == "Hi."
    assert 0.6 <= time.monotonic() - started < 3
    assert len(server.requests) == 3


def test_rate_limits_without_end_are_one_line(serve: Any) -> None:
    server, chat = serve([Answer("quota used up", status=429, headers=SOON)] * 9)
    error = fails(chat)
    assert isinstance(error, LLMError)
    assert "limits the rate, after 3 tries (quota used up)" in str(error)
    assert len(server.requests) == 3


def test_a_wait_of_hours_is_not_waited(serve: Any) -> None:
    server, chat = serve([Answer("later", status=429, headers={"Retry-After": "7200"})] * 9)
    assert "limits the rate" in str(fails(chat))
    assert len(server.requests) == 1


def test_a_failing_server_is_tried_again(serve: Any) -> None:
    server, chat = serve([Answer("oops", status=503, headers=SOON), "Hi."])
    assert chat.reply(HELLO).text == "Hi."
    server, chat = serve([Answer("out of\nmemory", status=500, headers=SOON)] * 9, max_retries=1)
    assert "failed with status 500 (out of memory)" in str(
        fails(chat, Request((Message("user", "B"),)))
    )
    assert len(server.requests) == 2


def test_a_slow_server(serve: Any) -> None:
    _, chat = serve([Answer("late", delay=1.0)], timeout=0.15, max_retries=0)
    error = fails(chat)
    assert isinstance(error, LLMError)
    assert "gave no answer in 0.15 s, in 1 try" in str(error)


def test_a_dead_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = fails(OpenAIChat("m", url, max_retries=0))
    assert isinstance(error, LLMError)
    assert f"cannot reach the LLM server {url}" in str(error)
    assert "OPENAI_BASE_URL" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>It works!</html>",
        b'{"choices": [{"message": {"content": "cut o',
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_bodies_that_are_no_completion(serve: Any, body: bytes, kind: str) -> None:
    _, chat = serve([Answer(body=body, headers={"Content-Type": kind})], max_retries=0)
    error = fails(chat)
    assert isinstance(error, LLMError)
    assert "OPENAI_BASE_URL" in str(error)


def test_a_connection_cut_in_the_middle(serve: Any) -> None:
    _, chat = serve([Answer("Hi.", headers={"Content-Length": "9999"})], timeout=0.3, max_retries=0)
    assert isinstance(fails(chat), LLMError)


def test_a_model_that_says_nothing(serve: Any) -> None:
    body = b'{"choices": [{"message": {"role": "assistant", "content": null}}]}'
    _, chat = serve([Answer(body=body)])
    assert chat.reply(HELLO).text == ""


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_the_users_and_is_not_shown(serve: Any, status: int) -> None:
    _, chat = serve([Answer("bad key sk-123", status=status)], api_key="sk-123")
    error = fails(chat)
    assert isinstance(error, InvalidInput)
    assert "OPENAI_API_KEY" in str(error)
    assert "sk-123" not in str(error)


def test_a_key_in_another_message_is_blotted_out(serve: Any) -> None:
    _, chat = serve([Answer("no model for sk-123", status=404)], api_key="sk-123")
    error = fails(chat)
    assert isinstance(error, InvalidInput)
    assert "'fake'" in str(error)
    assert "OPENAI_MODEL" in str(error)
    assert "sk-123" not in str(error)


def test_what_a_server_does_not_take_is_left_out_from_then_on(serve: Any) -> None:
    def script(body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return Answer("'response_format.type' must be 'text'", status=400)
        return Answer("{}")

    server, chat = serve(script)
    for words in "ab":
        request = Request((Message("user", words),), temperature=0.5, seed=1, json=True)
        assert chat.reply(request).text == "{}"
    assert [body.keys() - {"model", "messages"} for body in server.requests] == [
        {"response_format", "temperature", "seed"},
        {"temperature", "seed"},
        {"temperature", "seed"},
    ]


def test_a_server_that_does_not_say_what_it_dislikes_is_asked_plainly(serve: Any) -> None:
    server, chat = serve([Answer("invalid request", status=422), "Hi."])
    request = Request(HELLO.messages, temperature=0.5, json=True)
    assert chat.reply(request).text == "Hi."
    assert server.requests[1].keys() == {"model", "messages"}


def test_a_request_that_is_refused_for_itself(serve: Any) -> None:
    server, chat = serve([Answer("the context is too long " * 30, status=400)] * 3)
    request = Request(HELLO.messages, temperature=0.5)
    error = fails(chat, request)
    assert isinstance(error, LLMError)
    assert "failed with status 400 (the context is too long" in str(error)
    assert len(str(error)) < 400
    assert len(server.requests) == 2
    fails(chat, request)
    assert server.requests[2]["temperature"] == 0.5, "nothing was learnt from it"


class TestTheEnvironment:
    def test_all_three(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1234/v1 ")
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_MODEL", "small")
        chat = open_chat()
        assert (chat.base_url, chat.api_key, chat.model) == (
            "http://localhost:1234/v1",
            "key",
            "small",
        )
        assert open_chat("large").model == "large"

    def test_a_local_server_needs_no_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1234/v1")
        assert open_chat("m").api_key == ""

    def test_openai_itself_needs_no_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        assert open_chat("m").base_url == "https://api.openai.com/v1"

    def test_nothing_is_set(self) -> None:
        with pytest.raises(InvalidInput, match=r"no LLM server .* OPENAI_BASE_URL .*OPENAI_MODEL"):
            open_chat()

    def test_no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1234/v1")
        with pytest.raises(InvalidInput, match="OPENAI_MODEL"):
            open_chat()

    def test_the_extra_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1234/v1")
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(MissingDependency, match="pip install openai"):
            open_chat("m")


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://host/v1", "http://", "http://[::1", "http://host:port/v1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"http://host:port/v1.*OPENAI_BASE_URL"):
        OpenAIChat("m", url)


@pytest.mark.parametrize(
    "fields", [{"timeout": 0.0}, {"timeout": float("nan")}, {"max_retries": -1}]
)
def test_fields_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(fields))):
        OpenAIChat("m", "http://h/v1", **fields)
