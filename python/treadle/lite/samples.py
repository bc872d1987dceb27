"""Calibration samples: pieces of equal length of a text file, a JSONL file or a dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle import _checks as check
from treadle.chat_template import ChatTemplate
from treadle.encoded_text import encode_file
from treadle.errors import ConfigError, InvalidArgumentError, NotFoundError
from treadle.texts import check_text, read_records
from treadle.tokenizer import Tokenizer

Samples = npt.NDArray[np.int64]

#: Fewer tokens say nothing about a model.
MIN_TOKENS = 32


def check_options(samples: int, seqlen: int, seed: int) -> None:
    """Raises InvalidArgumentError."""
    check.integer("samples", samples, 1)
    check.integer("seqlen", seqlen, MIN_TOKENS)
    check.integer("seed", seed, 0)


def load_samples(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    samples: int,
    seqlen: int,
    seed: int,
    chat: bool,
) -> Samples:
    """[at most samples, at most seqlen] token ids: fewer when ``data`` has no more, shorter when
    all of it is shorter than one sample, with a warning in the log.

    data: a text file (samples are drawn from all of it); a *.jsonl file or a dataset directory
        written by ``datasets``' save_to_disk, each record with a "text" or OpenAI-style "messages",
        which go through the model's chat template (records are drawn, and laid end to end).
    chat: a text is a user's message, not a text of its own.

    Each sample begins with a BOS where the model's tokenizer adds one. The same ``seed`` draws the
    same samples. Raises ConfigError naming file and line, NotFoundError, InvalidArgumentError.
    """
    check_options(samples, seqlen, seed)
    path = os.fspath(data)
    if not os.path.exists(path):
        raise NotFoundError(f"data is {path!r}: no such file or directory")
    tokenizer = Tokenizer.from_pretrained(model)
    random = np.random.default_rng(seed)
    records = _records(path)
    if records is None and not chat:
        check_text(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            ids = [token for chunk in encode_file(tokenizer, file) for token in chunk]
        pieces = _cut(ids, seqlen, tokenizer)
        chosen = np.sort(random.permutation(len(pieces))[:samples])
        return _told(pieces[chosen], path, samples, seqlen)
    if records is None:
        with open(path, encoding="utf-8-sig") as file:
            records = [{"text": part} for part in file.read().split("\n\n") if part.strip()]
    template = ChatTemplate.from_pretrained(model, tokenizer=tokenizer)
    ids = []
    for index in random.permutation(len(records)):
        text = _render(records[int(index)], template, chat)
        ids += tokenizer.encode(text)
        if len(ids) >= samples * seqlen:
            break
    return _told(_cut(ids, seqlen, tokenizer)[:samples], path, samples, seqlen)


def _told(found: Samples, path: str, samples: int, seqlen: int) -> Samples:
    if found.shape != (samples, seqlen):
        count, length = found.shape
        logging.getLogger("treadle").warning(
            "data is %r: it has %d samples of %d tokens, where %d of %d were asked for",
            path, count, length, samples, seqlen,
        )  # fmt: skip
    return found


def _records(path: str) -> Any:
    """A sequence of objects with "text" or "messages"; None for a text file."""
    if os.path.isdir(path):
        return _dataset(path)
    if not path.endswith(".jsonl"):
        return None
    check_text(path)
    return list(read_records(path))


def _dataset(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"data is {path!r}, a directory: reading it needs datasets: pip install datasets "
            f"({error})"
        ) from error
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data is {path!r}: {error}") from error
    if isinstance(loaded, dict):  # by split
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    columns = loaded.column_names
    if not {"text", "messages"} & set(columns):
        raise ConfigError(
            f'data is {path!r}: it has the columns {", ".join(columns)}, expected "text" or '
            '"messages"'
        )
    return loaded


def _render(record: Mapping[str, Any], template: ChatTemplate, chat: bool) -> str:
    messages, text = record.get("messages"), record.get("text") or ""
    if messages is None and chat:
        messages = [{"role": "user", "content": text}]
    if messages is None:
        return str(text)
    return template.messages2prompt(messages, add_generation_prompt=False)


def _cut(ids: list[int], seqlen: int, tokenizer: Tokenizer) -> Samples:
    """All whole pieces of ``ids``, one after the other; one piece when there is no whole one."""
    if len(ids) < MIN_TOKENS:
        raise InvalidArgumentError(
            f"data has {len(ids)} tokens: at least {MIN_TOKENS} are needed to say something"
        )
    bos = [ids[0]] if ids[0] == tokenizer.bos_token_id else []
    pieces: list[list[int]] = []
    begin = 0
    seqlen = min(seqlen, len(ids))
    while True:
        head = [] if ids[begin : begin + 1] == bos else bos
        end = begin + seqlen - len(head)
        if end > len(ids):
            return np.array(pieces, dtype=np.int64)
        pieces.append(head + ids[begin:end])
        begin = end
