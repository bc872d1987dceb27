"""Streamed text: exact, never half a character, whatever the chunking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_models import DEMO, LLAMA3_SPLIT, save_byte_level, save_sentencepiece
from treadle.detokenizer import StreamDetokenizer
from treadle.errors import TokenizerError
from treadle.tokenizer import Tokenizer

KINDS = ("demo", "sentencepiece", "byte level", "metaspace", "no decoder")
TEXT = "浙江的省会是杭州。龘鑫🦊🚀 naïve ∑ བོད"


def neighbour_sensitive(directory: Path, with_decoder: bool) -> Path:
    """Tokenizers whose tokens have no bytes of their own: the library itself has to decode."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    vocab = {
        "<unk>": 0,
        "\u2581the": 1,
        "\u2581cat": 2,
        "s": 3,
        "\u2581": 4,
        "你": 5,
        "\u2581\u2581": 6,
    }
    backend = Backend(models.WordLevel(vocab, unk_token="<unk>"))
    if with_decoder:
        backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>"])
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    new = tmp_path_factory.mktemp
    paths = {
        "demo": DEMO,
        "sentencepiece": save_sentencepiece(new("spm")),
        "byte level": save_byte_level(new("bytes"), LLAMA3_SPLIT, adds_bos=True),
        "metaspace": neighbour_sensitive(new("metaspace"), with_decoder=True),
        "no decoder": neighbour_sensitive(new("plain"), with_decoder=False),
    }
    return {kind: Tokenizer.from_pretrained(path) for kind, path in paths.items()}


def stream(detokenizer: StreamDetokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """Pushes the ids in chunks that end at the (sorted) cuts."""
    pieces, start = [], 0
    for end in [*sorted(cuts), len(ids)]:
        end = min(end, len(ids))
        pieces.append(detokenizer.push(ids[start:end]))
        start = max(start, end)
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_make_the_whole(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject):
    tokenizer = tokenizers[kind]
    # Low ids are special tokens and bytes, so that broken and split characters are frequent.
    token = st.integers(0, tokenizer.vocab_size - 1) | st.integers(
        0, min(300, tokenizer.vocab_size - 1)
    )
    ids = data.draw(st.lists(token, max_size=60))
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=10))
    skip = data.draw(st.booleans())
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(StreamDetokenizer(tokenizer, skip), ids, cuts)) == whole

    if tokenizer.has_token_bytes:
        # Behind a prompt: what the ids add to the prompt's text.
        at = data.draw(st.integers(0, len(ids)))
        detokenizer = StreamDetokenizer(tokenizer, skip, prompt_ids=ids[:at])
        added = "".join(stream(detokenizer, ids[at:], cuts))
        before = tokenizer.decode(ids[:at], skip_special_tokens=skip)
        if "\ufffd" not in before:
            assert before + added == whole


@pytest.mark.parametrize("kind", ["demo", "sentencepiece", "byte level"])
def test_every_prefix_is_a_prefix_of_the_text(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    """What has been shown is never wrong, and no character is held back longer than needed."""
    tokenizer = tokenizers[kind]
    detokenizer = StreamDetokenizer(tokenizer)
    ids = tokenizer.encode(TEXT, add_bos=False)
    assert any("\ufffd" in tokenizer.decode([i]) for i in ids)  # characters are split
    shown, data = "", b""
    for token_id in ids:
        shown += detokenizer.push([token_id])
        data += tokenizer.token_bytes(token_id)
        assert TEXT.startswith(shown)
        complete = data.decode("utf-8", errors="ignore")
        assert shown == (complete[1:] if tokenizer.strip_left else complete)
    assert shown + detokenizer.flush() == TEXT


def test_leading_space_depends_on_what_comes_before(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    ids = tokenizer.encode("the quick", add_bos=False)
    assert StreamDetokenizer(tokenizer).push(ids) == "the quick"
    prompt = tokenizer.encode("Hello")
    assert StreamDetokenizer(tokenizer, prompt_ids=prompt).push(ids) == " the quick"
    bos = tokenizer.encode("", add_bos=True)
    assert StreamDetokenizer(tokenizer, prompt_ids=bos).push(ids) == "the quick"


def test_a_character_split_between_prompt_and_answer(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["demo"]
    ids = [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in "😀!".encode()]
    detokenizer = StreamDetokenizer(tokenizer, prompt_ids=ids[:2])
    assert [detokenizer.push([i]) for i in ids[2:]] == ["", "😀", "!"]


def test_half_a_character_at_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["demo"]
    ids = [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in "你".encode()[:2]]
    detokenizer = StreamDetokenizer(tokenizer)
    assert detokenizer.push(ids) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_broken_bytes_do_not_pile_up(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["demo"]
    lone = tokenizer.piece_to_id("<0x80>")
    detokenizer = StreamDetokenizer(tokenizer)
    pieces = [detokenizer.push([lone]) for _ in range(1000)]
    assert pieces == ["\ufffd"] * 1000


def test_window_stays_small(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["metaspace"]
    detokenizer = StreamDetokenizer(tokenizer, prompt_ids=[1, 2] * 50)
    longest = 0
    for token_id in [1, 2, 3, 0, 5] * 200 + [0] * 500:
        detokenizer.push([token_id])
        longest = max(longest, len(detokenizer._stream._ids))  # type: ignore[attr-defined]
    assert longest <= 32


def test_ids_are_checked(tokenizers: dict[str, Tokenizer]) -> None:
    detokenizer = StreamDetokenizer(tokenizers["demo"])
    assert detokenizer.push(np.array([1966], dtype=np.int32)) == tokenizers["demo"].decode([1966])
    with pytest.raises(TokenizerError, match="token id 4096 at position 0"):
        detokenizer.push([4096])
    with pytest.raises(TokenizerError, match="token id -5"):
        StreamDetokenizer(tokenizers["demo"], prompt_ids=[-5])
