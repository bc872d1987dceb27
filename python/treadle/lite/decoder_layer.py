"""One decoder layer at a time, computed by transformers in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, DynamicCache, LlamaConfig

from treadle.errors import InvalidModelError, UnsupportedError
from treadle.lite.checkpoint import Checkpoint
from treadle.lite.families import LINEARS, Family, K, Q, V, as_llama

#: Gets K (after normalisation and RoPE) and V, each [samples, kv_heads, tokens, head_dim].
KvSink = Callable[[torch.Tensor, torch.Tensor], None]


class DecoderLayer:
    """Holds one layer's weights; another is read over it. It is a model of one layer without final
    norm and with no vocabulary to speak of, so that masks, positions and sliding windows are what
    transformers makes of the configuration."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._family: Family = checkpoint.family
        self._device = device
        self._config = _model_config(checkpoint)
        self._models: dict[str, Any] = {}  # by kind of attention
        self._model: Any = None

    @property
    def num_kv_heads(self) -> int:
        return int(self._config.num_key_value_heads or self._config.num_attention_heads)

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return int(self._config.num_attention_heads) // self.num_kv_heads

    @property
    def head_dim(self) -> int:
        own = getattr(self._config, "head_dim", None)
        return int(own or self._config.hidden_size // self._config.num_attention_heads)

    @property
    def max_positions(self) -> int:
        return int(self._config.max_position_embeddings)

    @property
    def module(self) -> Any:
        """The layer, a torch module with the parts that ``families.LINEARS`` names."""
        return self._model.layers[0]

    def linear(self, name: str) -> Any:
        """The torch module of one of LINEARS."""
        return self.module.get_submodule(name)

    def read(self, index: int) -> None:
        """Takes the weights of a layer. Raises InvalidModelError for a tensor that is missing, has
        another shape or values that are not finite, UnsupportedError for one nobody knows."""
        kinds = getattr(self._config, "layer_types", None)
        kind = str(kinds[index]) if kinds else ""
        if kind not in self._models:
            self._models.clear()
            self._models[kind] = self._build(kind)
        self._model = self._models[kind]
        stored = self._checkpoint.layer(index)
        tensors = self.split(stored)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                source = tensors.pop(name, None)
                where = f"{self._checkpoint.directory}: layer {index}, {name}"
                if source is None:
                    if not name.endswith(".bias"):
                        raise InvalidModelError(f"{where} is missing")
                    parameter.zero_()
                    continue
                if source.shape != parameter.shape:
                    raise InvalidModelError(
                        f"{where} has shape {list(source.shape)}, config.json needs "
                        f"{list(parameter.shape)}"
                    )
                parameter.copy_(source)
                if not bool(parameter.isfinite().all()):
                    raise InvalidModelError(f"{where} has values that are not finite")
        if tensors:
            raise UnsupportedError(
                f"{self._checkpoint.directory}: layer {index} has tensors that the family "
                f"{self._family.name} does not: {', '.join(sorted(tensors)[:4])}"
            )

    def run(self, hidden: torch.Tensor, kv: KvSink | None = None) -> torch.Tensor:
        """hidden: [samples, tokens, hidden_size] float32, positions from 0."""
        cache = DynamicCache()

        def record(keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
            if kv is not None:
                kv(keys, values)
            return keys, values

        # What a layer hands to the cache is what an engine keeps.
        cache.update = record
        with torch.inference_mode():
            return self._model(
                inputs_embeds=hidden, past_key_values=cache, use_cache=True
            ).last_hidden_state

    def split(self, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The layer's tensors by the names used inside."""
        inside = {self._family.stored(name): name for name in LINEARS}
        inside |= {self._family.stored(name): name for name in self._family.names}
        out: dict[str, torch.Tensor] = {}
        for name, tensor in stored.items():
            part, _, kind = name.rpartition(".")
            if part == self._family.fused_qkv:
                for qkv, rows in zip((Q, K, V), self.split_rows(tensor), strict=True):
                    out[f"{qkv}.{kind}"] = rows
            else:
                out[f"{inside.get(part, part)}.{kind}"] = tensor
        return out

    def split_rows(self, fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of Q, K and V of a fused matrix, or of anything that has a row for each output."""
        heads = self.group + 2
        if fused.shape[0] != self.num_kv_heads * heads * self.head_dim:
            raise InvalidModelError(
                f"{self._checkpoint.directory}: {self._family.fused_qkv} has {fused.shape[0]} "
                f"rows, config.json needs {self.num_kv_heads * heads * self.head_dim}"
            )
        each = fused.unflatten(0, (self.num_kv_heads, heads, self.head_dim))
        parts = (each[:, : self.group], each[:, self.group : -1], each[:, -1:])
        return tuple(part.flatten(0, 2) for part in parts)

    def join_rows(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The inverse of split_rows."""
        parts = ((q, self.group), (k, 1), (v, 1))
        each = [
            rows.unflatten(0, (self.num_kv_heads, count, self.head_dim)) for rows, count in parts
        ]
        return torch.cat(each, 1).flatten(0, 2)

    def _build(self, kind: str) -> Any:
        config = copy.deepcopy(self._config)
        config.num_hidden_layers = 1
        config.vocab_size = 1
        config.pad_token_id = config.bos_token_id = config.eos_token_id = None
        config._attn_implementation = "sdpa"
        if kind:
            config.layer_types = [kind]
        model = MODEL_MAPPING[type(config)](config).eval()
        model.norm = torch.nn.Identity()
        return model.to(self._device)


def _model_config(checkpoint: Checkpoint) -> Any:
    try:
        if checkpoint.family.native:
            return AutoConfig.from_pretrained(checkpoint.directory)
        return LlamaConfig(**as_llama(checkpoint.config))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(
            f"{checkpoint.directory}/config.json: transformers cannot use it: {error}"
        ) from error
