"""Brings the forms that stream_infer accepts into one: arrays of ids, one session id for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from treadle import _checks as check
from treadle.errors import InvalidArgumentError
from treadle.outputs import TokenIds

#: One prompt, or several.
InputIds: TypeAlias = Any
SessionIds: TypeAlias = int | Sequence[int | None] | None
Steps: TypeAlias = int | Sequence[int | None] | None


def token_arrays(input_ids: InputIds, vocab_size: int) -> list[TokenIds]:
    """``input_ids`` as one int32 array per prompt.

    Takes a list of prompts or one prompt, each a sequence of ints or an integer array (numpy, or
    anything with ``__array__``); a two-dimensional array is a list of prompts. Raises
    InvalidArgumentError naming the place of what is empty, not an integer or not in the vocabulary.
    """
    if isinstance(input_ids, str | bytes):
        raise InvalidArgumentError(
            f"input_ids is a {type(input_ids).__name__}: it must hold token ids; "
            "engine.tokenizer.encode(text) gives them"
        )
    prompts = _split(input_ids)
    if not prompts:
        raise InvalidArgumentError("input_ids is empty: give at least one prompt of one token")
    return [_token_array(f"input_ids[{i}]", ids, vocab_size) for i, ids in enumerate(prompts)]


def _split(input_ids: InputIds) -> list[Any]:
    if hasattr(input_ids, "__array__"):
        array = np.asarray(input_ids)
        if array.ndim not in (1, 2):
            raise InvalidArgumentError(
                f"input_ids has {array.ndim} dimensions: it must have 1 (one prompt) or 2 (several)"
            )
        return [array] if array.ndim == 1 else list(array)
    if not isinstance(input_ids, Iterable):
        raise check.refuse("input_ids", input_ids, "it must be a list of token ids")
    items = list(input_ids)
    return [items] if items and hasattr(items[0], "__index__") and _is_scalar(items[0]) else items


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 0 and not hasattr(value, "__len__")


def _token_array(name: str, ids: Any, vocab_size: int) -> TokenIds:
    if isinstance(ids, str | bytes):
        raise check.refuse(name, ids, "it must hold token ids, not text")
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidArgumentError(f"{name} is not a list of token ids: {error}") from error
    if array.ndim == 1 and array.size == 0:
        raise InvalidArgumentError(f"{name} is empty: a prompt must have at least one token")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        shape = f"of {array.ndim} dimensions" if array.ndim != 1 else f"of dtype {array.dtype}"
        raise InvalidArgumentError(f"{name} is an array {shape}: it must be a list of integers")
    wrong = (array < 0) | (array >= vocab_size)
    if wrong.any():
        place = int(wrong.argmax())
        right = f"token ids of this model are from 0 to {vocab_size - 1}"
        raise check.refuse(f"{name}[{place}]", int(array[place]), right)
    return np.ascontiguousarray(array, dtype=np.int32)


def session_ids(session_id: SessionIds, count: int) -> list[int | None]:
    """One session id, or None, for each of ``count`` prompts."""
    values = _one_each("session_id", session_id, count)
    for i, value in enumerate(values):
        if value is not None:
            name = "session_id" if count == 1 else f"session_id[{i}]"
            values[i] = check.integer(name, value, 0, check.MAX_UINT64)
    named = [value for value in values if value is not None]
    if len(set(named)) < len(named):
        twice = next(value for value in named if named.count(value) > 1)
        raise check.refuse(
            "session_id", twice, "it is given for two prompts of one call; a session runs one"
        )
    return values


def steps(step: Steps, count: int) -> list[int | None]:
    """One rollback length, or None, for each of ``count`` prompts."""
    values = _one_each("step", step, count)
    return [None if value is None else check.integer("step", value, 0) for value in values]


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    if value is None:
        return [None] * count
    if _is_scalar(value):
        if count > 1:
            right = f"there are {count} prompts; give a list of {count}"
            raise check.refuse(name, value, right)
        return [value]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise check.refuse(name, value, "it must be an integer or a list of integers")
    values = list(value)
    if len(values) != count:
        raise InvalidArgumentError(
            f"{name} has {len(values)} entries for {count} prompts: give one for each"
        )
    return values
