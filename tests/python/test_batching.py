"""A sequence gives the same tokens and the same log-probabilities alone and in any batch: whatever
else runs, in whatever chunks, with reused blocks or recomputed ones. Bit for bit on the CPU; on a
GPU as close as half precision is, and where it samples, with equal draws of equal distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devices
import reference
from devices import Content, Device
from treadle import Engine, GenerationConfig
from treadle.outputs import SequenceOutput

VOCAB = 200
TEXT = reference.random_ids(400, VOCAB, seed=1)


@dataclass(frozen=True)
class Job:
    """A prompt (some tokens of TEXT, so that jobs share beginnings, then its own) and options."""

    shared: int
    own: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def prompt(self) -> list[int]:
        return [*TEXT[: self.shared], *self.own]

    @property
    def config(self) -> GenerationConfig:
        return GenerationConfig(**dict(self.options))

    def greedy(self) -> Job:
        """The same without draws."""
        options = dict(self.options) | {"do_sample": False}
        return Job(self.shared, self.own, tuple(options.items()))


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    options: dict[str, Any] = {
        "max_new_tokens": draw(st.integers(1, 90)),
        "random_seed": draw(st.integers(0, 5)),
        "logprobs": draw(st.sampled_from([0, 3])),
    }
    if draw(st.booleans()):
        options |= {"do_sample": True, "temperature": 1.5, "top_k": draw(st.sampled_from([0, 9]))}
    if draw(st.booleans()):
        options |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1}
    if draw(st.integers(0, 3)) == 0:
        options |= {"prompt_logprobs": 1}
    if draw(st.integers(0, 3)) == 0:
        options |= {"n": 3, "do_sample": True}
    return Job(
        shared=draw(st.sampled_from([0, 5, 63, 64, 65, 128, 200])),
        own=tuple(draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80))),
        options=tuple(options.items()),
    )


def run_together(engine: Engine, batch: Sequence[Job]) -> list[list[Content]]:
    """The results of each job's continuations, all jobs submitted at once."""
    (outputs,) = engine.create_instance().stream_infer(
        None,
        [job.prompt for job in batch],
        [job.config for job in batch],
        stream_output=False,
    )
    content = devices.of(engine).content
    return [content([o for o in outputs if o.index == i]) for i in range(len(batch))]


#: A roomy engine, one that preempts and cuts prompts, one with hardly any place in its batch.
ENGINES: dict[str, dict[str, Any]] = {
    "roomy": {"max_batch_size": 32, "num_threads": 1},
    "crowded": {
        "max_batch_size": 16,
        "num_threads": 2,
        "max_prefill_token_num": 50,
        "cache_max_entry_count": 14,
    },
    "narrow": {"max_batch_size": 3, "num_threads": 3, "max_prefill_token_num": 7},
}


class Engines:
    """One engine for each set of options, and what each job gives when it runs alone."""

    def __init__(self, device: Device, path: Path, stack: ExitStack) -> None:
        def load(**options: Any) -> Engine:
            return stack.enter_context(device.load(path, session_len=512, **options))

        self.mixed = {name: load(**options) for name, options in ENGINES.items()}
        self._alone = load(max_batch_size=3, num_threads=1, enable_prefix_caching=False)
        self._known: dict[Job, list[Content]] = {}

    def alone(self, job: Job) -> list[Content]:
        if job not in self._known:
            self._known[job] = run_together(self._alone, [job])[0]
        return self._known[job]


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def engines(
    request: pytest.FixtureRequest, device: Device, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    path = reference.save_small_llama(tmp_path_factory.mktemp("llama"), device, request.param)
    with ExitStack() as stack:
        yield Engines(device, path, stack)


@settings(max_examples=120, deadline=None)
@given(st.lists(jobs(), min_size=1, max_size=8), st.sampled_from(sorted(ENGINES)))
def test_any_mix_gives_what_each_gives_alone(
    device: Device, engines: Engines, batch: list[Job], name: str
) -> None:
    if not device.exact:
        batch = [job.greedy() for job in batch]
    together = run_together(engines.mixed[name], batch)
    for job, results in zip(batch, together, strict=True):
        assert results == engines.alone(job)


def test_preempted_sequences_lose_nothing(engines: Engines) -> None:
    engine = engines.mixed["crowded"]
    before = engine.stats().preemptions
    batch = [
        Job(60, (i,), (("max_new_tokens", 150 + i), ("ignore_eos", True), ("logprobs", 2)))
        for i in range(8)
    ]
    assert run_together(engine, batch) == [engines.alone(job) for job in batch]
    assert engine.stats().preemptions > before


def test_continuations_are_preempted_one_by_one(device: Device, engines: Engines) -> None:
    engine = engines.mixed["crowded"]
    before = engine.stats().preemptions
    options = {"max_new_tokens": 180, "ignore_eos": True, "random_seed": 4, "logprobs": 1}
    batch = [
        Job(100, (i,), tuple((options | {"n": 3, "do_sample": True}).items())) for i in range(3)
    ]
    if not device.exact:
        batch = [job.greedy() for job in batch]
    assert run_together(engine, batch) == [engines.alone(job) for job in batch]
    assert engine.stats().preemptions > before


def test_late_arrivals_change_nothing(engines: Engines) -> None:
    """Requests come one after the other while earlier ones are half way."""
    engine = engines.mixed["roomy"]
    generator = engine.create_instance()
    batch = [
        Job(
            64 * (i % 3),
            (i, 7, i),
            (("max_new_tokens", 100), ("ignore_eos", True), ("logprobs", 1)),
        )
        for i in range(6)
    ]
    streams = []
    newest: list[list[SequenceOutput]] = []
    for job in batch:
        streams.append(generator.stream_infer(None, job.prompt, job.config))
        newest.append([])
        newest = [next(stream, last) for stream, last in zip(streams, newest, strict=True)]
    for job, stream, last in zip(batch, streams, newest, strict=True):
        for last in stream:  # noqa: B007
            pass
        assert devices.of(engine).content(last) == engines.alone(job)


def test_decoding_equals_prefill(engines: Engines) -> None:
    """What was generated token by token has the log-probabilities of a prompt of the same ids."""
    engine = engines.mixed["roomy"]
    prompt = TEXT[:75]
    output = reference.run(engine, prompt, max_new_tokens=140, ignore_eos=True, logprobs=4)
    whole = reference.run(
        engine, [*prompt, *output.token_ids.tolist()], max_new_tokens=1, prompt_logprobs=4
    )
    assert whole.prompt_logprobs is not None
    (content,) = devices.of(engine).content([output])
    assert not content.apart("logprobs", whole.prompt_logprobs[len(prompt) - 1 :], output.logprobs)


# Seeds and continuations.


def sampled(engine: Engine, prompt: list[int], **options: Any) -> list[list[int]]:
    options = {"do_sample": True, "max_new_tokens": 30, "ignore_eos": True} | options
    (outputs,) = engine.create_instance().stream_infer(None, prompt, stream_output=False, **options)
    return [output.token_ids.tolist() for output in outputs]


def test_a_seed_gives_the_same_tokens_whatever_else_runs(engines: Engines) -> None:
    engine = engines.mixed["roomy"]
    first = sampled(engine, TEXT[:40], random_seed=11)
    filler = engine.create_instance().stream_infer(
        None, [TEXT[:100], TEXT[3:50]], do_sample=True, max_new_tokens=200, ignore_eos=True
    )
    next(filler)
    assert sampled(engine, TEXT[:40], random_seed=11) == first
    filler.close()
    assert sampled(engine, TEXT[:40], random_seed=12) != first


def test_continuations_have_their_own_streams_of_the_seed(engines: Engines) -> None:
    engine = engines.mixed["roomy"]
    if not devices.of(engine).exact:
        # Else the first call alone would compute the block that the others find in the cache, in
        # another chunk, and a draw between two tokens can hang on the rounding of its keys.
        sampled(engine, TEXT[:70], random_seed=0)
    four = sampled(engine, TEXT[:70], random_seed=3, n=4)
    assert len({tuple(ids) for ids in four}) == 4
    assert sampled(engine, TEXT[:70], random_seed=3, n=2) == four[:2]
    assert sampled(engine, TEXT[:70], random_seed=3) == four[:1]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128])
def test_greedy_continuations_are_equal(engines: Engines, length: int) -> None:
    """They share the prompt's blocks and copy the last one when they write to it."""
    engine = engines.mixed["roomy"]
    same = sampled(engine, TEXT[:length], n=5, do_sample=False)
    assert len({tuple(ids) for ids in same}) == 1
    assert same[:1] == sampled(engine, TEXT[:length], do_sample=False)


def test_continuations_compute_the_prompt_once(engines: Engines) -> None:
    engine = engines.mixed["roomy"]
    prompt = reference.random_ids(150, VOCAB, seed=99)
    before = engine.stats()
    sampled(engine, prompt, n=6)
    after = engine.stats()
    assert after.computed_tokens - before.computed_tokens == 150
    assert after.copied_blocks - before.copied_blocks == 5  # the sixth writes to the original


def test_requests_without_a_seed_differ(engines: Engines) -> None:
    engine = engines.mixed["roomy"]
    outputs = [sampled(engine, TEXT[:40])[0] for _ in range(4)]
    assert len({tuple(ids) for ids in outputs}) == 4


def test_the_engine_seed_repeats_a_run(device: Device, tmp_path: Path) -> None:
    path = reference.save_small_llama(tmp_path, device)

    def run(seed: int) -> list[list[int]]:
        with device.load(path, random_seed=seed, num_threads=1) as engine:
            return [sampled(engine, TEXT[:30])[0] for _ in range(3)]

    assert run(5) == run(5) != run(6)


# The demo model, whose matrices are large enough to be shared between threads.


def test_threads_and_batches_on_the_demo_model(device: Device, demo_path: str) -> None:
    expected: list[Content] | None = None
    for threads in (1, 2, 3) if device.name == "cpu" else (1,):
        with device.load(demo_path, num_threads=threads, max_batch_size=8) as engine:
            assert engine.info.num_threads == threads or device.name != "cpu"
            texts = ["四川的省会在哪?", "capital of Japan?", "What is 12 + 30?", "你好!"]
            prompts = [engine.tokenizer.encode(engine.model.get_prompt(text)) for text in texts]
            # Past its end an answer is full of near ties, which half precision decides either way.
            config = GenerationConfig(
                max_new_tokens=40, ignore_eos=device.exact, logprobs=3, prompt_logprobs=1
            )
            outputs = [reference.run(engine, ids, gen_config=config) for ids in prompts]
            alone = device.content(outputs)
            (outputs,) = engine.create_instance().stream_infer(
                None, prompts, config, stream_output=False
            )
            assert device.content(outputs) == alone
        expected = expected or alone
        assert alone == expected
