"""The weights of a Hugging Face directory, read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from treadle.errors import InvalidModelError, NotFoundError, UnsupportedError
from treadle.lite.families import Family, find_family
from treadle.tokenization.files import read_bytes, read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """``config``: its config.json. Tensors are mapped, and read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises NotFoundError, InvalidModelError or UnsupportedError, for a model that is
        quantised already, too."""
        self.directory = Path(path)
        if not self.directory.is_dir():
            raise NotFoundError(f"{path}: not a directory, expected a model directory")
        self.config: dict[str, Any] = read_json(self.directory / "config.json")
        self.family: Family = find_family(self.config, str(path))
        if (self.directory / "config.ini").exists():
            raise UnsupportedError(
                f"{path} is a workspace: start from the model directory it was converted from"
            )
        if self.config.get("quantization_config"):
            raise UnsupportedError(
                f"{path}/config.json has a quantization_config: the model is quantised already, "
                "start from the one it was made from"
            )
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        for name in self._file_names():
            try:
                self._files[name] = safe_open(self.directory / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise InvalidModelError(f"{self.directory / name}: {error}") from error
            self._file_of.update(dict.fromkeys(self._files[name].keys(), name))

    def _file_names(self) -> list[str]:
        if (self.directory / _SINGLE).exists():
            return [_SINGLE]
        index = self.directory / _INDEX
        if not index.exists():
            raise NotFoundError(f"{self.directory}: no {_SINGLE} or {_INDEX}")
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidModelError(f"{index}: weight_map must be an object that is not empty")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if os.path.basename(name) != name:
                raise InvalidModelError(f"{index}: {name!r} is not the name of a file beside it")
        return names

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    @property
    def num_layers(self) -> int:
        value = self.config.get("num_hidden_layers")
        if not isinstance(value, int) or value < 1:
            raise InvalidModelError(
                f"{self.directory}/config.json: num_hidden_layers is {value!r}: it must be an "
                "integer from 1"
            )
        return value

    def tensor(self, name: str) -> torch.Tensor:
        """As it is stored."""
        if name not in self._file_of:
            raise InvalidModelError(f"{self.directory}: tensor {name!r} is missing")
        return self._files[self._file_of[name]].get_tensor(name)

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one layer, by the checkpoint's names within it, as they are stored."""
        prefix = layer_prefix(index)
        found = {name[len(prefix) :]: name for name in self._file_of if name.startswith(prefix)}
        if not found:
            raise InvalidModelError(f"{self.directory}: layer {index} has no tensors")
        return {
            short: self.tensor(name)
            for short, name in found.items()
            if not short.endswith("rotary_emb.inv_freq")
        }

    def fingerprint(self) -> str:
        """Another one when the files are others."""
        facts: list[Any] = [read_bytes(self.directory / "config.json").hex()]
        for name in sorted(self._files):
            status = (self.directory / name).stat()
            facts.append([name, status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def layer_prefix(index: int) -> str:
    return f"model.layers.{index}."
