"""Where the output ends: end tokens, stop tokens, stop sequences and stop texts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
from treadle import Engine
from treadle.outputs import SequenceOutput

END_OF_TURN = 4


def test_end_tokens(exact: Engine, prompt: list[int]) -> None:
    """Without ignore_eos the output is what comes before the first end token."""
    ended = reference.run(exact, prompt, do_sample=False)
    assert ended.finish_reason == "stop"
    count = len(ended.token_ids)
    assert count > 40
    assert ended.usage.output_tokens == count + 1
    going_on = reference.run(
        exact, prompt, do_sample=False, ignore_eos=True, max_new_tokens=count + 20
    )
    assert going_on.finish_reason == "length"
    assert going_on.token_ids.tolist()[:count] == ended.token_ids.tolist()
    assert going_on.token_ids[count] == END_OF_TURN
    # Its own stop token still counts.
    stop = reference.run(
        exact,
        prompt,
        do_sample=False,
        ignore_eos=True,
        max_new_tokens=count + 20,
        stop_token_ids=[END_OF_TURN],
    )
    assert stop.finish_reason == "stop"
    assert stop.token_ids.tolist() == ended.token_ids.tolist()


@pytest.fixture(scope="module")
def answer(exact: Engine, prompt: list[int]) -> SequenceOutput:
    return reference.run(
        exact, prompt, do_sample=False, max_new_tokens=60, return_text=True, logprobs=1
    )


def naive_cut(ids: list[int], words: list[list[int]], barred: int) -> tuple[list[int], bool]:
    """The word that is completed first counts, the longest of several at once."""
    for end in range(1, len(ids) + 1):
        matches = [word for word in words if ids[:end][-len(word) :] == word]
        if matches and end > barred:
            return ids[: end - max(map(len, matches))], True
    return ids, False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_stop_sequences(
    exact: Engine, prompt: list[int], answer: SequenceOutput, data: st.DataObject
) -> None:
    """Sequences of the answer, changed sequences and begun ones; some overlap."""
    ids = answer.token_ids.tolist()
    words = []
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(ids) - 1))
        word = ids[begin : begin + data.draw(st.integers(1, 6))]
        if data.draw(st.booleans()):
            word = [*word[:-1], word[-1] + 1]
        words.append(word)
    expected, stopped = naive_cut(ids, words, 0)
    output = reference.run(
        exact, prompt, do_sample=False, max_new_tokens=60, stop_words=words, logprobs=1
    )
    assert output.token_ids.tolist() == expected
    assert output.finish_reason == ("stop" if stopped else "length")
    assert answer.logprobs is not None
    assert output.logprobs == answer.logprobs[: len(expected)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_stop_texts(
    exact: Engine, prompt: list[int], answer: SequenceOutput, data: st.DataObject
) -> None:
    """Parts of the text, wherever its tokens are cut, never show; nothing before them is lost."""
    text = answer.text
    assert text is not None
    words = []
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text) - 1))
        word = text[begin : begin + data.draw(st.integers(1, 12))]
        words.append(word + data.draw(st.sampled_from(["", "", "~"])))
    ends = [text.index(word) + len(word) for word in words if word in text]
    expected = text
    if ends:
        longest = max(len(w) for w in words if text[: min(ends)].endswith(w))
        expected = text[: min(ends) - longest]
    shown = ""
    for (output,) in exact.create_instance().stream_infer(
        None, prompt, do_sample=False, max_new_tokens=60, stop_words=words, return_text=True
    ):
        shown += output.new_text
        assert expected.startswith(shown)
    assert shown == output.text == expected
    assert output.finish_reason == ("stop" if ends else "length")
    kept = output.token_ids.tolist()
    assert kept == answer.token_ids.tolist()[: len(kept)]
    assert expected.startswith(exact.tokenizer.decode(kept).rstrip("\ufffd"))
