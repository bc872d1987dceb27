"""pipeline: texts and messages in, responses out, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import treadle
from devices import Device
from treadle import Engine, GenerationConfig, Pipeline
from treadle.conversation import Conversation
from treadle.errors import ChatTemplateError, InvalidArgumentError, TooLongError

ZHEJIANG, ANSWER = "浙江的省会在哪?", "浙江的省会是杭州。"
SUM, SUM_ANSWER = "What is 37 + 48?", "37 + 48 = 85"


@pytest.fixture
def pipe(engine: Engine) -> Pipeline:
    return Pipeline(engine)


def test_one_text(pipe: Pipeline) -> None:
    response = pipe(ZHEJIANG)
    assert response.text == ANSWER
    assert response.finish_reason == "stop"
    assert response.error is None
    assert response.generate_token_len == response.usage.output_tokens > 0
    assert response.input_token_len == response.usage.prompt_tokens > 5
    assert response.logprobs is None


def test_a_list_in_order(pipe: Pipeline) -> None:
    responses = pipe([SUM, ZHEJIANG] * 30)
    assert [response.text for response in responses] == [SUM_ANSWER, ANSWER] * 30
    assert [response.index for response in responses] == list(range(60))
    assert pipe([]) == []


def test_messages(pipe: Pipeline) -> None:
    messages = [
        {"role": "user", "content": ZHEJIANG},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "这有什么好吃的"},
    ]
    assert "西湖醋鱼" in pipe(messages).text
    responses = pipe([messages, [{"role": "user", "content": SUM}], ZHEJIANG])
    assert "西湖醋鱼" in responses[0].text
    assert [response.text for response in responses[1:]] == [SUM_ANSWER, ANSWER]


def test_completion_continues_the_text(pipe: Pipeline, engine: Engine) -> None:
    prompt = "The sky"
    response = pipe(prompt, do_preprocess=False, max_new_tokens=6, ignore_eos=True)
    ids = engine.tokenizer.encode(prompt)
    whole = engine.tokenizer.decode([*ids, *response.token_ids.tolist()])
    assert whole == prompt + response.text


def test_options(pipe: Pipeline) -> None:
    config = GenerationConfig(ignore_eos=True, max_new_tokens=5, logprobs=0)
    response = pipe(SUM, config, max_new_tokens=3)
    assert len(response.token_ids) == len(response.logprobs) == 3
    configs = [GenerationConfig(ignore_eos=True, max_new_tokens=n) for n in (2, 4)]
    assert [len(r.token_ids) for r in pipe([SUM, SUM], configs)] == [2, 4]


def test_continuations_stand_side_by_side(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"n": 2, "temperature": 1.5, "max_new_tokens": 4, "ignore_eos": True}
    responses = pipe([SUM, ZHEJIANG], **options)
    assert [(r.index, r.continuation) for r in responses] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(pipe(SUM, **options)) == 2


def test_one_wrong_prompt_of_several(pipe: Pipeline) -> None:
    long = "The sky " * 3000
    bad = [{"role": "wizard", "content": "hi"}]
    responses = pipe([SUM, long, bad, ZHEJIANG])
    assert [response.finish_reason for response in responses] == ["stop", "error", "error", "stop"]
    assert isinstance(responses[1].error, TooLongError)
    assert isinstance(responses[2].error, ChatTemplateError)
    assert "wizard" in str(responses[2].error)
    with pytest.raises(TooLongError):
        pipe(long)
    with pytest.raises(ChatTemplateError, match="wizard"):
        pipe(bad)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (3, "prompts is a int"),
        ({"role": "user"}, "prompts is a dict"),
        ([ZHEJIANG, 3], r"prompts\[1\] is a int"),
        (b"hi", "prompts is a bytes"),
    ],
)
def test_what_is_no_prompt(pipe: Pipeline, prompts: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pipe(prompts)


def test_messages_need_the_chat_format(pipe: Pipeline) -> None:
    with pytest.raises(InvalidArgumentError, match="do_preprocess is False"):
        pipe([{"role": "user", "content": SUM}], do_preprocess=False)


def test_streaming(pipe: Pipeline) -> None:
    texts = {0: "", 1: ""}
    ends = []
    for response in pipe.stream_infer([ZHEJIANG, SUM]):
        texts[response.index] += response.new_text
        assert response.text == texts[response.index]
        if response.finish_reason:
            ends.append(response.index)
    assert texts == {0: ANSWER, 1: SUM_ANSWER}
    assert sorted(ends) == [0, 1]


def test_leaving_the_stream_cancels(pipe: Pipeline, engine: Engine) -> None:
    before = engine.stats().requests_cancelled
    stream = pipe.stream_infer([SUM] * 3, ignore_eos=True, max_new_tokens=1900)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    while engine.stats().requests_cancelled < before + 3:
        pass


def test_more_prompts_than_the_queue_holds(device: Device, demo_path: str) -> None:
    options: dict[str, Any] = {
        "max_batch_size": 2,
        "max_queue_size": 1,
        "cache_max_entry_count": 64,
    }
    with treadle.pipeline(demo_path, device=device.name, **options) as pipe:
        assert [r.text for r in pipe([SUM] * 20)] == [SUM_ANSWER] * 20


def test_a_queue_that_others_fill(device: Device, demo_path: str) -> None:
    options: dict[str, Any] = {
        "max_batch_size": 1,
        "max_queue_size": 1,
        "cache_max_entry_count": 64,
    }
    with treadle.pipeline(demo_path, device=device.name, **options) as pipe:
        generator = pipe.engine.create_instance()
        long: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 300}
        running = generator.stream_infer(None, [1, 5], **long)
        next(running)
        waiting = generator.stream_infer(None, [1, 5], **long)
        assert [r.text for r in pipe([SUM] * 3)] == [SUM_ANSWER] * 3
        running.close()
        waiting.close()


@pytest.fixture
def conversation(engine: Engine) -> Iterator[Conversation]:
    chat = Conversation(engine)
    yield chat
    chat.reset()


def text(stream: Any) -> str:
    return "".join(output.new_text for output in stream)


def test_a_conversation_sends_only_what_is_new(engine: Engine, conversation: Conversation) -> None:
    assert text(conversation.ask(ZHEJIANG)) == ANSWER
    outputs = list(conversation.ask("这有什么好吃的"))
    assert "西湖醋鱼" in outputs[-1].text
    whole = engine.tokenizer.encode(engine.model.messages2prompt(conversation.messages[:3]))
    assert outputs[-1].usage.prompt_tokens == len(whole)
    assert outputs[-1].usage.computed_tokens < len(whole)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_a_conversation_survives_its_session(engine: Engine, conversation: Conversation) -> None:
    text(conversation.ask(ZHEJIANG))
    engine.end_session(conversation.session_id)  # as when it has expired
    assert "西湖醋鱼" in text(conversation.ask("这有什么好吃的"))


@pytest.mark.parametrize("how", ["length", "stop word", "left"])
def test_an_answer_cut_short_is_closed(
    engine: Engine, conversation: Conversation, how: str
) -> None:
    """The next turn begins behind an end token, generated or not."""
    if how == "length":
        text(conversation.ask("Tell me a story.", max_new_tokens=3, ignore_eos=True))
    elif how == "stop word":
        text(conversation.ask(ZHEJIANG, stop_words=["会"]))
    else:
        for _ in conversation.ask("Tell me a story.", ignore_eos=True, max_new_tokens=1500):
            break
    text(conversation.ask(SUM, max_new_tokens=1))
    while engine.session(conversation.session_id).busy:
        pass
    history = engine.session(conversation.session_id).token_ids.tolist()
    decoded = engine.tokenizer.decode(history, skip_special_tokens=False)
    assert f"<|im_end|>\n<|im_start|>user\n{SUM}<|im_end|>\n<|im_start|>assistant" in decoded
    assert "<|im_end|><|im_end|>" not in decoded


def test_reset_forgets(conversation: Conversation) -> None:
    text(conversation.ask(ZHEJIANG))
    conversation.reset()
    assert conversation.messages == []
    (first, *_) = list(conversation.ask(SUM))
    assert first.usage.prompt_tokens < 30
