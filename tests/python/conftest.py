"""What the Python tests share: the devices, and the demo model, loaded once on each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devices
import treadle
from devices import Content, Device
from treadle import Engine
from treadle.generator import Generator


def device_of(item: pytest.Item) -> str | None:
    """The device that a test is parametrised to."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("device") if callspec else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests of a device that cannot be used here, with the engine's reason. With
    --device, leaves the tests of that device alone, and they fail instead."""
    wanted = config.getoption("--device")
    if wanted is not None:
        others = [item for item in items if device_of(item) != wanted]
        items[:] = [item for item in items if device_of(item) == wanted]
        config.hook.pytest_deselected(items=others)
        return
    for item in items:
        device = device_of(item)
        reason = device and devices.why_not(device)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Says where contents differ: their whole texts are long."""
    if op != "==" or not (isinstance(left, list) and isinstance(right, list)):
        return None
    pairs = list(zip(left, right, strict=False))
    if not pairs or not all(isinstance(x, Content) for pair in pairs for x in pair):
        return None
    lines = [f"[{i}] {a.difference(b)}" for i, (a, b) in enumerate(pairs) if a != b]
    return [f"{len(left)} contents == {len(right)} contents", *lines]


@pytest.fixture(scope="session", params=sorted(devices.DEVICES))
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn."""
    reason = devices.why_not(request.param)
    if reason is not None:
        pytest.fail(f"--device {request.param}: {reason}")
    return devices.DEVICES[request.param]


@pytest.fixture(scope="session")
def demo_path() -> str:
    return treadle.demo_model_path()


@pytest.fixture(scope="session")
def engine(device: Device, demo_path: str) -> Iterator[Engine]:
    """The demo model. Tests that need other options or close it load their own."""
    with device.load(
        demo_path, max_batch_size=16, cache_max_entry_count=512, random_seed=7
    ) as loaded:
        yield loaded


@pytest.fixture
def generator(engine: Engine) -> Generator:
    return engine.create_instance()


@pytest.fixture
def prompt_ids(engine: Engine) -> list[int]:
    """«浙江的省会在哪?» in the model's chat format; answered with «浙江的省会是杭州。»"""
    return engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
