"""Which samples of a text, of records or of a dataset a model is measured on."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lite_models import CALIBRATION
from treadle.errors import ConfigError, InvalidArgumentError
from treadle.lite import calibrate
from treadle.lite.samples import load_samples
from treadle.tokenizer import Tokenizer


def test_too_little_data_is_told(
    model_dir: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_samples(model_dir, data, samples=5, seqlen=40, seed=0, chat=False)
    assert not caplog.messages
    ids = load_samples(model_dir, data, samples=10_000, seqlen=40, seed=0, chat=False)
    assert f"it has {len(ids)} samples of 40 tokens, where 10000 of 40 were" in caplog.text


def test_samples_of_a_text(model_dir: Path, data: Path) -> None:
    options: dict[str, Any] = {"samples": 5, "seqlen": 40, "chat": False}
    ids = load_samples(model_dir, data, seed=0, **options)
    assert ids.shape == (5, 40)
    assert (ids[:, 0] == 0).all()  # BOS
    assert (ids[:, 1:] != 0).all()
    assert np.array_equal(ids, load_samples(model_dir, data, seed=0, **options))
    assert not np.array_equal(ids, load_samples(model_dir, data, seed=1, **options))
    everything = load_samples(model_dir, data, samples=10_000, seqlen=40, seed=0, chat=False)
    assert 5 < len(everything) < 10_000
    assert all(row.tolist() in everything.tolist() for row in ids)


def test_samples_of_records(demo_path: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    path.write_text(json.dumps({"messages": messages}) + "\n\n" + '{"text": "plain text"}\n' * 20)
    options: dict[str, Any] = {"samples": 1, "seqlen": 400, "seed": 0}
    tokenizer = Tokenizer.from_pretrained(demo_path)

    def text(chat: bool) -> str:
        ids = load_samples(demo_path, path, chat=chat, **options)
        return tokenizer.decode(ids[0], skip_special_tokens=False)

    plain, chat = text(False), text(True)
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
    assert turn in plain
    assert turn in chat
    assert plain.count("<|im_start|>") == 2
    assert chat.count("<|im_start|>user\nplain text<|im_end|>") == 20
    assert chat.count("<s>") == 21


def test_samples_of_a_dataset(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(list[dict[str, str]]):
        column_names = ["text"]  # noqa: RUF012

    rows = Rows([{"text": "the quick brown fox jumps"}] * 30)
    library: Any = types.ModuleType("datasets")
    library.load_from_disk = lambda path: {"test": Rows(), "train": rows}
    monkeypatch.setitem(sys.modules, "datasets", library)
    options: dict[str, Any] = {"samples": 2, "seqlen": 32, "seed": 0, "chat": False}
    assert load_samples(model_dir, tmp_path, **options).shape == (2, 32)
    Rows.column_names = ["label"]
    with pytest.raises(ConfigError, match="it has the columns label"):
        load_samples(model_dir, tmp_path, **options)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_samples(model_dir, tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("short", "a.txt", r"data has \d+ tokens: at least 32"),
        (" \n", "a.txt", "empty, expected a text"),
        ('{"text": "a"}\n{"content": "b"}\n', "a.jsonl", r'a\.jsonl:2: expected .* "messages"'),
        ("{", "a.jsonl", r"a\.jsonl:1: malformed JSON"),
    ],
)
def test_wrong_data_is_refused(
    content: str, name: str, message: str, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigError, InvalidArgumentError), match=message):
        calibrate(model_dir, tmp_path / name, tmp_path / "work", **CALIBRATION)
    assert not (tmp_path / "work").exists()
