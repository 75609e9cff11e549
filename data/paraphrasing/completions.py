"""Bodies of responses of servers with OpenAI's protocol, which each server fills in its own way.

Mistral and others return the content of a message as a list of parts, DeepSeek and vLLM the reasoning in a field of its
own, OpenRouter an error with the status 200. A completion is an `Answer` even if its text can't be used, since it was
paid for.
"""

import json
import re
from typing import Any

from openai.types import Batch, BatchError, BatchRequestCounts
from openai.types.batch import Errors

from data.paraphrasing.job import Answer, count_tokens
from data.paraphrasing.model_markup import has_reasoning, strip_markup
from data.sources.json_text import parse_json

FILTER_CODES = ("content_filter", "content_policy_violation")
"""Error codes of servers' content filters."""

REFUSED, EMPTY, CUT_SHORT, ONLY_REASONING = "refused", "empty", "cut short", "only reasoning"
"""Problems of an answer that has no paraphrases or too few."""

ERROR_STATUSES = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "server_error": 500,
    "internal_server_error": 500,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "timeout": 504,
    **dict.fromkeys(FILTER_CODES, 400),
}
"""HTTP status of the error codes and types in words."""

REASONING_FIELDS = ("reasoning_content", "reasoning")
MAX_QUOTED = 200
"""Maximum number of characters of a response that are quoted in a message."""

SENTENCE_ENDS = re.compile(r"(?s:.*)[^\W\d_][.!?][\"”']*(?=[\s,]|\Z)")
"""Pattern of a text up to the end of its last complete sentence; the point of an index ends none."""


def parse_json_or_none(content: bytes) -> Any:
    """Return the value of a JSON text, such as the body of a response; None if it isn't JSON."""
    try:
        return parse_json(content)
    except ValueError:
        return None


def parse_completion(body: Any) -> Answer | None:
    """Return the answer in the body of a response, given as parsed JSON; None if it isn't a chat completion.

    A completion without choices is an empty answer if the server counts its tokens. An answer that was cut short
    ends with its last complete sentence.
    """
    if not isinstance(body, dict) or not isinstance(choices := body.get("choices"), list):
        return None
    usage = body.get("usage")
    tokens = (read_token_count(usage, "prompt_tokens"), read_token_count(usage, "completion_tokens"))
    if not choices:
        return Answer("", EMPTY, *tokens) if tokens[1] and not body.get("error") else None
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice["text"]} if isinstance(choice.get("text"), str) else None
    if message is None:
        return None
    text, reasoning = join_content(message.get("content")), find_reasoning(message)
    if tokens[1] is None and reasoning:
        tokens = tokens[0], count_tokens([reasoning, text])
    reason = choice.get("finish_reason")
    if not text and (reason == "error" or choice.get("error") or body.get("error")):
        return None
    if is_refusal_part(message) or reason == "content_filter":
        return Answer(cut_incomplete_sentence(text), REFUSED, *tokens)
    if not strip_markup(text) and (text or reasoning):
        text = text if not reasoning else f"<think>{reasoning}</think>{text}"  # kept, since it was paid for
        problem = CUT_SHORT if reason == "length" else ONLY_REASONING if has_reasoning(text) else EMPTY
        return Answer(text, problem, *tokens)
    if reason in ("length", "error") and (complete := cut_incomplete_sentence(text)) != text:
        return Answer(complete, CUT_SHORT, *tokens)
    return Answer(text, "" if text else EMPTY, *tokens)


def cut_incomplete_sentence(text: str) -> str:
    """Return a text without its last sentence if that is incomplete, as in an answer that was cut short at a token
    limit.
    """
    if SENTENCE_ENDS.fullmatch(text.rstrip()):
        return text
    complete = match[0] if (match := SENTENCE_ENDS.match(text)) else ""
    return max(complete, text.rpartition("\n")[0], key=len)


def join_content(content: Any) -> str:
    """Return the text of the 'content' field of a chat message, which is a string or a list of parts; a model's
    reasoning is left out. Any other content is returned as JSON, so that nothing that was paid for is lost.
    """
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(map(join_part, content))
        case {"text": str(text)} | {"content": str(text)}:
            return text
    return json.dumps(content, ensure_ascii=False)


def join_part(part: Any) -> str:
    """Return the text of one part of a chat message's content; '' if the part is reasoning, is a refusal or has no
    text.
    """
    match part:
        case {"type": "thinking" | "reasoning" | "redacted_thinking" | "refusal"}:
            return ""
        case str(text) | {"text": str(text)} | {"text": {"value": str(text)}} | {"content": str(text)}:
            return text
    return ""


def find_reasoning(message: dict[str, Any]) -> str:
    """Return the reasoning that a model wrote before its answer, from a field of the chat message or from parts of its
    content; '' if there is none.
    """
    for name in REASONING_FIELDS:
        if isinstance(text := message.get(name), str) and text:
            return text
    texts: list[str] = []
    for part in message["content"] if isinstance(message.get("content"), list) else ():
        match part:
            case {"type": "thinking" | "reasoning", "thinking": thinking}:
                texts.append(join_content(thinking))
            case {"type": "thinking" | "reasoning", "text": str(text)}:
                texts.append(text)
    return "".join(texts)


def is_refusal_part(message: dict[str, Any]) -> bool:
    """Return whether a chat message is a refusal: its field 'refusal' is not empty, or its content has a part of this
    type.
    """
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return bool(message.get("refusal")) or any(
        isinstance(part, dict) and part.get("type") == "refusal" for part in parts
    )


def read_token_count(usage: Any, name: str) -> int | None:
    """Return the number of tokens under the key `name` in `usage`, the token counts that a server reports with an
    answer; None if it isn't an integer of at least 0.
    """
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def find_error(body: Any) -> dict[str, Any] | None:
    """Return the error in the body of a response whose status says success, with its 'message' and 'code'; None if
    the body has no error, or has an answer beside it.
    """
    if not isinstance(body, dict) or parse_completion(body):
        return None
    match body:
        case {"error": dict(error)}:
            return error
        case {"error": str(message)} | {"object": "error", "message": str(message)} | {"detail": str(message)}:
            return {"message": message, "code": body.get("code")} if message else None
        case {"choices": [{"error": dict(error)}, *_]}:
            return error
    return None


def find_error_status(error: dict[str, Any]) -> int | None:
    """Return the HTTP status that an error object stands for, by its code, status or type; None if it doesn't say."""
    for value in (error.get("code"), error.get("status"), error.get("type")):
        if isinstance(value, str):
            value = ERROR_STATUSES.get(value, int(value) if value.isascii() and value.isdecimal() else None)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def require_batch(batch: Batch) -> Batch:
    """Return a batch as the server states it. Raises ValueError unless those of its fields that are read are of the
    types that they should be, since OpenAI's client takes any.
    """
    match batch:
        case Batch(
            id=str(),
            input_file_id=str(),
            status=str(),
            output_file_id=str() | None,
            error_file_id=str() | None,
            request_counts=BatchRequestCounts(completed=int(), total=int()) | None,
            errors=Errors(data=list() | None) | None,
        ) if all(isinstance(error, BatchError) for error in (batch.errors and batch.errors.data) or []):
            return batch
    raise ValueError(f"not a batch: {str(batch)[:MAX_QUOTED]}")


def describe_body(content: bytes) -> str:
    """Return a description of a response that isn't a chat completion, with the beginning of its text."""
    body = parse_json_or_none(content)
    if error := find_error(body):
        return f"an error: {str(error.get('message') or error)[:MAX_QUOTED]}"
    text = " ".join(content[: 4 * MAX_QUOTED].decode(errors="replace").split())
    if not text:
        return "an empty response"
    if text.startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE)
        return f"a web page, {title[1].strip()!r}" if title else f"a web page, {text[:MAX_QUOTED]!r}"
    if text.startswith(("data:", "event:")):
        return "a stream of events"
    kind = "incomplete JSON" if body is None and text[0] in "{[" else "text" if body is None else "other JSON"
    return f"{kind}, {text[:MAX_QUOTED]!r}"
