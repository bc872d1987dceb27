"""Models of random weights with the shapes of the GPU benchmarks, written as fast as memory allows.

    python -m bench.engine.gpu_models DIR [--model llama-3-8b] [--dtype float16]

writes ``DIR/<model>-<dtype>`` (16 GB for llama-3-8b), unless it is there already. torch draws the
numbers, on a GPU where it has one, and shards are written by several threads. The layers of models
named ``-int4`` have 4-bit weights as AutoAWQ stores them, and their head has 16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

SHARDS = 8
STD = 0.02
GROUP = 128
SCALE = STD / 6.5  # of 4-bit numbers and zeros that are drawn evenly

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    },
    "llama-2-7b": {
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "rope_theta": 10000.0,
    },
}
INT4: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "version": "gemm",
        "zero_point": True,
    }
}
SHAPES |= {f"{model}-int4": shape | INT4 for model, shape in SHAPES.items()}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a llama's checkpoint."""
    hidden, inter, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (q_rows, hidden),
            layer + "self_attn.k_proj.weight": (kv_rows, hidden),
            layer + "self_attn.v_proj.weight": (kv_rows, hidden),
            layer + "self_attn.o_proj.weight": (hidden, q_rows),
            layer + "mlp.gate_proj.weight": (inter, hidden),
            layer + "mlp.up_proj.weight": (inter, hidden),
            layer + "mlp.down_proj.weight": (hidden, inter),
        }
    return quantised(shapes) if "quantization_config" in config else shapes


def quantised(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same with the layers' matrices as AutoAWQ stores them: eight rows in an int32."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if not name.endswith("_proj.weight"):
            found[name] = shape
            continue
        rows, columns = shape
        layer = name.removesuffix("weight")
        found[layer + "qweight"] = (columns, rows // 8)
        found[layer + "qzeros"] = (columns // GROUP, rows // 8)
        found[layer + "scales"] = (columns // GROUP, rows)
    return found


def packed(name: str) -> bool:
    return name.endswith((".qweight", ".qzeros"))


def size_of(name: str, shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * (4 if packed(name) else 2)


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Norms are ones, matrices normal(0, 0.02), or nearly so in 4 bits."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    if packed(name):
        drawn = torch.empty(shape, device=device, dtype=torch.int32)
        return drawn.random_(-(1 << 31), 1 << 31, generator=generator).cpu()
    drawn = torch.empty(shape, device=device, dtype=dtype)
    if name.endswith(".scales"):
        return drawn.uniform_(0.5 * SCALE, 1.5 * SCALE, generator=generator).cpu()
    return drawn.normal_(0.0, STD, generator=generator).cpu()


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """One safetensors file, a tensor at a time."""
    halves = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in shapes.items():
        begin, end = end, end + size_of(tensor, shape)
        kind = "I32" if packed(tensor) else halves
        header[tensor] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, (tensor, shape) in enumerate(shapes.items()):
            seed = zlib.crc32(f"{path.name} {i}".encode())
            tensor_data = random_tensor(tensor, shape, dtype, seed)
            file.write(memoryview(tensor_data.view(torch.int16).numpy()).cast("B"))


def write_model(directory: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """A Hugging Face directory without a tokenizer; the benchmarks send token ids."""
    shapes = tensor_shapes(config)
    files = [f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors" for i in range(SHARDS)]
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in files]
    sizes = [0] * SHARDS
    for tensor, shape in sorted(shapes.items(), key=lambda item: -size_of(*item)):
        smallest = sizes.index(min(sizes))
        shards[smallest][tensor] = shape
        sizes[smallest] += size_of(tensor, shape)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with ThreadPoolExecutor(SHARDS) as pool:
        jobs = [
            pool.submit(write_shard, directory / file, shard, dtype)
            for file, shard in zip(files, shards, strict=True)
        ]
        for job in jobs:
            job.result()
    weight_map = {
        tensor: file for file, shard in zip(files, shards, strict=True) for tensor in shard
    }
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config, indent=1))  # last: it is complete


def default_folder(wanted_bytes: float = 20e9) -> Path:
    """Memory where it has the room, else the temporary folder."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > wanted_bytes
    return (memory if roomy else Path("/tmp")) / "treadle-bench"


def prepare(folder: Path, model: str, dtype: str) -> Path:
    """The directory of a model, written where it is missing."""
    directory = folder / f"{model}-{dtype}"
    if not (directory / "config.json").exists():
        started = time.perf_counter()
        config = COMMON | SHAPES[model] | {"dtype": dtype, "torch_dtype": dtype}
        write_model(directory, config, getattr(torch, dtype))
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        seconds = time.perf_counter() - started
        print(f"wrote {size / 1e9:.1f} GB to {directory} in {seconds:.1f} s", flush=True)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=default_folder())
    parser.add_argument("--model", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    args = parser.parse_args()
    print(prepare(args.folder, args.model, args.dtype))


if __name__ == "__main__":
    main()
