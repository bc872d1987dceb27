"""Reads the small files of a model directory without trusting them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from treadle.errors import ConfigError

#: Configuration files are a few kilobytes in practice (large vocabularies: a few megabytes).
MAX_CONFIG_BYTES = 64 << 20
#: Large enough for any published vocabulary (the biggest are about 35 MB).
MAX_TOKENIZER_BYTES = 512 << 20


def read_bytes(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """Returns the content of a regular file of at most ``max_bytes``.

    Raises :class:`ConfigError` naming the file otherwise. Pipes and devices are refused, because
    reading one could block for ever.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        if info.st_size > max_bytes:
            raise ConfigError(
                f"{path}: file has {info.st_size} bytes, more than the limit of {max_bytes}"
            )
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: file has more than the limit of {max_bytes} bytes")
    return data


def read_text(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """Returns the content of a UTF-8 file; raises :class:`ConfigError` naming the file."""
    data = read_bytes(path, max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Returns the JSON object in a file; raises :class:`ConfigError` naming the file."""
    text = read_text(path, max_bytes)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: JSON is nested too deeply") from error
    except ValueError as error:  # e.g. an integer of too many digits
        raise ConfigError(f"{path}: malformed JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def read_json_if_exists(path: Path) -> dict[str, Any]:
    """Like :func:`read_json`, and an empty dict where there is no such file."""
    return read_json(path) if path.exists() else {}
