"""Stop words on streamed text, against a naive reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import ConfigError
from treadle.stop_words import StopWords


def naive(words: list[str], text: str) -> tuple[str, bool]:
    """Reads character by character and stops when the text read ends with a stop word."""
    for end in range(1, len(text) + 1):
        matches = [word for word in words if text[:end].endswith(word)]
        if matches:
            return text[: end - max(map(len, matches))], True
    return text, False


def naive_held(words: list[str], text: str) -> int:
    """Length of the longest end of the text that begins some word."""
    lengths = (n for n in range(len(text), 0, -1) if any(w.startswith(text[-n:]) for w in words))
    return next(lengths, 0)


WORDS = st.lists(st.text("ab你", min_size=1, max_size=5), max_size=4)


@settings(max_examples=1500, deadline=None)
@given(WORDS, st.lists(st.text("ab你c", max_size=8), max_size=8))
def test_equals_the_naive_reference(words: list[str], chunks: list[str]) -> None:
    stop = StopWords(words)
    shown, stopped, seen = "", False, ""
    for chunk in chunks:
        emitted, stopped = stop.feed(chunk)
        shown, seen = shown + emitted, seen + chunk
        expected, expected_stop = naive(words, seen)
        assert stopped == expected_stop
        if stopped:
            assert shown == expected
        else:
            # Exactly what might begin a stop word is held back, no more and no less.
            assert shown == seen[: len(seen) - naive_held(words, seen)]
    shown += stop.flush()
    assert (shown, stopped) == naive(words, seen)
    assert (stop.matched is not None) == stopped


def test_word_across_pieces() -> None:
    stop = StopWords(["<|im_end|>", "\nUser:"])
    assert stop.feed("Hi <|im") == ("Hi ", False)
    assert stop.feed("_start|>") == ("<|im_start|>", False)
    assert stop.feed("\nUs") == ("", False)
    assert stop.feed("er: more") == ("", True)
    assert stop.matched == "\nUser:"
    assert stop.feed("later") == ("", True)
    assert stop.flush() == ""


def test_flush_gives_what_was_held_back() -> None:
    stop = StopWords(["END"])
    assert stop.feed("the EN") == ("the ", False)
    assert stop.flush() == "EN"
    assert stop.flush() == ""


def test_a_single_string_is_one_word() -> None:
    assert StopWords("ab").feed("xaby") == ("x", True)
    assert StopWords([]).feed("anything") == ("anything", False)


@pytest.mark.parametrize("bad", [[""], ["a", ""], [1], [None]])
def test_bad_words_are_named(bad: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"stop_words\[{len(bad) - 1}\] is"):
        StopWords(bad)
