"""The tokenizer against transformers and sentencepiece, and against damaged files."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import text_samples
from tokenizer_models import (
    DEMO,
    LLAMA3_SPLIT,
    demo_without_json,
    save_byte_level,
    save_sentencepiece,
)
from treadle.errors import ConfigError, TokenizerError
from treadle.tokenizer import Tokenizer

SAMPLES = text_samples.samples(3000)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def demo_spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_pretrained(demo_without_json(tmp_path_factory.mktemp("demo_spm")))


@pytest.fixture(scope="module")
def llama3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("llama3"), LLAMA3_SPLIT, adds_bos=True)


@pytest.fixture(scope="module")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("qwen"), LLAMA3_SPLIT, adds_bos=False)


@pytest.fixture(scope="module")
def llama2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentencepiece(tmp_path_factory.mktemp("llama2"))


def auto_tokenizer(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def assert_like_transformers(path: Path) -> None:
    ours, theirs = Tokenizer.from_pretrained(path), auto_tokenizer(path)
    bos = ours.bos_token
    expected = theirs(SAMPLES).input_ids
    batch = ours.encode_batch(SAMPLES)
    for text, ids, ids_of_batch in zip(SAMPLES, expected, batch, strict=True):
        if bos is not None and text.startswith(bos) and ids[:2] == [ours.bos_token_id] * 2:
            ids = ids[1:]  # the one intended difference
        assert ours.encode(text) == ids, repr(text)
        assert ids_of_batch == ids, repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("name", ["demo", "llama3", "qwen"])
def test_equals_transformers(name: str, llama3_dir: Path, qwen_dir: Path) -> None:
    assert_like_transformers({"demo": DEMO, "llama3": llama3_dir, "qwen": qwen_dir}[name])


def test_decode_of_any_ids_equals_transformers_where_it_is_text(demo: Tokenizer) -> None:
    theirs = auto_tokenizer(DEMO)
    rng = random.Random(1)
    compared = 0
    for _ in range(2000):
        ids = [rng.randrange(demo.vocab_size) for _ in range(rng.randrange(1, 30))]
        text = theirs.decode(ids, skip_special_tokens=False)
        if "\ufffd" not in text:
            assert demo.decode(ids, skip_special_tokens=False) == text
            compared += 1
    assert compared > 500


def test_byte_level_decode_of_any_ids_equals_transformers(llama3_dir: Path) -> None:
    ours, theirs = Tokenizer.from_pretrained(llama3_dir), auto_tokenizer(llama3_dir)
    rng = random.Random(2)
    for _ in range(2000):
        ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randrange(1, 30))]
        assert ours.decode(ids, False) == theirs.decode(ids, skip_special_tokens=False)


def test_sentencepiece_and_json_of_the_demo_agree(demo: Tokenizer, demo_spm: Tokenizer) -> None:
    assert demo_spm.vocab_size == demo.vocab_size
    assert demo_spm.special_ids == demo.special_ids
    for text in SAMPLES:
        ids = demo.encode(text, add_bos=False)
        assert demo_spm.encode(text, add_bos=False) == ids, repr(text)
        assert demo_spm.decode(ids) == demo.decode(ids)
    for token_id in range(demo.vocab_size):
        assert demo.token_bytes(token_id) == demo_spm.token_bytes(token_id)
        assert demo.id_to_piece(token_id) == demo_spm.id_to_piece(token_id)


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_equals_the_slow_llama_tokenizer(llama2_dir: Path, legacy: bool) -> None:
    """transformers' SentencePieceBackend is what its Llama tokenizer was in Python."""
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    theirs = SentencePieceBackend(
        vocab_file=str(llama2_dir / "tokenizer.model"),
        legacy=legacy,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
    directory = save_sentencepiece(llama2_dir.parent / f"llama2-{legacy}", legacy=legacy)
    ours = Tokenizer.from_pretrained(directory)
    for text in SAMPLES:
        if not legacy:
            # The backend leaves the one prefix at the start of a text to its subclasses.
            expected = theirs.convert_tokens_to_ids(theirs.tokenize("\u2581" + spaced(text)))
            if len(expected) > 1 and theirs.convert_ids_to_tokens(expected[0]) == "\u2581":
                expected = expected[1:] if expected[1] in theirs.all_special_ids else expected
            if not text:
                expected = []
        else:
            expected = theirs.convert_tokens_to_ids(theirs.tokenize(text))
        assert ours.encode(text, add_bos=False) == expected, repr(text)
        assert ours.encode(text) == (expected if expected[:1] == [1] else [1, *expected])


def spaced(text: str) -> str:
    return text.replace("\u2581", " ")


def test_sentencepiece_equals_the_fast_llama_tokenizer(llama2_dir: Path) -> None:
    """On plain text; transformers' fast one drops a leading space that sentencepiece keeps."""
    from transformers import LlamaTokenizer

    theirs = LlamaTokenizer.from_pretrained(llama2_dir)
    ours = Tokenizer.from_pretrained(llama2_dir)
    plain = [t for t in SAMPLES if t and not t.startswith((" ", "\u2581")) and "<" not in t]
    assert len(plain) > 1000
    for text in plain:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_explicit_ids_rename_placeholder_pieces(tmp_path: Path) -> None:
    """internlm2's tokenizer.model calls <|im_end|> [UNUSED_TOKEN_145]; the config says its name."""
    directory = save_sentencepiece(tmp_path)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        "300": {"content": "<|im_start|>", "special": True},
        "301": {"content": "<|im_end|>", "special": True},
        "2000": {"content": "<|new|>", "special": False, "lstrip": True},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_pretrained(directory)
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>  <|new|>x", add_bos=False)
    assert (ids[0], ids[-3 if ids[-2] != 2000 else -2]) == (300, 2000)
    assert 301 in ids
    assert tokenizer.vocab_size == 2001
    assert tokenizer.id_to_piece(301) == "<|im_end|>"
    assert tokenizer.decode(ids) == "hi<|new|> x"
    assert {300, 301} <= tokenizer.special_ids
    assert 2000 not in tokenizer.special_ids


def test_added_tokens_file(tmp_path: Path) -> None:
    directory = save_sentencepiece(tmp_path)
    (directory / "added_tokens.json").write_text('{"<pad>": 1000, "<tool>": 1001}')
    (directory / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}}')
    tokenizer = Tokenizer.from_pretrained(directory)
    assert tokenizer.encode("a<pad>b<tool>", add_bos=False).count(1000) == 1
    assert tokenizer.pad_token_id == 1000
    assert 1000 in tokenizer.special_ids
    assert 1001 not in tokenizer.special_ids


def test_properties_of_the_demo(demo: Tokenizer) -> None:
    assert (demo.vocab_size, demo.model_max_length) == (4096, 2048)
    assert (demo.bos_token, demo.bos_token_id) == ("<s>", 1)
    assert (demo.eos_token, demo.eos_token_id, demo.eos_token_ids) == ("<|im_end|>", 4, (4,))
    assert (demo.unk_token_id, demo.pad_token_id, demo.pad_token) == (0, None, None)
    assert demo.special_ids == {0, 1, 2, 3, 4}
    assert demo.chat_template is not None
    assert demo.piece_to_id("<|im_end|>") == 4
    assert demo.piece_to_id("no such piece") is None


def test_bos_is_never_doubled(demo: Tokenizer, llama3_dir: Path) -> None:
    llama3 = Tokenizer.from_pretrained(llama3_dir)
    for tokenizer in (demo, llama3):
        bos, text = tokenizer.bos_token_id, f"{tokenizer.bos_token}hello"
        for add_bos in (None, True, False):
            ids = tokenizer.encode(text, add_bos=add_bos)
            assert ids[0] == bos
            assert ids.count(bos) == 1
        assert tokenizer.encode("hello", add_bos=True)[0] == bos
        assert tokenizer.encode("hello", add_bos=True).count(bos) == 1
        assert bos not in tokenizer.encode("hello", add_bos=False)
    assert llama3.encode("hello")[0] == llama3.bos_token_id
    assert demo.bos_token_id not in demo.encode("hello")


@pytest.mark.parametrize("name", ["demo", "demo_spm", "llama3", "llama2"])
def test_special_spellings_can_be_plain_text(
    name: str, demo: Tokenizer, demo_spm: Tokenizer, llama3_dir: Path, llama2_dir: Path
) -> None:
    tokenizer = {
        "demo": lambda: demo,
        "demo_spm": lambda: demo_spm,
        "llama3": lambda: Tokenizer.from_pretrained(llama3_dir),
        "llama2": lambda: Tokenizer.from_pretrained(llama2_dir),
    }[name]()
    for special in tokenizer.special_ids:
        piece = tokenizer.id_to_piece(special)
        text = f"say {piece} or{piece}{piece}"
        ids = tokenizer.encode(text, add_bos=False, parse_special=False)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert special in tokenizer.encode(text, add_bos=False)


@pytest.mark.parametrize("legacy", [True, False])
def test_continuation_gets_no_prefix(tmp_path: Path, legacy: bool) -> None:
    tokenizer = Tokenizer.from_pretrained(save_sentencepiece(tmp_path, legacy=legacy))
    start = tokenizer.encode("the</s>", add_bos=True)
    tail = tokenizer.encode("\nthe house", continuation=True)
    assert start + tail == tokenizer.encode("the</s>\nthe house", add_bos=True)
    assert tokenizer.bos_token_id not in tail


def test_token_bytes_make_the_text(demo: Tokenizer, llama3_dir: Path) -> None:
    for tokenizer in (demo, Tokenizer.from_pretrained(llama3_dir)):
        for text in SAMPLES[:500]:
            ids = tokenizer.encode(text, add_bos=False)
            expected = text if tokenizer is not demo else spaced(text)
            assert b"".join(map(tokenizer.token_bytes, ids)) == expected.encode()


def test_decode_takes_arrays_and_refuses_other_things(demo: Tokenizer) -> None:
    ids = demo.encode("你好 hello")
    assert demo.decode(np.array(ids, dtype=np.int32)) == "你好 hello"
    assert demo.decode(list(np.array(ids, dtype=np.int64))) == "你好 hello"
    assert demo.decode([]) == ""
    for bad in (4096, -1, 10**12):
        with pytest.raises(TokenizerError, match=rf"token id {bad} at position 1.*0 to 4095"):
            demo.decode([5, bad])
    with pytest.raises(TokenizerError, match=r"position 0 is 1\.5, expected an integer"):
        demo.decode([1.5])  # type: ignore[list-item]
    with pytest.raises(TokenizerError, match="position 0 is 'a'"):
        demo.decode("a")  # type: ignore[arg-type]


def test_ids_of_a_padded_embedding_are_empty(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 4160}')
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == 4096
    assert tokenizer.decode([4100]) == ""
    assert tokenizer.token_bytes(4159) == b""
    with pytest.raises(TokenizerError, match="4160"):
        tokenizer.decode([4160])


def test_wrong_arguments_are_named(demo: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="text is a bytes, expected a str"):
        demo.encode(b"x")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match=r"texts\[1\] is a int"):
        demo.encode_batch(["x", 1])  # type: ignore[list-item]
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at character 2"):
        demo.encode("ab\ud800")
    with pytest.raises(TokenizerError, match="contradicts"):
        demo.encode("x", add_bos=True, continuation=True)
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    with pytest.raises(TokenizerError, match="no BOS"):
        Tokenizer.from_pretrained(tmp_path).encode("x", add_bos=True)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="\u2581", codec="utf-8"), max_size=80))
def test_any_text_survives(text: str) -> None:
    tokenizer = ROUND_TRIP[0]
    ids = tokenizer.encode(text, add_bos=False, parse_special=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


ROUND_TRIP = [Tokenizer.from_pretrained(DEMO)]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json and tokenizer\.model"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="nowhere: not a directory"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


DAMAGED_JSON = {
    "truncated": '{"version": "1.0", "model": {"type": "BPE", "vocab"',
    "empty": "",
    "deep": "[" * 100_000,
    "not an object": "[1, 2]",
    "no model": '{"version": "1.0"}',
    "huge id": '{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}',
    "bad merge": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}',
}


@pytest.mark.parametrize("name", DAMAGED_JSON)
def test_damaged_tokenizer_json(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(DAMAGED_JSON[name])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("data", [b"", b"garbage" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 64])
def test_damaged_tokenizer_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a sentencepiece model"):
        Tokenizer.from_pretrained(tmp_path)


DAMAGED_CONFIG = {
    "{": "malformed JSON at line 1",
    "[]": "expected an object",
    '{"a": ' * 50_000: "nested too deeply|malformed",
    '{"eos_token": 5}': "eos_token is 5, expected a string",
    '{"bos_token": {"content": 1}}': "bos_token",
    '{"add_bos_token": "yes"}': "add_bos_token is 'yes', expected true or false",
    '{"added_tokens_decoder": []}': None,
    '{"added_tokens_decoder": {"-1": {"content": "x"}}}': "added_tokens_decoder.*'-1'",
    '{"added_tokens_decoder": {"99999999999": {"content": "x"}}}': "99999999999",
    '{"added_tokens_decoder": {"5": 7}}': "added_tokens_decoder",
    '{"additional_special_tokens": 3}': "additional_special_tokens is 3",
    '{"chat_template": 3}': "chat_template is 3",
    '{"chat_template": [1]}': "chat_template is a list",
    '{"chat_template": [{"name": "x"}]}': "chat_template",
    '{"model_max_length": "long"}': None,
    '{"model_max_length": 1e30}': None,
}


@pytest.mark.parametrize("text", DAMAGED_CONFIG, ids=lambda text: text[:40])
def test_damaged_tokenizer_config(text: str, tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    message = DAMAGED_CONFIG[text]
    if message is None:
        assert Tokenizer.from_pretrained(tmp_path).model_max_length is None
        return
    with pytest.raises(ConfigError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "tokenizer_config.json" in str(caught.value)
    assert caught.value.code == "bad_config"


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")  # reading it would wait for ever
    with pytest.raises(ConfigError, match="not a regular file"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "special_tokens_map.json").mkdir()
    with pytest.raises(ConfigError, match=r"special_tokens_map\.json: not a regular file"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").rmdir()
    (tmp_path / "added_tokens.json").write_bytes(b"{\xff}")
    with pytest.raises(ConfigError, match=r"added_tokens\.json: not UTF-8 at byte 1"):
        Tokenizer.from_pretrained(tmp_path)


def test_importing_loads_no_library() -> None:
    """They are loaded when a model needs them, so that ``import treadle`` stays quick."""
    code = (
        "import sys, treadle.chat_template, treadle.detokenizer, treadle.stop_words; "
        "print([m for m in ('tokenizers', 'sentencepiece', 'jinja2', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
