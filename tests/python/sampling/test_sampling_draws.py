"""Which tokens are drawn, and how often, against the warpers of transformers on the same logits."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine, GenerationConfig

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
