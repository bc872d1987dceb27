"""The engine that the tests of sampling share, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import LlamaForCausalLM

from devices import Device
from reference import HfModel
from treadle import Engine


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
