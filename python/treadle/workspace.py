"""Workspaces: models stored as they are computed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from treadle import _checks as check
from treadle.config import EngineConfig
from treadle.errors import InvalidArgumentError
from treadle.progress import LoadProgress

#: What goes along with the weights: all that is read of a model directory besides them.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "kv_qparams.safetensors",
)
_TEMPLATES = "additional_chat_templates"
#: Beginnings of names of files that must go wherever the weights go.
_LEGAL = ("license", "notice", "copying")


def weight_folder(path: str | os.PathLike[str]) -> Path:
    """Where a model directory or a workspace has its weight files."""
    directory = Path(path)
    return directory / "weights" / "rank0" if (directory / "config.ini").exists() else directory


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    config: EngineConfig | None = None,
) -> Path:
    """Makes a workspace of a Hugging Face model directory, and returns its path.

    out: a directory that does not exist yet, or is empty. It appears when everything is written.
    model_name: a built-in chat format for a model without its own, kept in config.ini.
    config: ``session_len``, ``max_batch_size``, ``max_prefill_token_num``,
        ``cache_max_entry_count``, ``quant_policy``, ``rope_scaling_factor`` and ``use_logn_attn``
        are kept in config.ini.

    Raises a TreadleError that names the file or the option.
    """
    from treadle import _engine
    from treadle.chat.formats import find_format
    from treadle.engine import _check_path

    source = Path(_check_path(path))
    target = Path(os.path.abspath(os.fspath(out)))
    _check_target(target)
    if model_name is not None:
        find_format(model_name)
    options = (config or EngineConfig()).to_native()
    with _new_directory(target) as partial:
        _copy_files(source, partial)
        with LoadProgress(f"convert {source.resolve().name}") as progress:
            _engine.convert(
                os.fspath(source),
                os.fspath(partial),
                model_name or "",
                options,
                on_progress=progress.callback,
            )
    return target


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise check.refuse("out", os.fspath(target), "it exists already, choose another path")
    if not target.name:
        raise check.refuse("out", os.fspath(target), "it must be the path of a new directory")


@contextlib.contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A directory beside the target that takes its name at the end, and goes if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
    except FileExistsError as error:
        raise InvalidArgumentError(f"{partial} is left from an earlier try: remove it") from error
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_files(source: Path, target: Path) -> None:
    for entry in sorted(source.iterdir()):
        if entry.is_file() and (entry.name in _FILES or entry.name.lower().startswith(_LEGAL)):
            shutil.copyfile(entry, target / entry.name)
    if (source / _TEMPLATES).is_dir():
        (target / _TEMPLATES).mkdir()
        for entry in sorted((source / _TEMPLATES).glob("*.jinja")):
            shutil.copyfile(entry, target / _TEMPLATES / entry.name)
