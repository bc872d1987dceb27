"""The engines that the tests of sessions share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import reference
from devices import Device
from session_turns import Fresh, load_fresh
from treadle import Engine


@pytest.fixture(scope="module")
def path(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save_small_llama(tmp_path_factory.mktemp("llama"), device)


@pytest.fixture(scope="module")
def dynamic_path(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beyond 100 tokens its keys depend on the length of the prompt."""
    return reference.save_small_llama(
        tmp_path_factory.mktemp("dynamic"),
        device,
        max_position_embeddings=100,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
    )


@pytest.fixture(scope="module")
def fresh(device: Device, path: Path) -> Iterator[Fresh]:
    with load_fresh(device, path) as engine:
        yield Fresh(engine)


@pytest.fixture(scope="module")
def roomy(device: Device, path: Path) -> Iterator[Engine]:
    with device.load(path, num_threads=1, max_batch_size=8) as engine:
        yield engine


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def tiny(request: pytest.FixtureRequest, device: Device, path: Path) -> Iterator[Engine]:
    """Room for 512 tokens in all: sessions lose their blocks as soon as something else runs."""
    with device.load(
        path,
        num_threads=1,
        max_batch_size=8,
        cache_max_entry_count=8,
        max_prefill_token_num=64,
        enable_prefix_caching=request.param,
    ) as engine:
        assert engine.info.session_len == 512
        yield engine
