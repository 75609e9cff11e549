"""Client of chat models with OpenAI's protocol: OpenAI, Mistral, OpenRouter, vLLM, Ollama, llama.cpp and others.

OpenAI's client retries transient errors (rate limits, server errors, timeouts, lost connections), and waits as long as
the server asks for. This module controls the number of concurrent requests: it is halved after a rate limit, and grows
slowly while requests succeed.
"""

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self

import aiohttp
import httpx2
import openai

from data.errors import UserError
from data.paraphrasing import grammar
from data.paraphrasing.completions import (
    FILTER_CODES,
    REFUSED,
    describe_body,
    find_error,
    find_error_status,
    parse_completion,
    parse_json_or_none,
)
from data.paraphrasing.job import Answer, Request

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
MAX_RETRIES = 8
"""Maximum number of retries of a request by OpenAI's client. The pauses before them grow from 0.5 to 8 s, unless the
server asks for others.
"""

MAX_PAUSES = 5
"""Maximum number of pauses for a busy server after the client's retries, each as long as the server asks for."""

MAX_PAUSE_S = 3600.0
"""Maximum pause in seconds that a server may ask for."""

MAX_MALFORMED = 3
"""Maximum number of malformed responses before a request counts as unanswered."""


class UnansweredError(Exception):
    """Error of a request that the server did not answer, after all retries."""


class StoppedError(openai.OpenAIError):
    """Error raised in place of sending a request, or sending it again, because the run is ending. OpenAI's client
    does not retry after it.
    """


class ParaphraseModel(Protocol):
    """Interface of a model that answers requests for paraphrases. It is an asynchronous context manager, and is
    used within its `async with` block.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...

    async def ask(self, request: Request) -> Answer:
        """Return the answer to a request.

        Raises UnansweredError if this request fails, and UserError if no other request would succeed either.
        """
        ...

    def stop(self) -> None:
        """Cancel the requests that wait to be sent or sent again; those that have been sent are completed."""
        ...


class RuleBasedParaphraser:
    """Rule-based paraphraser of `data.paraphrasing.grammar` with the interface of a chat model."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def ask(self, request: Request) -> Answer:
        """Return an answer with numbered paraphrases of the request's caption."""
        sentences = grammar.write_paraphrases(request.caption, request.number)
        return Answer("\n".join(f"{n}. {text}" for n, text in enumerate(sentences, start=1)))

    def stop(self) -> None:
        """Do nothing, since no request ever waits."""


class AdaptiveConcurrencyLimiter:
    """Limiter of the number of concurrent requests. Its limit is between 1 and `maximum`: it is halved when the
    server refuses a request because of its rate limit (status 429), and increases slowly while requests succeed.

    The limit is increased additively and decreased multiplicatively (Chiu and Jain, 1989). After it was halved, rate
    limits of the requests that were already running do not halve it again.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.limit = float(maximum)
        self.running = 0
        self.to_ignore = 0  # responses to requests that were running when the limit was halved
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        """Wait until fewer requests are running than the limit allows; within the context, one more counts as
        running.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.running < int(self.limit))
            self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            async with self.changed:
                self.changed.notify(max(1, int(self.limit) - self.running))

    def record_status(self, status: int) -> None:
        """Adapt the limit to the HTTP status of a response: success increases it, status 429 (rate limit)
        halves it, and other errors don't change it.
        """
        self.to_ignore = max(0, self.to_ignore - 1)
        if status < httpx2.codes.BAD_REQUEST:
            self.limit = min(self.maximum, self.limit + 1 / self.limit)
        elif status == httpx2.codes.TOO_MANY_REQUESTS and not self.to_ignore:
            self.limit = max(1.0, self.limit / 2)
            self.to_ignore = self.running


class LimitedClient(openai.DefaultAioHttpClient):
    """HTTP client that waits before each request, including retries, until the limiter allows it.

    The client uses aiohttp, since httpx's connection pool scans all connections for every request.
    """

    def __init__(self, limiter: AdaptiveConcurrencyLimiter, timeout_s: float) -> None:
        limits = httpx2.Limits(max_connections=limiter.maximum, max_keepalive_connections=limiter.maximum)
        super().__init__(timeout=timeout_s, limits=limits)
        self.limiter = limiter
        self.sending: set[asyncio.Task[Any] | None] = set()
        self.is_stopping = False

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request when the limiter allows it, and return the response. Raises StoppedError if the run is
        ending.

        A response with status 200 that contains only an error gets the status of that error, so that it is
        retried or reported like any other.
        """
        async with self.limiter.acquire():
            if self.is_stopping:
                raise StoppedError("not sent")
            task = asyncio.current_task()
            self.sending.add(task)
            try:
                response = await super().send(request, **options)
            except aiohttp.ClientError as error:  # the transport doesn't translate all, such as malformed headers
                raise httpx2.RemoteProtocolError(str(error)) from error
            finally:
                self.sending.discard(task)
        if response.is_success and b"rror" in response.content:
            described = find_error(parse_json_or_none(response.content))
            response.status_code = (described and find_error_status(described)) or response.status_code
        self.limiter.record_status(response.status_code)
        if self.is_stopping and response.is_error:
            raise StoppedError("not sent again")
        return response


class ChatModel:
    """Chat model that is asked over HTTP, on a server with OpenAI's protocol."""

    def __init__(self, base_url: str | None, timeout_s: float, concurrency: int) -> None:
        self.http = LimitedClient(AdaptiveConcurrencyLimiter(concurrency), timeout_s)
        self.client = connect(base_url, timeout_s, self.http)
        self.asking: set[asyncio.Task[Any] | None] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    async def ask(self, request: Request) -> Answer:
        """Send a request, retrying if necessary, and return the model's answer. Raises UnansweredError if this request
        fails, and UserError if no other request would succeed either.
        """
        task = asyncio.current_task()
        self.asking.add(task)
        try:
            return await self._ask(request)
        finally:
            self.asking.discard(task)

    async def _ask(self, request: Request) -> Answer:
        pauses = malformed = 0
        while True:
            try:
                # chat.completions.create takes longer than all else here: it builds models of request and response.
                response = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=request.body)
            except openai.OpenAIError as error:
                if (answer := parse_filter_error(error)) is not None:
                    return answer
                wait_s = find_pause_s(error)
                if wait_s is None or pauses == MAX_PAUSES:
                    raise describe_error(error, self.client, request.model) from error
                pauses += 1
                await asyncio.sleep(wait_s)  # the client has used up its retries
                continue
            if (completion := parse_completion(parse_json_or_none(response.content))) is not None:
                return completion
            malformed += 1
            if malformed == MAX_MALFORMED:
                received = redact_key(describe_body(response.content), self.client)
                raise UnansweredError(
                    f"{self.client.base_url} doesn't answer with chat completions, but with {received} "
                    "(check --base-url: it usually ends with /v1)"
                )

    def stop(self) -> None:
        """Cancel the requests that wait for the limiter or before a retry; those that have been sent are completed."""
        self.http.is_stopping = True
        for task in self.asking - self.http.sending:
            if task:
                task.cancel()


def connect(base_url: str | None, timeout_s: float, http: LimitedClient) -> openai.AsyncOpenAI:
    """Return OpenAI's client for the server at `base_url`; by default at OPENAI_BASE_URL, otherwise OpenAI's own. It
    sends requests by `http` and waits `timeout_s` for an answer. The key is read from OPENAI_API_KEY; other servers may
    need none. Raises UserError if the key or the address is missing or malformed.
    """
    key = os.environ.get(KEY, "")
    base_url = base_url or os.environ.get(BASE_URL) or None
    if not (key or base_url):
        raise UserError(
            f"{KEY} isn't set: set it to your key, name a local server with --base-url, "
            f"or use --model {grammar.NAME}, which needs neither"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY} contains a blank, a line break or a character beyond ASCII: set it to the key")
    if base_url is not None and re.match(r"(?:\w+://)?[^/?#]*@", base_url):
        raise UserError(f"--base-url (or {BASE_URL}) contains a user before an @: remove it, and set {KEY} to the key")
    if base_url is not None and not is_address(base_url):
        raise UserError(f"--base-url (or {BASE_URL}) {base_url!r} isn't an address such as http://localhost:8000/v1")
    if key and base_url is not None and is_exposed(base_url):
        raise UserError(
            f"--base-url (or {BASE_URL}) {base_url!r}: {KEY} would be sent over the network unencrypted; use https, or "
            f"unset {KEY} if this server needs none"
        )
    for name in ("httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log each request and each retry
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=base_url, timeout=timeout_s, max_retries=MAX_RETRIES, http_client=http
    )


def is_address(text: str) -> bool:
    """Return whether a text is an http or https URL with a host."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def is_exposed(base_url: str) -> bool:
    """Return whether requests to an address are unencrypted and leave this machine and private networks: the scheme is
    http, and the host's name doesn't stand for loopback, private or link-local addresses alone.
    """
    url = httpx2.URL(base_url)
    if url.scheme != "http":
        return False
    try:
        texts = {str(entry[4][0]) for entry in socket.getaddrinfo(url.host, url.port or 80)}
    except (OSError, UnicodeError):
        return True  # a proxy may know the host
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
    plain = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    return not all(address.is_loopback or address.is_private or address.is_link_local for address in plain)


def parse_filter_error(error: openai.OpenAIError) -> Answer | None:
    """Return an answer marked as refused if the server's content filter rejected the request; None for any other
    error. OpenRouter reports the texts that it rejects with status 403.
    """
    if isinstance(error, openai.BadRequestError) and error.code in FILTER_CODES:
        return Answer("", REFUSED)
    if isinstance(error, openai.PermissionDeniedError):
        match error.body:
            case {"metadata": {"flagged_input": _}} | {"metadata": {"reasons": _}}:
                return Answer("", REFUSED)
    return None


def find_pause_s(error: openai.OpenAIError) -> float | None:
    """Return how many seconds a busy server asks to wait before the next attempt; None if the error doesn't say.

    Raises UserError if the account's quota is used up, or the pause exceeds MAX_PAUSE_S.
    """
    if not isinstance(error, openai.APIStatusError):
        return None
    if error.code == "insufficient_quota" or error.status_code == httpx2.codes.PAYMENT_REQUIRED:
        raise UserError(
            "the account's quota is used up; answers so far are kept: re-run the same command to resume"
        ) from error
    if error.status_code < httpx2.codes.INTERNAL_SERVER_ERROR and not isinstance(error, openai.RateLimitError):
        return None
    requested_s = parse_retry_after(error.response.headers)
    if requested_s is not None and requested_s > MAX_PAUSE_S:
        raise UserError(
            f"the server asks to wait {requested_s:,.0f} s; answers so far are kept: re-run the same command to resume"
        ) from error
    return requested_s


def parse_retry_after(headers: httpx2.Headers) -> float | None:
    """Return how many seconds to wait according to a response's headers; None if they don't say. `retry-after`
    gives seconds or a date (RFC 9110, 10.2.3), OpenAI's `retry-after-ms` milliseconds.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            value = float(headers.get(name, "")) * unit_s
            return max(0.0, value) if math.isfinite(value) else None
    with contextlib.suppress(ValueError, TypeError):
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return None


def describe_error(error: openai.OpenAIError, client: openai.AsyncOpenAI, model: str) -> Exception:
    """Return the exception to raise for an error of OpenAI's client in a request to `model`: a UserError if other
    requests would fail as well, otherwise an UnansweredError. Its message doesn't contain the API key.
    """
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return UserError(f"{client.base_url} refused the key ({error.status_code}): set {KEY} to a valid one")
        case openai.NotFoundError():
            return UserError(f"{client.base_url} has no model {model!r} (404): check --model and --base-url")
        case openai.APIStatusError():
            return UnansweredError(redact_key(f"{error.status_code}: {error.message}", client))
    reason = f"{error} {error.__cause__ or ''}".strip()  # the client calls a refused connection a timeout
    return UnansweredError(redact_key(reason, client))


def redact_key(text: str, client: openai.AsyncOpenAI) -> str:
    """Return a text in which the client's API key is replaced by '[key]'."""
    return text.replace(client.api_key, "[key]") if len(client.api_key) > 4 else text
