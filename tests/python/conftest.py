"""What the Python tests share: the demo model, loaded once for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import treadle
from treadle import Engine, EngineConfig


@pytest.fixture(scope="session")
def demo_path() -> str:
    return treadle.demo_model_path()


@pytest.fixture(scope="session")
def engine(demo_path: str) -> Iterator[Engine]:
    """The demo model. Tests that need other options or close it load their own."""
    config = EngineConfig(max_batch_size=16, cache_max_entry_count=512, random_seed=7)
    with Engine.from_pretrained(demo_path, config=config) as loaded:
        yield loaded


@pytest.fixture
def prompt_ids(engine: Engine) -> list[int]:
    """«浙江的省会在哪?» in the model's chat format; answered with «浙江的省会是杭州。»"""
    return engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
