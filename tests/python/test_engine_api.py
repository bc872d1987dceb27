"""The engine through Python: streaming, sessions, batches, options, stop words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import treadle
from streams import ANSWER, last, wait_until
from treadle import Engine, GenerationConfig
from treadle.errors import (
    UnknownSessionError,
)
from treadle.generator import Generator


def test_the_snippet_of_the_readme() -> None:
    import treadle as tm

    path = tm.demo_model_path()
    engine = tm.TurboMind.from_pretrained(path, model_name="internlm-chat-7b")
    generator = engine.create_instance()
    prompt = engine.model.get_prompt("浙江的省会在哪?")
    input_ids = engine.tokenizer.encode(prompt)
    for outputs in generator.stream_infer(session_id=0, input_ids=[input_ids]):
        res, tokens = outputs[0]
    response = engine.tokenizer.decode(res.tolist())
    assert response == ANSWER
    assert res.dtype == np.int32
    assert tokens == len(res)
    engine.close()


def test_outputs_grow_and_earlier_ones_stay(generator: Generator, prompt_ids: list[int]) -> None:
    seen = list(
        generator.stream_infer(
            None, prompt_ids, ignore_eos=True, max_new_tokens=100, return_text=True
        )
    )
    finals = [outputs[0] for outputs in seen]
    final = finals[-1]
    assert len(finals) > 2
    assert final.finish_reason == "length"
    assert len(final.token_ids) == final.usage.output_tokens == 100
    collected: list[int] = []
    text = ""
    for output in finals:
        collected += output.new_token_ids.tolist()
        text += output.new_text
        assert output.token_ids.tolist() == collected
        assert output.text == text
    assert not final.token_ids.flags.writeable
    assert generator._engine.tokenizer.decode(final.token_ids) == final.text


def test_unpacking_and_single_outputs(generator: Generator, prompt_ids: list[int]) -> None:
    outputs = list(generator.stream_infer(None, prompt_ids, stream_output=False))
    assert len(outputs) == 1
    res, tokens = outputs[0][0]
    assert tokens == len(res) > 0
    assert outputs[0][0].text is None
    assert outputs[0][0].logprobs is None


@pytest.mark.parametrize("form", [list, np.array, tuple, lambda x: [x], lambda x: np.array([x])])
def test_forms_of_one_prompt(generator: Generator, prompt_ids: list[int], form: Any) -> None:
    (output,) = last(generator.stream_infer(None, form(prompt_ids)))
    assert generator._engine.tokenizer.decode(output.token_ids) == ANSWER


def test_a_session_keeps_its_history(engine: Engine, generator: Generator) -> None:
    first = engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
    (answer,) = last(generator.stream_infer(11, first))
    wait_until(lambda: not engine.session(11).busy)
    history = engine.session(11).token_ids.tolist()
    assert history[: len(first)] == first
    assert history[len(first) :] == [*answer.token_ids.tolist(), 4]
    turn = engine.model.get_prompt("这有什么好吃的", sequence_start=False)
    ids = engine.tokenizer.encode(turn, continuation=True)
    (second,) = last(generator.stream_infer(11, ids, sequence_start=False, return_text=True))
    assert "西湖醋鱼" in second.text
    assert second.usage.prompt_tokens == len(history) + len(ids)
    # Only what is new, and the end token, which was generated but never fed.
    assert second.usage.computed_tokens <= len(ids) + 1

    # Rolled back to before the second turn, the same turn gives the same answer.
    (again,) = last(generator.stream_infer(11, ids, step=len(history)))
    assert again.token_ids.tolist() == second.token_ids.tolist()
    # Begun afresh, the history is gone.
    (afresh,) = last(generator.stream_infer(11, first, sequence_start=True))
    assert afresh.usage.prompt_tokens == len(first)
    assert engine.end_session(11)
    assert engine.session(11) is None
    assert not engine.end_session(11)
    with pytest.raises(UnknownSessionError, match="session 11 is unknown"):
        generator.stream_infer(11, ids, sequence_start=False)


def test_sequence_end_drops_the_session(engine: Engine, prompt_ids: list[int]) -> None:
    last(engine.create_instance().stream_infer(12, prompt_ids, sequence_end=True))
    wait_until(lambda: engine.session(12) is None)


def test_step_beyond_the_history_names_both(generator: Generator, prompt_ids: list[int]) -> None:
    last(generator.stream_infer(13, prompt_ids))
    wait_until(lambda: not generator._engine.session(13).busy)
    length = len(generator._engine.session(13).token_ids)
    with pytest.raises(ValueError, match=f"step = 9999 .*{length}"):
        generator.stream_infer(13, prompt_ids, step=9999)
    generator.end_session(13)


def test_batch_equals_alone(engine: Engine, generator: Generator) -> None:
    questions = [
        "浙江的省会在哪?",
        "What is 37 + 48?",
        "Reverse the order: stone cloud engine paper",
    ]
    prompts = [engine.tokenizer.encode(engine.model.get_prompt(q)) for q in questions]
    alone = [last(generator.stream_infer(None, ids))[0].token_ids.tolist() for ids in prompts]
    together = last(generator.stream_infer([21, None, 23], prompts))
    assert [output.token_ids.tolist() for output in together] == alone
    assert [output.index for output in together] == [0, 1, 2]
    assert engine.end_session(21)
    assert engine.end_session(23)


def test_one_config_for_each_prompt(generator: Generator, prompt_ids: list[int]) -> None:
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (3, 5)]
    outputs = last(generator.stream_infer(None, [prompt_ids, prompt_ids], configs))
    assert [len(output.token_ids) for output in outputs] == [3, 5]


def test_continuations_of_one_prompt(generator: Generator, prompt_ids: list[int]) -> None:
    options = {"n": 3, "temperature": 1.5, "max_new_tokens": 8, "ignore_eos": True}
    first = last(generator.stream_infer(None, [prompt_ids] * 2, random_seed=5, **options))
    assert [(o.index, o.continuation) for o in first] == [(p, c) for p in (0, 1) for c in range(3)]
    texts = [o.token_ids.tolist() for o in first]
    assert texts[:3] == texts[3:]  # the same seed
    assert len({tuple(text) for text in texts[:3]}) > 1  # each its own stream of it


def test_a_seed_repeats(generator: Generator, prompt_ids: list[int]) -> None:
    def run(seed: int) -> list[int]:
        options = {"temperature": 1.5, "max_new_tokens": 24, "ignore_eos": True}
        (output,) = last(generator.stream_infer(None, prompt_ids, random_seed=seed, **options))
        return output.token_ids.tolist()

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(4)}) > 1


def test_logprobs(generator: Generator, prompt_ids: list[int]) -> None:
    stream = generator.stream_infer(None, prompt_ids, logprobs=3, prompt_logprobs=0)
    (output,) = last(stream)
    assert len(output.logprobs) == len(output.token_ids)
    for token, position in zip(output.token_ids.tolist(), output.logprobs, strict=True):
        assert position.chosen.token_id == token == position.top[0].token_id  # greedy
        assert len(position.top) == 3
        assert position.top[0].logprob >= position.top[1].logprob
        assert position.chosen.logprob <= 0
    assert [p.chosen.token_id for p in output.prompt_logprobs] == prompt_ids[1:]
    assert all(p.top == () for p in output.prompt_logprobs)


@pytest.mark.parametrize("stop", ["杭", "州。", "会是杭"])
def test_stop_words_on_the_text(generator: Generator, prompt_ids: list[int], stop: str) -> None:
    tokens = list(generator.stream_infer(None, prompt_ids))
    everything = tokens[-1][0].token_ids.tolist()
    (output,) = last(generator.stream_infer(None, prompt_ids, stop_words=[stop], return_text=True))
    assert output.finish_reason == "stop"
    assert output.text == ANSWER[: ANSWER.index(stop)]
    shown = output.token_ids.tolist()
    assert shown == everything[: len(shown)]
    assert output.text.startswith(generator._engine.tokenizer.decode(shown))


def test_text_that_might_begin_a_stop_word_is_held_back(
    generator: Generator, prompt_ids: list[int]
) -> None:
    stream = generator.stream_infer(None, prompt_ids, stop_words=["杭州。x"], return_text=True)
    texts = [outputs[0].text for outputs in stream]
    assert texts[-1] == ANSWER
    assert all("杭" not in text for text in texts[:-1])


def test_a_session_goes_on_from_a_stop_word(engine: Engine, generator: Generator) -> None:
    """The engine may be some tokens further when the text shows the word: they do not count."""
    ids = engine.tokenizer.encode("The sky")
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    (whole,) = last(generator.stream_infer(None, ids, return_text=True, **options))
    stop = whole.text[12:20]
    (output,) = last(generator.stream_infer(31, ids, stop_words=[stop], **options))
    used = output.usage.output_tokens
    assert used < 40
    kept = [*ids, *whole.token_ids.tolist()[:used]]
    wait_until(lambda: not engine.session(31).busy)
    assert engine.session(31).token_ids.tolist() == kept
    (after,) = last(generator.stream_infer(31, [5], max_new_tokens=1))
    assert after.usage.prompt_tokens == len(kept) + 1
    wait_until(lambda: not engine.session(31).busy)
    assert engine.session(31).token_ids.tolist()[: len(kept) + 1] == [*kept, 5]
    engine.end_session(31)


def test_min_new_tokens_bars_stop_words(generator: Generator, prompt_ids: list[int]) -> None:
    options: dict[str, Any] = {"stop_words": ["江"], "ignore_eos": True, "max_new_tokens": 30}
    (output,) = last(generator.stream_infer(None, prompt_ids, min_new_tokens=2, **options))
    assert len(output.token_ids) >= 2


def test_stop_sequences_and_tokens(generator: Generator, prompt_ids: list[int]) -> None:
    (whole,) = last(generator.stream_infer(None, prompt_ids, ignore_eos=True, max_new_tokens=20))
    ids = whole.token_ids.tolist()
    place = 5
    options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 20}
    words = [ids[place : place + 2]]
    (output,) = last(generator.stream_infer(None, prompt_ids, stop_words=words, **options))
    assert output.finish_reason == "stop"
    shown = output.token_ids.tolist()
    assert shown == ids[: len(shown)]
    assert len(shown) <= place
    (output,) = last(
        generator.stream_infer(None, prompt_ids, stop_token_ids=[ids[place]], **options)
    )
    assert output.token_ids.tolist() == ids[: ids.index(ids[place])]


def test_bad_words_do_not_appear(generator: Generator, prompt_ids: list[int]) -> None:
    (output,) = last(generator.stream_infer(None, prompt_ids, bad_words=["杭州"], return_text=True))
    assert "杭州" not in output.text


def test_a_stop_text_does_not_cut_a_turn_that_was_queued_behind_it(engine: treadle.Engine) -> None:
    generator = engine.create_instance()
    session = 987_001
    story = engine.tokenizer.encode(engine.model.get_prompt("Tell me a story about a fox."))
    second = engine.tokenizer.encode(
        engine.model.get_prompt("What is 37 + 48?", sequence_start=False), continuation=True
    )
    greedy = treadle.GenerationConfig(do_sample=False, max_new_tokens=24, ignore_eos=True)
    stopped = generator.stream_infer(session, [story], greedy, stop_words=["fox"])
    behind = generator.stream_infer(session, [second], greedy)
    for _ in stopped:
        pass
    for outputs in behind:
        usage = outputs[0].usage
    after = usage.prompt_tokens + usage.output_tokens
    for outputs in generator.stream_infer(session, [second], greedy):
        usage = outputs[0].usage
    engine.end_session(session)
    assert usage.prompt_tokens == after + len(second)
