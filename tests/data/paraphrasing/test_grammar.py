"""The rule-based paraphraser."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.captions import normalise
from data.corpora import synthetic
from data.paraphrasing import answer_parsing, grammar

CAPTIONS = [
    "A dog barks once while rain falls steadily.",
    "Waves crash on a shore as a rooster crows twice, then a baby cries!",
    "A chainsaw revs before a dog yaps at something and then a person sneezes.",
    "After a bell rings, a man hits a drum.",
    "While wind blows, someone opens a door",
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_each_caption_has_five_other_wordings_that_pass_every_check(caption):
    sentences = grammar.write_paraphrases(caption, 5)
    assert len(sentences) == 5
    assert all(not variant.failed for variant in answer_parsing.check_sentences(caption, sentences))
    assert grammar.write_paraphrases(caption, 5) == sentences
    assert grammar.write_paraphrases(caption, 3) == sentences[:3]


@pytest.mark.parametrize(
    ("caption", "events", "meanwhile"),
    [
        ("A dog barks.", ["a dog barks"], []),
        ("A dog barks while rain falls", ["a dog barks"], ["rain falls"]),
        ("While rain falls, a dog barks!", ["a dog barks"], ["rain falls"]),
        ("A dog barks, then a cat meows", ["a dog barks", "a cat meows"], []),
        ("After a dog barks, a cat meows", ["a dog barks", "a cat meows"], []),
        ("Before a dog barks, a cat meows", ["a cat meows", "a dog barks"], []),
        ("A dog barks after which a cat meows as it rains", ["a dog barks", "a cat meows"], ["it rains"]),
        ("People talk as well as laugh", ["people talk as well as laugh"], []),
    ],
)
def test_what_a_caption_tells(caption, events, meanwhile):
    assert grammar.parse_caption(caption) == grammar.CaptionContent(tuple(events), tuple(meanwhile))


def test_the_order_of_events_stays():
    for text in grammar.write_paraphrases("A bell rings before an owl hoots.", 5):
        bell, owl = (re.search(word, text.lower()).start() for word in ("bell", "owl"))
        turned = re.search(r"owl hoots after", text.lower())
        assert (owl < bell) == bool(turned), text


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("a man hits a drum", "a drum is hit by a man"),
        ("someone opens some doors", "some doors are opened by someone"),
        ("a person cuts a log with a saw", "a log is cut by a person with a saw"),
        ("a man hits a drum repeatedly", "a drum is hit by a man repeatedly"),
        ("a dog barks", "a dog barks"),
        ("a bell rings twice", "a bell rings twice"),
    ],
)
def test_the_passive_voice(clause, expected):
    assert grammar.make_passive(clause) == expected


@pytest.mark.parametrize("article", ["a", "an", "the"])
def test_articles_fit(article):
    """Where no word does, the one that is there stays."""
    for word in grammar.GROUPS:
        match = grammar.WORDS.search(f"{article} {word}")
        words = grammar.find_replacements(match)
        assert words
        for other in words:
            fits = (article == "an") == (other[0] in "aeiou") and not other.startswith(("a ", "the "))
            assert article == "the" or fits or words == [match[0]]


@pytest.mark.parametrize("caption", ["A once busy street is quiet.", "An dog barks."])
def test_a_word_that_nothing_can_stand_for_stays(caption):
    first = caption.split()[1]
    sentences = grammar.write_paraphrases(caption, 5)
    assert all(first in sentence for sentence in sentences)


@given(st.text(max_size=200))
def test_any_text_will_do(text):
    plain = [normalise(sentence) for sentence in grammar.write_paraphrases(text, 5)]
    assert len(set(plain)) == len(plain)
    assert normalise(text) not in plain


def test_the_synthetic_corpus():
    """Most of its captions have five other wordings."""
    clips = synthetic.read(None, config=synthetic.Config(150, 50, 50, 5.0, 30.0))[1].clips
    counts = [len(grammar.write_paraphrases(caption, 5)) for clip in clips for caption in clip.captions]
    assert sum(count == 5 for count in counts) > 0.9 * len(counts)
    assert min(counts) > 0
