"""What the tests of treadle lite work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lite_models import llama, save


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    words = np.random.default_rng(0).choice(
        ["the", "quick", "brown", "fox", "杭州", "is", "37", "+", "48", "=", "\n", "jumps"], 1200
    )
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save(llama(), tmp_path / "model")
