"""Text and JSONL files that are checked before anything heavy is loaded."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from treadle.errors import ConfigError

_BLOCK_BYTES = 1 << 20


def check_text(path: str) -> None:
    """Raises OSError for a file that cannot be read, ConfigError for one that is empty or not
    UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, blank = 0, True
    with open(path, "rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])  # of a character that the last block cut
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                raise ConfigError(f"{path}: not UTF-8 at byte {at}") from error
            blank = blank and not text.lstrip("\ufeff").strip()
            offset += len(block)
            if not block:
                break
    if blank:
        raise ConfigError(f"{path}: empty, expected a text")


def read_texts(path: str) -> Iterator[str]:
    """The "text" of each line of a JSONL file. Raises ConfigError naming file and line."""
    for where, record in _objects(path):
        text: Any = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f'{where}: expected an object with a string "text"')
        yield text


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, each with a string "text" or a list "messages". Raises
    ConfigError naming file and line."""
    for where, record in _objects(path):
        fields = record if isinstance(record, dict) else {}
        if not isinstance(fields.get("messages"), list) and not isinstance(fields.get("text"), str):
            raise ConfigError(
                f'{where}: expected an object with a string "text" or a list "messages"'
            )
        yield fields


def _objects(path: str) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"{where}: malformed JSON: {error}") from error
