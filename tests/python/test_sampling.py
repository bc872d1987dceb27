"""How tokens are chosen, against the logits processors of transformers on the same logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine, GenerationConfig
from treadle.outputs import PositionLogprobs, SequenceOutput

END_OF_TURN = 4


@pytest.fixture(scope="module")
def exact(device: Device, demo_path: str) -> Iterator[Engine]:
    with device.load(
        demo_path, dtype=device.dtype, num_threads=2, cache_max_entry_count=300
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(demo_path: str) -> HfModel:
    return LlamaForCausalLM.from_pretrained(demo_path, dtype="float32").eval()


@pytest.fixture(scope="module")
def prompt(exact: Engine) -> list[int]:
    """Answered with a story of about a hundred tokens."""
    return exact.tokenizer.encode(exact.model.get_prompt("Tell me a story about a fox."))


@pytest.fixture(scope="module")
def open_prompt(exact: Engine) -> list[int]:
    """A beginning of which the model is unsure: many tokens have a chance."""
    return exact.tokenizer.encode("def quicksort(", add_bos=True)


# What changes the logits. Log-probabilities are taken afterwards.

GREEDY: dict[str, Any] = {"do_sample": False, "ignore_eos": True, "logprobs": 5}


def check_greedy(
    exact: Engine,
    model: HfModel,
    prompt: list[int],
    processors: Sequence[Any],
    presence: float = 0.0,
    frequency: float = 0.0,
    **options: Any,
) -> SequenceOutput:
    """Generates 40 tokens and compares every log-probability, and that the best one was taken."""
    output = reference.run(exact, prompt, max_new_tokens=40, **(GREEDY | options))
    ids = output.token_ids.tolist()
    assert output.logprobs is not None
    assert len(output.logprobs) == len(ids) == 40
    rows = reference.logits(model, [*prompt, *ids])[len(prompt) - 1 :]
    for i, entry in enumerate(output.logprobs):
        scores = LogitsProcessorList(processors)(
            torch.tensor([[*prompt, *ids[:i]]]), rows[i : i + 1]
        )
        for token, count in Counter(ids[:i]).items():
            scores[0, token] -= presence + frequency * count
        check_position(devices.of(exact), torch.log_softmax(scores[0], -1), entry)
        assert entry.chosen.token_id == ids[i]
    return output


def check_position(device: Device, row: torch.Tensor, entry: PositionLogprobs) -> None:
    tolerance = 2 * device.tolerance  # penalties may double a difference
    best = row.topk(len(entry.top)).values.tolist()
    chosen = float(row[entry.chosen.token_id])
    assert entry.chosen.logprob == pytest.approx(chosen, abs=tolerance)
    assert chosen == pytest.approx(best[0], abs=tolerance)
    assert [top.logprob for top in entry.top] == pytest.approx(best, abs=tolerance)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty(
    exact: Engine, model: HfModel, prompt: list[int], penalty: float
) -> None:
    """Over prompt and output."""
    processors = [RepetitionPenaltyLogitsProcessor(penalty)]
    check_greedy(exact, model, prompt, processors, repetition_penalty=penalty)


@pytest.mark.parametrize(
    ("presence", "frequency"), [(1.5, 0.0), (0.0, 0.7), (0.4, 0.3), (-1, -0.2)]
)
def test_presence_and_frequency_penalty(
    exact: Engine, model: HfModel, open_prompt: list[int], presence: float, frequency: float
) -> None:
    """Over the output alone. transformers has neither: logit - presence - frequency * count, as
    OpenAI's API documents it."""
    check_greedy(
        exact,
        model,
        open_prompt,
        [],
        presence,
        frequency,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )


def test_logit_bias(exact: Engine, model: HfModel, open_prompt: list[int]) -> None:
    plain = reference.run(exact, open_prompt, max_new_tokens=40, **GREEDY).token_ids.tolist()
    bias = {token: -3.0 + i for i, token in enumerate(dict.fromkeys(plain))}
    processors = [SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})]
    check_greedy(exact, model, open_prompt, processors, logit_bias=bias)


def test_a_bias_of_minus_infinity_bars_a_token(
    exact: Engine, model: HfModel, open_prompt: list[int]
) -> None:
    plain = reference.run(exact, open_prompt, max_new_tokens=40, **GREEDY).token_ids.tolist()
    bias = dict.fromkeys(plain[:3], -math.inf)
    processors = [NoBadWordsLogitsProcessor([[token] for token in bias])]
    output = check_greedy(exact, model, open_prompt, processors, logit_bias=bias)
    assert not set(output.token_ids.tolist()) & set(bias)


def test_a_large_bias_forces_a_token(exact: Engine, open_prompt: list[int]) -> None:
    output = reference.run(exact, open_prompt, max_new_tokens=5, logit_bias={77: 1e4}, **GREEDY)
    assert output.token_ids.tolist() == [77] * 5
    assert reference.chosen(output.logprobs) == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_bad_words(exact: Engine, model: HfModel, prompt: list[int], length: int) -> None:
    """Sequences that the greedy answer has; the last token of each is barred where it would
    complete one."""
    plain = reference.run(exact, prompt, max_new_tokens=40, **GREEDY).token_ids.tolist()
    words = [plain[i : i + length] for i in (0, 5, 6, 20)]
    # One that the prompt begins and the output would complete.
    words.append([*prompt, plain[0]][-length:])
    output = check_greedy(exact, model, prompt, [NoBadWordsLogitsProcessor(words)], bad_words=words)
    text = [*prompt[len(prompt) - length + 1 :], *output.token_ids.tolist()]
    windows = [text[i : i + length] for i in range(len(text))]
    assert not any(word in windows for word in words)


def test_min_new_tokens(exact: Engine, model: HfModel, prompt: list[int]) -> None:
    """The answer ends by itself, so the end must be barred to get this far."""
    whole = reference.run(exact, prompt, do_sample=False)
    assert whole.finish_reason == "stop"
    cut = [*prompt, *whole.token_ids.tolist()[:-15]]
    processors = [MinNewTokensLengthLogitsProcessor(len(cut), 40, exact.info.eos_token_ids)]
    output = check_greedy(exact, model, cut, processors, ignore_eos=False, min_new_tokens=40)
    assert not set(output.token_ids.tolist()) & set(exact.info.eos_token_ids)


def test_everything_at_once(exact: Engine, model: HfModel, prompt: list[int]) -> None:
    plain = reference.run(exact, prompt, max_new_tokens=40, **GREEDY).token_ids.tolist()
    bias = {plain[2]: -2.0, plain[4]: 1.0, 300: 0.5}
    words = [plain[6:8], [plain[9]]]
    processors = [
        SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}),
        RepetitionPenaltyLogitsProcessor(1.1),
        NoBadWordsLogitsProcessor(words),
        MinNewTokensLengthLogitsProcessor(len(prompt), 40, exact.info.eos_token_ids),
    ]
    check_greedy(
        exact,
        model,
        prompt,
        processors,
        logit_bias=bias,
        repetition_penalty=1.1,
        bad_words=words,
        min_new_tokens=40,
    )


def test_temperature_and_truncation_leave_logprobs_alone(
    device: Device, exact: Engine, model: HfModel, open_prompt: list[int]
) -> None:
    """They are of the model's distribution, also for what was drawn from another one."""
    output = reference.run(
        exact,
        open_prompt,
        max_new_tokens=20,
        logprobs=4,
        temperature=2.5,
        top_k=50,
        top_p=0.9,
        random_seed=5,
        ignore_eos=True,
    )
    ids = output.token_ids.tolist()
    rows = reference.logprobs(model, [*open_prompt, *ids])[len(open_prompt) - 1 :]
    assert output.logprobs is not None
    for row, entry, token in zip(rows, output.logprobs, ids, strict=False):
        assert entry.chosen.token_id == token
        assert entry.chosen.logprob == pytest.approx(float(row[token]), abs=2 * device.tolerance)
        best = row.topk(4).values.tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(best, abs=2 * device.tolerance)


# Draws.

SEEDS = 64
CONTINUATIONS = 64


def draw(engine: Engine, prompt: list[int], **options: Any) -> npt.NDArray[np.int64]:
    """The first token of each continuation under each seed: [SEEDS, CONTINUATIONS]."""
    generator = engine.create_instance()
    drawn = []
    for seed in range(SEEDS):
        (outputs,) = generator.stream_infer(
            None,
            prompt,
            max_new_tokens=1,
            n=CONTINUATIONS,
            random_seed=seed,
            do_sample=True,
            ignore_eos=True,
            stream_output=False,
            **options,
        )
        drawn.append([int(output.token_ids[0]) for output in outputs])
    return np.array(drawn)


def frequencies(drawn: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float64]:
    return np.bincount(drawn.ravel(), minlength=vocab_size) / drawn.size


def check_frequencies(
    device: Device, drawn: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]
) -> None:
    """Within five standard deviations, which no seed misses by chance; nothing outside, but for
    what half precision moves across the bound of top_k, top_p or min_p: such a token has no
    expectation to be compared with, so all of them together are bounded. A log-probability that is
    off by the device's tolerance is a probability off by that part."""
    observed = frequencies(drawn, len(expected))
    outside = expected == 0
    assert observed[outside].sum() <= (0 if device.exact else 0.005)
    deviation = np.sqrt(expected * (1 - expected) / drawn.size)
    shift = 0.0 if device.exact else device.tolerance * expected
    close = np.abs(observed - expected) <= 5 * deviation + shift + 2 / drawn.size
    assert close[~outside].all()
    assert observed[expected > 0.01].all()


WARPERS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "plain": ([], {}),
    "cold": ([TemperatureLogitsWarper(0.6)], {"temperature": 0.6}),
    "hot": ([TemperatureLogitsWarper(1.7)], {"temperature": 1.7}),
    "top_k": ([TopKLogitsWarper(7)], {"top_k": 7}),
    "top_p": ([TopPLogitsWarper(0.6)], {"top_p": 0.6}),
    "min_p": ([MinPLogitsWarper(0.2)], {"min_p": 0.2}),
    "hot top_k top_p": (
        [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20), TopPLogitsWarper(0.7)],
        {"temperature": 1.5, "top_k": 20, "top_p": 0.7},
    ),
    "hot top_p min_p": (
        [TemperatureLogitsWarper(2.0), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1)],
        {"temperature": 2.0, "top_p": 0.9, "min_p": 0.1},
    ),
    "everything": (
        [
            TemperatureLogitsWarper(1.3),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.02),
        ],
        {"temperature": 1.3, "top_k": 30, "top_p": 0.95, "min_p": 0.02},
    ),
}


@pytest.mark.parametrize(("warpers", "options"), WARPERS.values(), ids=WARPERS.keys())
def test_draws_follow_the_distribution(
    exact: Engine,
    model: HfModel,
    open_prompt: list[int],
    warpers: list[Any],
    options: dict[str, Any],
) -> None:
    logits = reference.logits(model, open_prompt)[-1:]
    warped = LogitsProcessorList(warpers)(torch.tensor([open_prompt]), logits)
    expected = torch.softmax(warped[0], -1).numpy()
    assert np.count_nonzero(expected > 0.001) > 2  # something to choose from
    check_frequencies(devices.of(exact), draw(exact, open_prompt, **options), expected)


def test_penalties_come_before_the_draw(
    exact: Engine, model: HfModel, open_prompt: list[int]
) -> None:
    logits = reference.logits(model, open_prompt)[-1:]
    best = logits[0].topk(4).indices.tolist()
    bias = {best[0]: -1.5, best[1]: -math.inf}
    logits[0, best[0]] -= 1.5
    logits[0, best[1]] = -math.inf
    logits[0, best[2]] = -math.inf
    warpers = [TemperatureLogitsWarper(1.4), TopPLogitsWarper(0.8)]
    warped = LogitsProcessorList(warpers)(torch.tensor([open_prompt]), logits)
    expected = torch.softmax(warped[0], -1).numpy()
    drawn = draw(
        exact, open_prompt, logit_bias=bias, bad_words=[best[2:3]], temperature=1.4, top_p=0.8
    )
    check_frequencies(devices.of(exact), drawn, expected)


def test_draws_are_independent(exact: Engine, open_prompt: list[int]) -> None:
    """Neither neighbouring seeds nor continuations of one seed follow each other."""
    drawn = draw(exact, open_prompt)
    top = Counter(drawn.ravel().tolist()).most_common(1)[0][0]
    hits = (drawn == top).astype(float)
    share = hits.mean()
    assert 0.02 < share < 0.98
    deviation = 5 * math.sqrt(share**2 * (1 - share**2) / drawn.size)
    for one, other in [(hits[:, 1:], hits[:, :-1]), (hits[1:], hits[:-1])]:
        assert abs((one * other).mean() - share**2) < 2 * deviation
    # As many draws of the top token under each seed, and in each place, as chance allows.
    for axis in (0, 1):
        spread = hits.mean(axis=axis).var() / (share * (1 - share) / 64)
        assert 0.4 < spread < 2.0


def test_positions_are_independent(exact: Engine) -> None:
    """A uniform distribution at every step, by way of an overwhelming bias on eight tokens: every
    pair of neighbours is as likely as the others."""
    bias = dict.fromkeys(range(300, 308), 1e4)
    # Of logits this large, float32 keeps differences below 0.001 only.
    config = GenerationConfig(
        max_new_tokens=600, do_sample=True, logit_bias=bias, temperature=1e4, top_k=8
    )
    (outputs,) = exact.create_instance().stream_infer(
        None,
        [[1, 50]] * 8,
        [config.replace(random_seed=seed) for seed in range(8)],
        stream_output=False,
    )
    tokens = [output.token_ids - 300 for output in outputs]
    rows = np.array(tokens)
    assert rows.min() >= 0
    assert rows.max() <= 7
    assert len({tuple(row) for row in rows.tolist()}) == 8
    pairs = np.bincount((8 * rows[:, 1:] + rows[:, :-1]).ravel(), minlength=64)
    expected = 8 * 599 / 64
    assert (np.abs(pairs - expected) < 5 * math.sqrt(expected)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"temperature": 0.0},
        {"temperature": 1e-5, "do_sample": True},
        {"top_p": 1e-6, "do_sample": True},
        {"min_p": 1.0, "do_sample": True},
        {"do_sample": False, "temperature": 5.0},
    ],
    ids=str,
)
def test_ways_to_be_greedy(exact: Engine, open_prompt: list[int], options: dict[str, Any]) -> None:
    greedy = reference.run(exact, open_prompt, max_new_tokens=30, do_sample=False, ignore_eos=True)
    output = reference.run(exact, open_prompt, max_new_tokens=30, ignore_eos=True, **options)
    assert output.token_ids.tolist() == greedy.token_ids.tolist()


# Where the output ends.


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
