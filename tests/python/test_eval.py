"""Perplexity: the windows, the figure against transformers, and the command."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

import reference
from devices import Device
from reference import HfModel
from tokenizer_models import LLAMA3_SPLIT, save_byte_level, save_sentencepiece
from treadle import Engine
from treadle.cli import main
from treadle.encoded_text import encode_file
from treadle.errors import ConfigError, InvalidArgumentError
from treadle.evaluation import perplexity, sliding_windows
from treadle.texts import check_text, read_texts
from treadle.tokenizer import Tokenizer

HELDOUT = Path(__file__).resolve().parents[2] / "examples" / "train_demo" / "heldout.json"


@pytest.fixture(scope="module")
def text() -> str:
    chats: list[str] = json.loads(HELDOUT.read_text("utf-8"))["chats"]
    return "\n".join(chats[:12])


@pytest.fixture(scope="module")
def model(demo_path: str) -> HfModel:
    return LlamaForCausalLM.from_pretrained(demo_path, dtype="float32").eval()


def expected_nll(model: HfModel, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """(sum, count): the loop of transformers' documentation, label masks and all."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        targets = inputs.clone()
        targets[:, : -(end - previous)] = -100
        previous = end
        with torch.no_grad():
            logits = model(inputs).logits[0, :-1].float()
        labels = targets[0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
        if end == len(ids):
            break
    return total, count


# The windows.


@given(st.data())
def test_each_token_is_scored_once(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 60))
    window = data.draw(st.integers(2, 70))
    stride = data.draw(st.integers(1, window))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=5)))
    edges = [0, *cuts, length]
    chunks = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
    scored = []
    for k, part in enumerate(sliding_windows(chunks, window, stride)):
        assert 0 < part.scored < len(part.ids) <= window
        assert part.ids == list(range(k * stride, k * stride + len(part.ids)))
        new = part.ids[-part.scored :]
        for token in new:
            assert token - part.ids[0] >= min(token, window - stride)
        scored += new
    alone = set(range(0, length, window)) if stride == window else {0}
    assert scored == [token for token in range(length) if token not in alone]


# The figure.


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (100, 7), (128, 128), (50, 1), (2, 1)])
def test_equals_transformers(
    window: int, stride: int, device: Device, engine: Engine, model: HfModel, text: str
) -> None:
    text = text[: 150 if stride == 1 else 900]
    ids = engine.tokenizer.encode(text)
    total, count = expected_nll(model, ids, window, stride)
    result = perplexity(engine, text, window, stride)
    assert result.tokens == count
    assert (result.window, result.stride) == (window, stride)
    assert result.mean_nll == pytest.approx(total / count, abs=device.tolerance)
    assert result.perplexity == pytest.approx(math.exp(result.mean_nll))
    assert result.tokens_per_second > 0


def test_one_window_is_the_direct_formula(
    device: Device, engine: Engine, model: HfModel, text: str
) -> None:
    ids = engine.tokenizer.encode(text[:400])
    result = perplexity(engine, text[:400])
    assert (result.window, result.stride) == (2047, 1023)
    assert result.tokens == len(ids) - 1
    expected = -reference.prompt_logprob(model, ids) / (len(ids) - 1)
    assert result.mean_nll == pytest.approx(expected, abs=device.tolerance)


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size_gives_the_same(
    batch: int, device: Device, engine: Engine, demo_path: str, text: str
) -> None:
    text = text[:1200]
    expected = perplexity(engine, text, 64, 16)
    with device.load(demo_path, max_batch_size=batch, cache_max_entry_count=64) as other:
        result = perplexity(other, text, 64, 16)
    assert result.tokens == expected.tokens
    tolerance = 1e-12 if device.exact else device.tolerance
    assert result.mean_nll == pytest.approx(expected.mean_nll, abs=tolerance)


def test_separate_texts_share_no_window(device: Device, engine: Engine, text: str) -> None:
    parts = [text[:200], "", text[200:500]]
    each = [perplexity(engine, part, 64) for part in parts if part]
    both = perplexity(engine, parts, 64)
    assert both.tokens == sum(one.tokens for one in each)
    expected = sum(one.mean_nll * one.tokens for one in each) / both.tokens
    tolerance = 1e-12 if device.exact else device.tolerance
    assert both.mean_nll == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("piece", [10, 100, 1000])
def test_encoding_in_pieces_gives_the_same_ids(piece: int, engine: Engine, text: str) -> None:
    """Cut at ends of lines, none of which is longer than four pieces."""
    lines = [text[i : i + 30].replace("\n", " ").strip() for i in range(0, 3000, 30)]
    file = io.StringIO("\n".join(lines) + "\n\n  indented\n", newline="")
    chunks = list(encode_file(engine.tokenizer, file, piece))
    assert len(chunks) > 1
    ids = [token for chunk in chunks for token in chunk]
    assert ids == engine.tokenizer.encode(file.getvalue())


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_only_the_first_piece_gets_a_bos(kind: str, tmp_path: Path) -> None:
    """And the space that sentencepiece puts before a text."""
    if kind == "byte level":
        save_byte_level(tmp_path, LLAMA3_SPLIT, adds_bos=True)
    else:
        save_sentencepiece(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    text = "The sky is blue.\nIt's 12 o'clock\n\n  in Oslo\n你好\n" * 20
    chunks = list(encode_file(tokenizer, io.StringIO(text, newline=""), 50))
    assert len(chunks) > 10
    ids = [token for chunk in chunks for token in chunk]
    assert ids == tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(ids[0]) == 1


def test_a_text_of_one_line_is_cut_at_a_word(engine: Engine) -> None:
    text = "the capital of Norway is 奥斯陆 " * 40
    chunks = list(encode_file(engine.tokenizer, io.StringIO(text), 10))
    assert len(chunks) > 10
    assert max(map(len, chunks)) <= 60
    ids = [token for chunk in chunks for token in chunk]
    assert engine.tokenizer.decode(ids) == text


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8, "stride": 9}, "stride is 9: it must be at most window, which is 8"),
        ({"window": 2048}, "window is 2048: it must be at most 2047"),
        ({"window": 1}, "window is 1"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 2048}, "stride is 2048: it must be at most window, which is 2047"),
    ],
)
def test_wrong_windows_are_refused(options: dict[str, Any], message: str, engine: Engine) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        perplexity(engine, "some text", **options)


@pytest.mark.parametrize("empty", ["", [], ["", ""]])
def test_an_empty_text_is_refused(empty: str | list[str], engine: Engine) -> None:
    with pytest.raises(InvalidArgumentError, match="text is empty"):
        perplexity(engine, empty)


def test_wrong_items_are_refused(engine: Engine) -> None:
    items: Any = ["a", 3]
    with pytest.raises(InvalidArgumentError, match="text is 3"):
        perplexity(engine, items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (b"abc\xff", "not UTF-8 at byte 3"),
        (b"a" * (2**20 - 1) + "€".encode() + b"\xff", f"not UTF-8 at byte {2**20 + 2}"),
        (b"abc\xe2\x82", "not UTF-8 at byte 3"),
    ],
)
def test_wrong_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        check_text(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "malformed JSON"), ("[]", 'string "text"'), ('{"text": 1}', 'string "text"')],
)
def test_wrong_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n\n' + line)
    with pytest.raises(ConfigError, match=f"texts.jsonl:3: .*{message}"):
        list(read_texts(str(path)))


# The command.


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["eval", "ppl", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_command(
    device: Device,
    engine: Engine,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = text[:1200]
    path, result = tmp_path / "text.txt", tmp_path / "result.json"
    path.write_bytes(text.replace("\n", "\r\n").encode())  # scored as it stands
    code, out, _ = run(
        capsys,
        engine.path,
        *("--text", path, "--json", result, "--device", device.name),
        *("--window", 64, "--stride", 16, "--max-batch-size", 4),
    )
    expected = perplexity(engine, text.replace("\n", "\r\n"), 64, 16)
    assert code == 0
    facts = json.loads(result.read_text())
    assert facts["tokens"] == expected.tokens
    assert (facts["window"], facts["stride"], facts["quant_policy"]) == (64, 16, 0)
    assert facts["mean_nll"] == pytest.approx(expected.mean_nll, abs=device.tolerance)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["mean_nll"]))
    assert facts["tokens_per_second"] > 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["tokens"] == str(expected.tokens)
    assert rows["perplexity"] == f"{facts['perplexity']:.4f}"


def test_command_reads_jsonl(
    device: Device,
    engine: Engine,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [text[:100], text[100:300]]
    path, result = tmp_path / "texts.jsonl", tmp_path / "result.json"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    code, _, _ = run(capsys, "--text", path, "--json", result, "--device", device.name)
    expected = perplexity(engine, texts)
    assert code == 0
    facts = json.loads(result.read_text())
    assert facts["tokens"] == expected.tokens
    assert facts["mean_nll"] == pytest.approx(expected.mean_nll, abs=device.tolerance)


def test_command_refuses_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as info:
        run(capsys, "--text", "x", "--window", 8, "--stride", 9)
    assert info.value.code == 2
    assert "stride is 9" in capsys.readouterr().err
    code, _, err = run(capsys, "--text", tmp_path / "missing.txt")
    assert code == 1
    assert f"text is '{tmp_path / 'missing.txt'}': no such file" in err
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff")
    code, _, err = run(capsys, "--text", path, "--json", tmp_path / "no" / "result.json")
    assert code == 1
    assert f"there is no directory '{tmp_path / 'no'}'" in err
    code, _, err = run(capsys, "--text", path)
    assert code == 1
    assert "not UTF-8 at byte 0" in err
