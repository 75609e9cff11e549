"""Normalising captions, hashing them, and swapping them for paraphrases."""

import hashlib

import numpy as np
import pytest

from data.captions import choose_wording, hash_caption, normalise


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Dog barks.", "a dog barks"),
        ("  rain \t falls,\nthen stops!  ", "rain falls then stops"),
        ("the dog's tail", "the dogs tail"),
        ("the dog\u2019s tail", "the dogs tail"),
        ("wind,rain;thunder", "wind rain thunder"),
        ("a low-pitched hum \u2014 a click", "a low pitched hum a click"),
        ("\u201cHello\u201d (twice)", "hello twice"),
        ("at 50 % & 2 kHz", "at 50 2 khz"),
        ("Ein Märzvogel ruft \u00c9l\u00e9gie", "ein märzvogel ruft \u00e9l\u00e9gie"),
        ("\u9ce5\u304c\u9cf4\u304f\u3002", "\u9ce5\u304c\u9cf4\u304f"),
        ("?!", ""),
    ],
)
def test_normalising(caption, expected):
    assert normalise(caption) == expected
    assert normalise(expected) == expected


def test_a_hash_is_16_digits_of_the_sha256_of_the_text_as_published():
    assert hash_caption("Märkt") == hashlib.sha256("Märkt".encode()).hexdigest()[:16]


@pytest.mark.parametrize("corrected", ["a dog barks.", "A dog barks", "A dog barks. ", "A dog barked."])
def test_a_corrected_caption_has_another_hash(corrected):
    assert hash_caption(corrected) != hash_caption("A dog barks.")


def test_a_swap_happens_below_the_probability_alone():
    assert choose_wording("own", ["other"], 0.3, swap_draw=0.29, variant_draw=0) == "other"
    assert choose_wording("own", ["other"], 0.3, swap_draw=0.3, variant_draw=0) == "own"


@pytest.mark.parametrize("swap_draw", [0.0, 0.5, np.nextafter(1, 0)])
def test_probability_0_never_swaps_and_1_always_does(swap_draw):
    assert choose_wording("own", ["other"], 0.0, swap_draw, 0.5) == "own"
    assert choose_wording("own", ["other"], 1.0, swap_draw, 0.5) == "other"


def test_a_caption_without_paraphrases_stands_for_itself():
    assert choose_wording("own", [], 1.0, swap_draw=0.0, variant_draw=0.5) == "own"


def test_variants_are_equally_likely():
    draws = np.arange(300) / 300
    chosen = [choose_wording("own", ["a", "b", "c"], 1.0, 0.0, draw) for draw in draws]
    assert [chosen.count(variant) for variant in "abc"] == [100, 100, 100]
    assert choose_wording("own", ["a", "b", "c"], 1.0, 0.0, np.nextafter(1, 0)) == "c"
