"""Taking answers apart, and checking their sentences."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.captions import normalise
from data.paraphrasing import answer_parsing
from data.paraphrasing.answer_parsing import CHECKS, check_sentences, parse_sentences

SENTENCES = [
    "A dog barks at a passing car.",
    "Two people's voices echo in a hall.",
    "Rain, then hail, hits a tin roof.",
]

NUMBERINGS = {
    "1. ": "{}. {}", "1) ": "{}) {}", "1: ": "{}: {}", "(1) ": "({}) {}", "[1] ": "[{}] {}", "1.": "{}.{}",
    "1 - ": "{} - {}", "**1.** ": "**{}.** {}", "**1. ** ": "**{}. {}**", "Caption 1: ": "Caption {}: {}",
    "Audio caption 1: ": "Audio caption {}: {}", "- 1. ": "- {}. {}", '1. "': '{}. "{}"', "1. “": "{}. “{}”",
    '"1. ': '{}. \'{}\'', "> 1. ": "> {}. {}", "Sentence 1. ": "Sentence {}. {}", "Index 1: ": "Index {}: {}",
    "Description 1: ": "Description {}: {}", "1/ ": "{}/ {}", "keycap": "{}\ufe0f\u20e3 {}",
    "### 1": "### Caption {}\n{}", "**1:**": "**Caption {}:**\n\n{}", "(5 words)": "{}. {} (5 words)",
    '"1." (5 words)': '{}. "{}" (5 words)',
}  # fmt: skip


@pytest.mark.parametrize("pattern", NUMBERINGS.values(), ids=NUMBERINGS)
@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n", "\n  \n\n"], ids=repr)
def test_any_numbering_comes_off(pattern, between):
    lines = [pattern.format(number, text) for number, text in enumerate(SENTENCES, start=1)]
    assert parse_sentences(between.join(lines)) == SENTENCES


def test_circled_digits_come_off():
    assert (
        parse_sentences("\n".join(f"{digit} {text}" for digit, text in zip("①②③", SENTENCES, strict=True))) == SENTENCES
    )


BEFORE = [
    "",
    "Sure! Here are three captions:\n\n",
    "Here are three captions: ",
    "Here are the captions you asked for.\n",
    "<think>1. Hm.</think>\n",
    "1. Hm, a dog.\n</think>\n\n",
    "I'm sorry for the confusion. Here are the captions:\n",
    'Tags: ["car engine", "door slam"]\n',
]
AFTER = ["", "\n\nI hope this helps!", "\n(Note: the time is left out.)", "\nLet me know.", "\n<think>1. Hm.</think>"]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("end", ["", "."])
def test_introductions_explanations_and_thoughts_are_left_out(before, after, end):
    sentences = [text.rstrip(".") + end for text in SENTENCES]
    lines = "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, start=1))
    assert parse_sentences(before + lines + after) == sentences
    assert not answer_parsing.is_refused(before + lines + after)


@pytest.mark.parametrize("mark", ["", "- ", "* ", "• "])
def test_without_numbers_each_line_is_a_sentence(mark):
    assert parse_sentences("Here are some captions:\n" + "\n".join(mark + text for text in SENTENCES)) == SENTENCES


def test_all_on_one_line():
    assert parse_sentences("1. A dog barks. 2. A hound woofs. 3. A dog yaps.") == [
        "A dog barks.",
        "A hound woofs.",
        "A dog yaps.",
    ]


def test_a_sentence_goes_on_in_the_next_line():
    assert parse_sentences("1. A dog barks while\nrain falls.\n2. Rain falls.") == [
        "A dog barks while rain falls.",
        "Rain falls.",
    ]


@pytest.mark.parametrize("wrap", ["{}", '{{"captions": {}}}', "```json\n{}\n```"])
def test_json(wrap):
    assert parse_sentences(wrap.format(json.dumps(SENTENCES))) == SENTENCES


@pytest.mark.parametrize(
    "text", ["2-year-old twins laugh loudly.", "3 dogs bark in a yard.", "1920s music plays from a radio."]
)
def test_a_number_that_belongs_to_the_sentence_stays(text):
    assert parse_sentences(text) == [text]
    assert parse_sentences(f"1. {text}\n2. {text}") == [text, text]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "Sorry, I cannot do that.", "As an AI, I have no ears.",
        "I cannot generate captions.", "I am unable to do this.", "I don\u2019t have enough information.", "", "  \n ",
        "Unfortunately, the description is too short.", "I apologize for the inconvenience.",
    ],
)  # fmt: skip
def test_a_refusal_holds_no_sentence(text):
    assert parse_sentences(text) == []
    assert answer_parsing.is_refused(text) == bool(text.strip())


@given(st.text(max_size=400))
@example("1.")
@example("((((1) 2) 3)")
@example("[]")
@example('{"a": []}')
@example('"\'"')
@example("1. 2. - a) 'Rain.' (2 words) (2 words)")
@example("### Caption 1\n* Rain\n``` \nfalls\n2 Rain")
def test_anything_can_be_parsed(text):
    """Sentences are single lines with a letter in them, tidied for good, and nothing that the answer didn't hold."""
    for sentence in parse_sentences(text):
        assert sentence == " ".join(sentence.split())
        assert any(character.isalpha() for character in sentence)
        assert answer_parsing.clean_sentence(sentence) == sentence
        rest = iter(text)
        assert "\\" in text or all(character in rest for character in sentence.replace(" ", "")), "in this order"


WORDS = st.lists(st.sampled_from(["dog", "cat", "rain", "engine", "door", "bell", "loud"]), min_size=2, max_size=19)
PLAIN = WORDS.map(lambda words: " ".join(words).capitalize() + ".")


@given(
    st.lists(PLAIN, min_size=1, max_size=9), st.sampled_from(list(NUMBERINGS.values())), st.booleans(), st.booleans()
)
def test_what_was_numbered_comes_back(sentences, pattern, introduced, blank_lines):
    lines = [pattern.format(number, text) for number, text in enumerate(sentences, start=1)]
    answer = "Here you go:\n\n" * introduced + ("\n\n" if blank_lines else "\n").join(lines)
    assert parse_sentences(answer) == sentences


@given(PLAIN, st.lists(PLAIN, max_size=8))
def test_what_is_kept_is_new(caption, sentences):
    kept = [variant.text for variant in check_sentences(caption, sentences) if variant.is_kept]
    plain = [normalise(text) for text in kept]
    assert len(set(plain)) == len(plain)
    assert normalise(caption) not in plain
    assert set(plain) == {normalise(text) for text in sentences} - {normalise(caption)}


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("A hound woofs.", []),
        ("A dog BARKS", ["not the original"]),
        ("A dog barks. A cat meows.", ["one sentence"]),
        ("Barks.", ["one sentence"]),
        ("A train arrives at St. Pancras Street.", ["no name"]),
        ("A dog barks at 5 p.m. in a yard.", ["no year or clock time"]),
        ("A bell rings at 12:30.", ["no year or clock time"]),
        ("A bell rings at five o'clock.", ["no year or clock time"]),
        ("A car from 1978 passes.", ["no year or clock time"]),
        ("A tone of 1900 Hz sounds.", []),
        ("A dog can be heard.", ["no 'heard' or 'recorded'"]),
        ("The overheard talk goes on.", []),
        ("Someone walks through Vienna.", ["no name"]),
        (" ".join(["word"] * 19), []),
        (" ".join(["word"] * 20), ["under 20 words"]),
    ],
)
def test_checks(text, failed):
    (variant,) = check_sentences("A dog barks.", [text])
    assert list(variant.failed) == failed
    assert set(failed) <= set(CHECKS)
    assert variant.is_kept == (not set(failed) - {"under 20 words", "no name"})


def test_a_duplicate_is_told_across_answers():
    first, second = "1. A hound woofs.\n2. A dog yaps.", "1. A dog yaps!\n2. A pup barks."
    assert [variant.text for variant in answer_parsing.choose_paraphrases("A dog barks.", [first, second], 5)] == [
        "A hound woofs.", "A dog yaps.", "A pup barks.",
    ]  # fmt: skip
    assert [variant.failed for variant in answer_parsing.check_answers("A dog barks.", [first, second])][2] == (
        "not a duplicate",
    )
