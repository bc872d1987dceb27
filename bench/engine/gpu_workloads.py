"""The whole engine on a GPU through its Python API, beside its peers and our targets.

    python -m bench.engine.gpu_workloads [--model llama-3-8b] [--dtype float16] [--cases CASE ...]

Random weights, greedy, end tokens ignored, prefix cache off, fresh random prompts, median of 3. A
decode step is (T(256) - T(1)) / 255, T(n) the time until every request has its n tokens.

cases:
    start     a fresh process from `import treadle` to its first token, and loading the weights
    decode    steps at input 128, output 256, batch 1 to 256
    context   steps at a context of 8192, batch 1 and 32
    prefill   time to first token
    requests  512 requests at once (lengths_512.json)
    pool      the same with inputs four times as long in a KV pool of --pool-gib: 16 bits, int8, and
              int8 with static ranges
    mixed     64 streams decode while prompts of 8192 tokens arrive every second

With --quant-policy 8 all but `pool` keep K and V as int8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bench.engine.gpu_models import COMMON, SHAPES, default_folder, prepare
from bench.engine.gpu_reference import REFERENCES, Reference
from bench.engine.gpu_report import HEADER, describe_gpu, table_line
from bench.engine.machine import commit
from bench.engine.paths import REPOSITORY
from treadle import Engine, GenerationConfig

Ids = npt.NDArray[np.int32]
REPEATS = 3
LENGTHS = Path(__file__).parent / "lengths_512.json"

#: Prints the seconds since its first line after each stage.
START = """
import time; began = time.perf_counter()
import json, sys
import treadle
path, options = sys.argv[1], json.loads(sys.argv[2])
times = {"import": time.perf_counter() - began}
engine = treadle.Engine.from_pretrained(path, **options)
times["constructor"] = time.perf_counter() - began
stream = engine.create_instance().stream_infer(None, [5] * 16, do_sample=False, ignore_eos=True)
next(stream)
times["first token"] = time.perf_counter() - began
print(json.dumps(times | {"weight_bytes": engine.info.weight_bytes}))
"""


def greedy(tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tokens, do_sample=False, ignore_eos=True)


class Bench:
    """One engine and what was measured on it."""

    def __init__(
        self,
        model: str,
        path: Path,
        options: dict[str, Any],
        repeats: int,
        pool_bytes: int = 0,
        pool_requests: int = 512,
    ) -> None:
        self.model = model
        self.path = path
        self.options = options
        self.repeats = repeats
        self.pool_bytes = pool_bytes
        self.pool_requests = pool_requests
        self.rows: list[dict[str, Any]] = []
        self._random = np.random.default_rng(2026)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """Loaded when it is first needed: the start is measured without one."""
        if self._engine is None:
            self._engine = Engine.from_pretrained(self.path, **self.options)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def use(self, path: Path, **options: Any) -> None:
        """Another engine instead, with these options changed."""
        self.close()
        self._engine = Engine.from_pretrained(path, **(self.options | options))

    def add(self, case: str, value: float, unit: str, **more: Any) -> None:
        """Records a figure and prints it beside the peers' and the target."""
        reference = REFERENCES.get((self.model, case), Reference())
        row = {
            "case": case,
            "value": value,
            "unit": unit,
            "vllm": reference.vllm,
            "turbomind": reference.turbomind,
            "target": reference.target,
            "met": reference.met(value),
            **more,
        }
        self.rows.append(row)
        print(table_line(row), flush=True)

    def prompt(self, length: int) -> Ids:
        return self._random.integers(5, self.engine.info.vocab_size, length, dtype=np.int32)

    def stream(self, lengths: list[int], tokens: int, **options: Any) -> Any:
        prompts = [self.prompt(length) for length in lengths]
        return self.engine.create_instance().stream_infer(None, prompts, greedy(tokens), **options)

    def seconds(self, lengths: list[int], tokens: int) -> float:
        """Until every request has its tokens."""
        prompts = [self.prompt(length) for length in lengths]
        generator = self.engine.create_instance()
        began = time.perf_counter()
        outputs: list[Any] = []
        for outputs in generator.stream_infer(None, prompts, greedy(tokens)):  # noqa: B007
            pass
        seconds = time.perf_counter() - began
        check(outputs, [tokens] * len(lengths))
        return seconds

    def median_seconds(self, lengths: list[int], tokens: int) -> list[float]:
        """All of them, the median first."""
        times = [self.seconds(lengths, tokens) for _ in range(self.repeats)]
        return [statistics.median(times), *times]


def check(outputs: list[Any], tokens: list[int]) -> None:
    """A figure of a request that failed is worth nothing."""
    for output in outputs:
        if output.error is not None:
            raise output.error
    made = [len(output.token_ids) for output in outputs]
    if made != tokens:
        raise RuntimeError(f"the engine made other numbers of tokens than asked for: {made[:8]}")


def measure_start(bench: Bench) -> None:
    for shard in bench.path.glob("*.safetensors"):  # into the page cache
        with shard.open("rb") as file:
            while file.read(1 << 24):
                pass
    runs = []
    for _ in range(bench.repeats):
        command = [sys.executable, "-c", START, str(bench.path), json.dumps(bench.options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        runs.append(json.loads(done.stdout))
    loads = [run["constructor"] - run["import"] for run in runs]
    size = runs[0]["weight_bytes"] / 1e9
    bench.add("load", statistics.median(loads), "s", gigabytes=size, all=loads)
    firsts = [run["first token"] for run in runs]
    bench.add("start to first token", statistics.median(firsts), "s", all=firsts, runs=runs)


def measure_decode(bench: Bench) -> None:
    for batch in (1, 8, 32, 64, 128, 256):
        lengths = [128] * batch
        bench.seconds(lengths, 16)  # shapes that this batch meets first
        before = bench.engine.stats()
        first, *firsts = bench.median_seconds(lengths, 1)
        whole, *wholes = bench.median_seconds(lengths, 256)
        after = bench.engine.stats()
        bench.add(
            f"step, batch {batch}",
            1e3 * (whole - first) / 255,
            "ms",
            tokens_per_second=batch * 256 / whole,
            host_us=1e6 * (after.host_seconds - before.host_seconds) / (after.steps - before.steps),
            all={"T(1)": firsts, "T(256)": wholes},
        )


def arrivals(stream: Any, until: Callable[[int], bool]) -> Iterator[tuple[float, list[int]]]:
    """When outputs came, and how many tokens each sequence had got by then."""
    for outputs in stream:
        counts = [len(output.token_ids) for output in outputs]
        yield time.perf_counter(), counts
        if until(min(counts)):
            stream.close()
            return


def measure_context(bench: Bench) -> None:
    first, *_ = bench.median_seconds([8192], 1)
    whole, *_ = bench.median_seconds([8192], 128)
    bench.add("step at 8192, batch 1", 1e3 * (whole - first) / 127, "ms")
    # Steady: from the moment that all decode, until the first one has its last token.
    steps, lasts = [], []
    for _ in range(bench.repeats):
        began = time.perf_counter()
        stream = bench.stream([8192] * 32, 1024)
        seen = [(t, counts) for t, counts in arrivals(stream, lambda least: least > 64)]
        steady = [(t, counts) for t, counts in seen if min(counts) > 0]
        (t0, c0), (t1, c1) = steady[0], steady[-1]
        steps.append(1e3 * (t1 - t0) / (min(c1) - min(c0)))
        lasts.append(t0 - began)
    bench.add("step at 8192, batch 32", statistics.median(steps), "ms", all=steps)
    bench.add("last first token of 32 x 8192", statistics.median(lasts), "s", all=lasts)


def measure_prefill(bench: Bench) -> None:
    for name, lengths in (
        ("512", [512]),
        ("2048", [2048]),
        ("8192", [8192]),
        ("16384", [16384]),
        ("16 x 1024", [1024] * 16),
    ):
        bench.seconds(lengths, 1)
        seconds, *everything = bench.median_seconds(lengths, 1)
        bench.add(
            f"first token, {name}",
            1e3 * seconds,
            "ms",
            tokens_per_second=sum(lengths) / seconds,
            all=everything,
        )


def requests_seconds(bench: Bench, lengths: list[list[int]], repeats: int) -> list[float]:
    """Of (input, output) tokens, all at once."""
    configs = [greedy(output) for _, output in lengths]
    times = []
    for _ in range(repeats):
        prompts = [bench.prompt(length) for length, _ in lengths]
        generator = bench.engine.create_instance()
        began = time.perf_counter()
        (outputs,) = generator.stream_infer(None, prompts, configs, stream_output=False)
        times.append(time.perf_counter() - began)
        check(outputs, [output for _, output in lengths])
    return times


def measure_requests(bench: Bench) -> None:
    lengths = json.loads(LENGTHS.read_text())["lengths"]
    times = requests_seconds(bench, lengths, min(2, bench.repeats))  # the second: no new shapes
    total = sum(output for _, output in lengths)
    bench.add("512 requests", total / min(times), "tok/s", wall_s=min(times), all=times)


@contextlib.contextmanager
def ranges(path: Path, shape: dict[str, Any]) -> Iterator[Path]:
    """A folder with the same model and static ranges of int8 KV, whose values matter little."""
    sizes = [shape["num_hidden_layers"], 2, shape["num_key_value_heads"], 2]
    with tempfile.TemporaryDirectory() as folder:
        for file in path.iterdir():
            (Path(folder) / file.name).symlink_to(file)
        values = np.full(sizes, 0.04, np.float32)
        save_file({"kv_qparams": values}, Path(folder) / "kv_qparams.safetensors")
        yield Path(folder)


def measure_pool(bench: Bench) -> None:
    """What int8 KV gains where the pool decides how many sequences run, of one size for both."""
    all_lengths = json.loads(LENGTHS.read_text())["lengths"]
    lengths = [[4 * given, made] for given, made in all_lengths[: bench.pool_requests]]
    total = sum(output for _, output in lengths)
    shape = COMMON | SHAPES[bench.model]
    heads = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"]
    rates = []
    for name, policy, size in (
        ("16 bits", 0, 2 * shape["head_dim"]),
        ("int8", 8, shape["head_dim"] + 8),
        ("int8, static ranges", 8, shape["head_dim"]),
    ):
        blocks = bench.pool_bytes // (64 * heads * size)
        static = name.endswith("ranges")
        with ranges(bench.path, shape) if static else contextlib.nullcontext(bench.path) as path:
            bench.use(path, quant_policy=policy, cache_max_entry_count=blocks, session_len=8192)
        assert bench.engine.info.kv_static_ranges == static
        assert bench.engine.info.kv_bytes_per_token == heads * size
        times = requests_seconds(bench, lengths, 1)
        rates.append(total / times[0])
        stats = bench.engine.stats()
        bench.add(
            f"{len(lengths)} long requests, KV of {name}",
            rates[-1],
            "tok/s",
            wall_s=times[0],
            pool_tokens=64 * blocks,
            preemptions=stats.preemptions,
        )
    what = f"{len(lengths)} long requests, int8"
    bench.add(f"{what} / 16 bits", rates[1] / rates[0], "x")
    bench.add(f"{what} with static ranges / 16 bits", rates[2] / rates[0], "x")
    bench.close()


def measure_mixed(bench: Bench, seconds: float = 10.0) -> None:
    """Gaps between the outputs of each of 64 streams."""
    options: dict[str, Any] = {"sequences": 64, "prompt": 8192, "every_s": 1.0}
    bench.seconds([8192], 1)
    ending = threading.Event()
    prompts = [bench.prompt(8192) for _ in range(int(seconds))]
    waits: list[float] = []

    def send() -> None:
        generator = bench.engine.create_instance()
        for prompt in prompts:
            began = time.perf_counter()
            stream = generator.stream_infer(None, prompt, greedy(1))
            next(stream)
            waits.append(time.perf_counter() - began)
            if ending.wait(max(0.0, 1.0 - waits[-1])):
                return

    stream = bench.stream([128] * 64, 16000)
    newest = [0.0] * 64
    known = [0] * 64
    gaps: list[float] = []
    quiet: list[float] = []
    sender = threading.Thread(target=send)
    began = 0.0
    for outputs in stream:
        now = time.perf_counter()
        running = began and now > began + 1.0  # the first second is without prompts
        for i, output in enumerate(outputs):
            if len(output.token_ids) > known[i]:
                if known[i] and began:
                    (gaps if running else quiet).append(now - newest[i])
                newest[i], known[i] = now, len(output.token_ids)
        if not began and min(known) > 16:
            began = now
        if running and not sender.ident:
            sender.start()
        if sender.ident and not sender.is_alive():
            break
    ending.set()
    stream.close()
    sender.join()
    p50, p99 = np.percentile(gaps, [50, 99])
    bench.add(
        "mixed load, p99 / median",
        float(p99 / p50),
        "x",
        p50_ms=1e3 * float(p50),
        p99_ms=1e3 * float(p99),
        max_ms=1e3 * max(gaps),
        quiet_p50_ms=1e3 * float(np.percentile(quiet, 50)),
        quiet_p99_ms=1e3 * float(np.percentile(quiet, 99)),
        first_token_ms=[1e3 * wait for wait in waits],
        **options,
    )


CASES: dict[str, Callable[[Bench], None]] = {
    "start": measure_start,
    "decode": measure_decode,
    "context": measure_context,
    "prefill": measure_prefill,
    "requests": measure_requests,
    "pool": measure_pool,
    "mixed": measure_mixed,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--models", type=Path, default=default_folder(), help="where weights lie")
    parser.add_argument("--out", type=Path, help="folder for the results (.json and .md)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--max-batch-size", type=int, help="default: the engine's own")
    parser.add_argument("--quant-policy", type=int, choices=[0, 8], default=0)
    parser.add_argument("--pool-gib", type=float, default=5.0, help="KV pool of the case `pool`")
    parser.add_argument("--pool-requests", type=int, default=512, help="`pool`: the first so many")
    parser.add_argument("--commit", default=os.environ.get("TREADLE_COMMIT"), help="if not in git")
    args = parser.parse_args()
    path = prepare(args.models, args.model, args.dtype)
    options = {
        "device": args.device,
        "max_batch_size": args.max_batch_size,
        "session_len": 20480,
        "enable_prefix_caching": False,
        "random_seed": 1,
        "quant_policy": args.quant_policy,
    }
    pool_bytes = int(args.pool_gib * 2**30)
    bench = Bench(args.model, path, options, args.repeats, pool_bytes, args.pool_requests)
    print(HEADER, flush=True)
    failures: dict[str, str] = {}
    for case in args.cases:
        try:
            CASES[case](bench)
        except Exception as error:  # the other cases still count
            failures[case] = f"{type(error).__name__}: {error}"
            print(f"{case} failed: {failures[case]}", flush=True)
    bench.close()
    found = {
        "model": args.model,
        "dtype": args.dtype,
        "gpu": describe_gpu(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": args.commit or commit(REPOSITORY),
        "command": "python -m bench.engine.gpu_workloads " + shlex.join(sys.argv[1:]),
        "options": options,
        "rows": bench.rows,
        "failures": failures,
    }
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        kv = ["int8"] if args.quant_policy == 8 else []
        stem = args.out / "-".join(["gpu", args.model, args.dtype, *kv, *args.cases])
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1))
        lines = [HEADER, *map(table_line, bench.rows)]
        stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
