"""Asking a chat model for paraphrases, through the protocol that OpenAI, vLLM, Ollama and llama.cpp speak.

The official client retries what may pass (rate limits, errors of the server, timeouts, cut connections), and waits
between tries as long as the server asks for. How many requests run at a time is ours: half as many after a rate limit,
and slowly more while all goes well.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self

import httpx2
import openai

from data import grammar
from data.errors import UserError
from data.questions import Answer, Request

GRAMMAR = "grammar"
"""The model that needs no server: `data.grammar`."""

KEY = "OPENAI_API_KEY"
RETRIES = 8
"""Of one request by the client; its pauses grow from 0.5 to 8 s, or are those that the server asks for."""

PAUSES = 5
"""After the client has given up on a rate limit, as long as the server asks for."""

MOST_PATIENCE_S = 3600.0
"""The longest pause that a server may ask for."""


class UnansweredError(Exception):
    """A request that the server didn't answer, however often it was sent."""


class Model(Protocol):
    """What can be asked, within the block that it opens."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...

    async def ask(self, request: Request) -> Answer:
        """Its answer. Raises UnansweredError for this request, and UserError where no other would fare better."""
        ...


class Grammar:
    """The rules of `data.grammar`, answering as a chat model does."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def ask(self, request: Request) -> Answer:
        """Numbered sentences."""
        return Answer(grammar_answer(request))


def grammar_answer(request: Request) -> str:
    """The rules' sentences for a request, numbered as the instruction asks."""
    return "\n".join(
        f"{n}. {text}" for n, text in enumerate(grammar.paraphrases(request.caption, request.number), start=1)
    )


class Slots:
    """How many requests may run at a time: between 1 and `most`.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989). Of the requests that were already running when
    the number was halved, further rate limits don't halve it again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.running = 0
        self.to_ignore = 0
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.running < int(self.limit))
            self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            async with self.changed:
                self.changed.notify(max(1, int(self.limit) - self.running))

    def answered(self, rate_limited: bool) -> None:
        """Take note of a response of the server's."""
        self.to_ignore = max(0, self.to_ignore - 1)
        if not rate_limited:
            self.limit = min(self.most, self.limit + 1 / self.limit)
        elif not self.to_ignore:
            self.limit = max(1.0, self.limit / 2)
            self.to_ignore = self.running


class ChatModel:
    """A server's chat model."""

    def __init__(self, base_url: str | None, timeout_s: float, concurrency: int) -> None:
        self.client = connect(base_url, timeout_s, concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    async def ask(self, request: Request) -> Answer:
        """The model's answer."""
        for _ in range(PAUSES):
            try:
                # Not chat.completions.create, whose models of requests and responses cost more than all the rest.
                response = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=request.body)
                return read_completion(as_json(response.content))
            except openai.RateLimitError as error:
                await asyncio.sleep(pause_s(error))  # the client has given up
            except openai.OpenAIError as error:
                if (answer := filtered(error)) is not None:
                    return answer
                raise told(error, self.client, request.model) from error
        raise UnansweredError("rate limited, however long the server was left alone")


class LimitedClient(openai.DefaultAioHttpClient):
    """Sends requests, those that are tried again too, as there are slots for them.

    Over aiohttp, whose pool of connections doesn't look at each of them for every request, as httpx's does.
    """

    def __init__(self, slots: Slots, timeout_s: float) -> None:
        limits = httpx2.Limits(max_connections=slots.most, max_keepalive_connections=slots.most)
        super().__init__(timeout=timeout_s, limits=limits)
        self.slots = slots

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The server's response, once there is a slot."""
        async with self.slots.slot():
            response = await super().send(request, **options)
        self.slots.answered(response.status_code == httpx2.codes.TOO_MANY_REQUESTS)
        return response


def connect(base_url: str | None, timeout_s: float, concurrency: int) -> openai.AsyncOpenAI:
    """The official client. The key is the environment's; a server of one's own needs none."""
    if not (os.environ.get(KEY) or base_url or os.environ.get("OPENAI_BASE_URL")):
        raise UserError(
            f"{KEY} isn't set: set it to your key, or name a server of your own with --base-url, "
            f"or take --model {GRAMMAR}, which needs neither"
        )
    for name in ("httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line a request, and one a retry
    return openai.AsyncOpenAI(
        api_key=os.environ.get(KEY) or "none",
        base_url=base_url,
        timeout=timeout_s,
        max_retries=RETRIES,
        http_client=LimitedClient(Slots(concurrency), timeout_s),
    )


def as_json(content: bytes) -> Any:
    """What a response holds, None where that isn't JSON."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def read_completion(body: Any) -> Answer:
    """The answer of a chat completion, as JSON."""
    try:
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        usage = body.get("usage") or {}
        text = message.get("content") or ""
        tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        if not isinstance(text, str) or not all(count is None or isinstance(count, int) for count in tokens):
            raise TypeError
    except (TypeError, KeyError, IndexError, AttributeError):
        return Answer("", "not a chat completion")
    if message.get("refusal") or reason == "content_filter":
        return Answer("", "refused", *tokens)
    return Answer(text, "" if text else "empty", *tokens)


def filtered(error: openai.OpenAIError) -> Answer | None:
    """The answer that an error stands for: some servers tell of their content filter so."""
    if isinstance(error, openai.BadRequestError) and error.code in ("content_filter", "content_policy_violation"):
        return Answer("", "refused")
    return None


def pause_s(error: openai.RateLimitError) -> float:
    """How long to wait after a rate limit that the client gave up on."""
    if error.code == "insufficient_quota":
        raise UserError(
            "the account's quota is used up; what was answered is kept, and the same command goes on"
        ) from error
    try:
        asked_s = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        raise UnansweredError("rate limited") from error
    if asked_s > MOST_PATIENCE_S:
        raise UserError(
            f"the server asks to wait {asked_s:,.0f} s; what was answered is kept, and the same command goes on"
        ) from error
    return asked_s


def told(error: openai.OpenAIError, client: openai.AsyncOpenAI, model: str) -> Exception:
    """An error in words that hold no key: of this request alone, or a UserError where others would fail as well."""
    if isinstance(error, openai.APIStatusError) and error.status_code < httpx2.codes.INTERNAL_SERVER_ERROR:
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return UserError(f"{client.base_url} refused the key ({error.status_code}): set {KEY} to a valid one")
            case openai.NotFoundError():
                return UserError(f"{client.base_url} knows no model {model!r} (404): see --model and --base-url")
        return UserError(f"{client.base_url} refused the request: {without_key(error.message, client)}")
    why = f"{error} {error.__cause__ or ''}".strip()  # the client calls a refused connection a timeout
    return UnansweredError(without_key(why, client))


def without_key(text: str, client: openai.AsyncOpenAI) -> str:
    """A text without the client's key."""
    return text.replace(client.api_key, "[key]") if len(client.api_key) > 4 else text
