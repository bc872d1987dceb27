"""How long a model takes to load from its Hugging Face directory and from its workspace.

    python -m bench.engine.load_times --cache DIR [--device cpu] [--repeats 5]
    python -m bench.engine.load_times --cache DIR --directory PATH ...

Converts each model directory to a workspace in DIR and loads the two in turns: warm (files in the
page cache) and cold (dropped from it). Prints the least wall time and the least CPU time of each.
Without --directory the models are random ones of one shape, written to DIR (fp16, and 4-bit in each
checkpoint format). The files' order and format is what counts, not their numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.engine.models import RANDOM_415M, write_random_llama
from treadle import Engine
from treadle.workspace import convert

#: 1.1 B parameters.
SHAPE = RANDOM_415M | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 22,
}
GROUP = 128
PROJECTION = "_proj.weight"


def words(*shape: int) -> torch.Tensor:
    """Random 4-bit numbers, eight in a word; none is 15, which is no zero point of GPTQ's."""
    return torch.randint(0, 1 << 31, shape, dtype=torch.int64).bitwise_and(0x77777777).int()


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape).mul_(0.01).half()


def quantized(method: str, name: str, out: int, size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a 4-bit layer."""
    groups = size // GROUP
    if method == "compressed-tensors":
        yield name + ".weight_packed", words(out, size // 8)
        yield name + ".weight_scale", scales(out, groups)
        yield name + ".weight_shape", torch.tensor([out, size])
        return
    shape = (size, out // 8) if method == "awq" else (size // 8, out)
    yield name + ".qweight", words(*shape)
    yield name + ".qzeros", words(groups, out // 8)
    yield name + ".scales", scales(groups, out)


CONFIGS = {
    "awq": {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    "compressed-tensors": {
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
            }
        },
    },
}


def write_quantized(fp16: Path, out: Path, method: str) -> None:
    from safetensors.torch import load_file

    out.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(fp16 / "model.safetensors").items():
        if name.endswith(PROJECTION):
            tensors |= quantized(method, name.removesuffix(".weight"), *tensor.shape)
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for file in fp16.glob("*.json"):
        shutil.copy(file, out)
    config = json.loads((fp16 / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method} | CONFIGS[method]
    (out / "config.json").write_text(json.dumps(config))


def drop(directory: Path) -> None:
    """Takes a model's files out of the page cache."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Times:
    wall: float = float("inf")
    cpu: float = float("inf")

    def load(self, directory: Path, device: str) -> None:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        Engine.from_pretrained(
            directory, device=device, cache_max_entry_count=16, max_batch_size=1, session_len=512
        ).close()
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.wall, self.cpu = min(self.wall, wall), min(self.cpu, cpu)


STATES = ("warm", "cold")


def compare(source: Path, workspace: Path, device: str, repeats: int, states: list[str]) -> None:
    """Prints a row for each state of the files."""
    shutil.rmtree(workspace, ignore_errors=True)
    convert(source, workspace)
    size = sum(file.stat().st_size for file in workspace.rglob("*.safetensors")) / 1e9
    for state in states:
        both = Times(), Times()
        for directory in (source, workspace):
            Times().load(directory, device)  # a first one that does not count
        for _ in range(repeats):
            for times, directory in zip(both, (source, workspace), strict=True):
                if state == "cold":
                    drop(directory)
                times.load(directory, device)
        cells = [f"{times.wall:.2f}, {times.cpu:.2f}" for times in both]
        ratio = both[0].wall / both[1].wall
        print(f"| {source.name} | {size:.2f} GB | {state} | {' | '.join(cells)} | {ratio:.2f} |",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--models", nargs="+", default=["fp16", *CONFIGS], choices=["fp16", *CONFIGS]
    )
    which.add_argument("--directory", nargs="+", type=Path, help="models to load instead")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    sources = args.directory or [args.cache / name for name in args.models]
    fp16 = args.cache / "fp16"
    if not args.directory and not fp16.exists():
        write_random_llama(fp16, SHAPE)
    print("| weights | files | | directory: wall, CPU s | workspace: wall, CPU s | wall ratio |")
    print("|---|---|---|---|---|---|")
    for source in sources:
        if not args.directory and not source.exists():
            write_quantized(fp16, source, source.name)
        workspace = args.cache / f"{source.name}-workspace"
        compare(source, workspace, args.device, args.repeats, args.states)


if __name__ == "__main__":
    main()
