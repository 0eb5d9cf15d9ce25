"""Language models: one protocol, a client for OpenAI-compatible servers, and what they are asked.

    chat = open_chat()                     # OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL
    suggestions("a red cat", "synonyms", 5, chat)
    rewrite("a red cat", [("a red cat", 0.71)], 5, chat)

Replies are kept on disk by hash of the request, so what was asked once costs nothing again.
"""

from __future__ import annotations

from tiller.llm.base import Chat, Message, Reply, Request
from tiller.llm.openai_chat import OpenAIChat, open_chat
from tiller.llm.rewriting import rewrite
from tiller.llm.structured import ask_json
from tiller.llm.suggest import optional_suggestions, suggestions

__all__ = [
    "Chat",
    "Message",
    "OpenAIChat",
    "Reply",
    "Request",
    "ask_json",
    "open_chat",
    "optional_suggestions",
    "rewrite",
    "suggestions",
]
