"""Bodies of responses, as different servers send them."""

import json

import pytest
from answer_styles import BROKEN, READABLE, WASTED, write_body
from hypothesis import given
from hypothesis import strategies as st

from data.paraphrasing.answer_parsing import parse_sentences
from data.paraphrasing.completions import (
    describe_body,
    find_error,
    find_error_status,
    parse_completion,
    parse_json_or_none,
)
from data.paraphrasing.model_markup import strip_markup

SENTENCES = ["A dog barks at a passing car.", "Two voices echo in a hall.", "Rain, then hail, hits a tin roof."]
NUMBERED = "\n".join(f"{number}. {text}" for number, text in enumerate(SENTENCES, start=1))


def complete(content=NUMBERED, reason="stop"):
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 100, "completion_tokens": 80}
    return {"choices": [{"index": 0, "finish_reason": reason, "message": message}], "usage": usage}


def receive(style):
    """The body in a style, parsed as the client does."""
    return parse_json_or_none(write_body(style, complete()).encode())


@pytest.mark.parametrize("style", READABLE)
def test_an_answer_is_read_in_whatever_way_a_server_gives_it(style):
    answer = parse_completion(receive(style))
    assert answer
    assert not answer.problem
    assert parse_sentences(answer.text) == SENTENCES
    assert find_error(receive(style)) is None


@pytest.mark.parametrize("style", WASTED)
def test_an_answer_without_sentences_is_kept_with_its_problem_and_its_tokens(style):
    answer = parse_completion(receive(style))
    assert answer
    assert (answer.problem, answer.input_tokens, answer.output_tokens) == (WASTED[style][1], 100, 80)
    assert parse_sentences(answer.text) == []
    assert find_error(receive(style)) is None


@pytest.mark.parametrize("style", BROKEN)
def test_what_is_no_completion_is_described(style):
    content = write_body(style, complete()).encode()
    assert parse_completion(parse_json_or_none(content)) is None
    assert describe_body(content)


@pytest.mark.parametrize(
    ("style", "status"),
    [("429", 429), ("429 in words", 429), ("502 as text", 502), ("529", 529), ("vLLM's", 500), ("in a choice", 502),
     ("an error without a code", None), ("FastAPI's", None)],
)  # fmt: skip
def test_the_status_of_an_error(style, status):
    assert find_error_status(find_error(receive(style))) == status


@pytest.mark.parametrize(
    ("style", "description"),
    [
        ("a page", "a web page, 'Just a moment'"), ("nothing", "an empty response"), ("events", "a stream of events"),
        ("torn", """incomplete JSON, '{"id": "x", "choices": [{"mess'"""),
        ("other JSON", """other JSON, '{"models": []}'"""),
        ("FastAPI's", "an error: Something of the server's"),
    ],
)  # fmt: skip
def test_descriptions(style, description):
    assert describe_body(write_body(style, complete()).encode()) == description


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1. A dog barks.\n2. A hound wo", ["A dog barks."]),
        ("1. A dog barks. 2. A hound woofs. 3. A", ["A dog barks.", "A hound woofs."]),
        ("1. A dog barks\n2. A hound woofs\n3. A", ["A dog barks", "A hound woofs"]),
        ("1. A dog barks.\n2.", ["A dog barks."]),
        ("<think>Hm.</think>1. A dog barks.\n2. A hound", ["A dog barks."]),
        ("1. A do", []),
    ],
)
def test_of_an_answer_that_was_cut_short_whole_sentences_are_kept(text, kept):
    answer = parse_completion(complete(text, "length"))
    assert answer.problem == "cut short"
    assert parse_sentences(answer.text) == kept


def test_of_an_answer_that_a_filter_cut_off_whole_sentences_are_kept():
    answer = parse_completion(complete("1. A dog barks.\n2. A hound wo", "content_filter"))
    assert (answer.problem, parse_sentences(answer.text)) == ("refused", ["A dog barks."])


def test_without_a_count_the_tokens_of_the_reasoning_are_estimated():
    body = complete()
    del body["usage"]
    body["choices"][0]["message"]["reasoning"] = "word" * 100
    assert parse_completion(body).output_tokens > 100


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "type", "text", "error", "code", "usage"]), inner, max_size=4
    ),
    max_leaves=15,
)  # fmt: skip


@given(VALUES)
def test_any_json_can_be_parsed(value):
    for body in (value, {"choices": [value]}, {"choices": [{"message": {"content": value}}]}, {"error": value}):
        answer, error = parse_completion(body), find_error(body)
        assert not (answer and error)
        assert error is None or find_error_status(error) is None or 400 <= find_error_status(error) <= 599
        assert describe_body(json.dumps(body).encode())
        assert answer is None or isinstance(answer.text, str)


@given(st.text("<>/|thinksend_[]INT \uff5c.1a\n", max_size=60))
def test_markup_of_any_kind_comes_off(text):
    assert strip_markup(text) == strip_markup(text).strip()
    assert strip_markup(f"{text}</think>A dog barks.").endswith("A dog barks.") or "<th" in text or "INST" in text
