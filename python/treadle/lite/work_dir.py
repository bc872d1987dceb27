"""The directory in which a run keeps what it has done, so that a killed one goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from treadle.errors import InvalidArgumentError, NotFoundError
from treadle.tokenization.files import read_json

_RUN, _HIDDEN = "run.json", "hidden.safetensors"


class WorkDir:
    """``run.json``: what the run was asked for. ``statistics/``, ``layers/``: a file for each layer
    that is done. ``hidden.safetensors``: the input of the next one, for as long as there is one.
    Every file is written beside its place and then moved there, so none is ever half of itself."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, run: Mapping[str, Any], restart: bool) -> None:
        """``run``: all that decides the results. Raises InvalidArgumentError where the directory
        holds another run, or something else; ``restart`` forgets that run."""
        if restart and (self.path / _RUN).exists():
            for name in ("statistics", "layers"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / _HIDDEN).unlink(missing_ok=True)
            (self.path / _RUN).unlink()
        if not (self.path / _RUN).exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InvalidArgumentError(
                    f"work_dir is {str(self.path)!r}: it exists and is not an earlier run's; name "
                    "a new directory"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(dict(run), indent=2) + "\n"
            self._write(self.path / _RUN, lambda path: path.write_text(text))
            return
        before = read_json(self.path / _RUN)
        for name in sorted({*before, *run}):
            if before.get(name) != run.get(name):
                raise InvalidArgumentError(
                    f"work_dir is {str(self.path)!r}: it holds another run, whose {name} is "
                    f"{before.get(name)!r}, not {run.get(name)!r}; name another directory, or "
                    "restart"
                )

    def run(self) -> dict[str, Any]:
        """What it was begun with. Raises NotFoundError."""
        if not (self.path / _RUN).exists():
            raise NotFoundError(f"{self.path}: not a work directory, it has no {_RUN}")
        return read_json(self.path / _RUN)

    def done(self, kind: str) -> int:
        """How many layers, from the first one on, have a file of this kind."""
        count = 0
        while self._layer(kind, count).exists():
            count += 1
        return count

    def save(self, kind: str, layer: int, tensors: dict[str, torch.Tensor]) -> None:
        """kind: "statistics" or "layers"."""
        (self.path / kind).mkdir(exist_ok=True)
        self._write(self._layer(kind, layer), lambda path: save_file(tensors, path))

    def load(self, kind: str, layer: int) -> dict[str, torch.Tensor]:
        return dict(load_file(self._layer(kind, layer)))

    def save_hidden(self, layer: int, hidden: torch.Tensor) -> None:
        """The input of ``layer``."""
        self._write(
            self.path / _HIDDEN,
            lambda path: save_file({"hidden": hidden}, path, {"layer": str(layer)}),
        )

    def load_hidden(self) -> tuple[int, torch.Tensor] | None:
        """(layer, its input)"""
        path = self.path / _HIDDEN
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["layer"]), file.get_tensor("hidden")

    def forget(self, *names: str) -> None:
        """Removes "hidden" or a kind: they are large."""
        for name in names:
            if name == "hidden":
                (self.path / _HIDDEN).unlink(missing_ok=True)
            else:
                shutil.rmtree(self.path / name, ignore_errors=True)

    def _layer(self, kind: str, index: int) -> Path:
        return self.path / kind / f"{index:04d}.safetensors"

    def _write(self, path: Path, write: Any) -> None:
        partial = path.with_suffix(".partial")
        write(partial)
        os.replace(partial, path)
