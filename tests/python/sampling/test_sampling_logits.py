"""What changes the logits, against the logits processors of transformers on the same logits.
Log-probabilities are taken afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

import devices
import reference
from devices import Device
from reference import HfModel
from treadle import Engine
from treadle.outputs import PositionLogprobs, SequenceOutput

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
