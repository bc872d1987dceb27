"""What the tools must know of a model family: how its layers are computed, and what its checkpoint
calls their parts. Inside, every family has the names of transformers' llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treadle.errors import InvalidModelError, UnsupportedError

#: The linear layers of a decoder layer, in the order in which they are computed.
Q, K, V, O = (f"self_attn.{letter}_proj" for letter in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{part}_proj" for part in ("gate", "up", "down"))
LINEARS = (Q, K, V, O, GATE, UP, DOWN)
ATTN_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"


@dataclass(frozen=True)
class Family:
    #: ``model_type`` of config.json.
    name: str
    #: Whether transformers computes it under this name; the others are computed as a llama.
    native: bool = True
    #: internlm2: one matrix whose rows are [kv_head][queries of the group | k | v][head_dim].
    fused_qkv: str | None = None
    #: Where the checkpoint's name of a part is another one.
    names: Mapping[str, str] = field(default_factory=dict)
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head"

    def stored(self, part: str) -> str:
        """The checkpoint's name, within a layer, of a linear layer or norm."""
        if self.fused_qkv is not None and part in (Q, K, V):
            return self.fused_qkv
        return self.names.get(part, part)


FAMILIES = {
    family.name: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("internlm", native=False),
        Family(
            "internlm2",
            native=False,
            fused_qkv="attention.wqkv",
            names={
                O: "attention.wo",
                GATE: "feed_forward.w1",
                UP: "feed_forward.w3",
                DOWN: "feed_forward.w2",
                ATTN_NORM: "attention_norm",
                MLP_NORM: "ffn_norm",
            },
            embedding="model.tok_embeddings.weight",
            head="output",
        ),
        Family("internlm3", native=False),
    )
}


def find_family(config: Mapping[str, Any], path: str) -> Family:
    """``config``: config.json of the model at ``path``."""
    name = config.get("model_type")
    if name is None:
        raise InvalidModelError(
            f"{path}/config.json: model_type is missing, expected one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedError(
            f"{path}/config.json: model_type is {name!r}: treadle lite knows {', '.join(FAMILIES)}"
        )
    return family


def as_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of LlamaConfig for a family that is a llama by another name. Biases that only some
    of the layers have are zero in the others."""
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps "
        "rope_theta rope_scaling rope_parameters"
    )
    out = {name: config[name] for name in same.split() if config.get(name) is not None}
    rotary = config.get("rotary")  # internlm; "dynamic" is felt beyond the trained length alone
    if isinstance(rotary, dict) and "base" in rotary:
        out["rope_theta"] = rotary["base"]
    default = config.get("model_type") in ("internlm", "internlm2")
    bias = bool(config.get("bias", config.get("mlp_bias", default)))
    qkv_bias = bool(config.get("qkv_bias", config.get("attention_bias", False)))
    out["attention_bias"] = bias or qkv_bias
    out["mlp_bias"] = bias and config.get("model_type") == "internlm3"
    return out
