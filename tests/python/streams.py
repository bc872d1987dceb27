"""Reading streams to their end, for the tests of the engine through Python."""

from __future__ import annotations

import time
from typing import Any

from treadle.outputs import SequenceOutput

ANSWER = "浙江的省会是杭州。"


def last(stream: Any) -> list[SequenceOutput]:
    outputs: list[SequenceOutput] = []
    for outputs in stream:  # noqa: B007
        pass
    return outputs


def wait_until(condition: Any) -> None:
    """For what the engine's thread does a moment later."""
    while not condition():
        time.sleep(0.001)
