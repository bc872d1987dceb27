"""Compares Treadle with its peers: same weights, same ids, same threads, one run, one machine.

    python -m bench.engine.compare --cache DIR [--engines ...] [--cases ...] [--threads N]

Every engine lives in its own process. For each case each engine first tries its own settings and
keeps the fastest; then the engines take turns (A B C A B C ...) and the median counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.engine import machine, report, workloads
from bench.engine.client import EngineError, Worker
from bench.engine.models import prepare
from bench.engine.paths import DEMO_MODEL, REPOSITORY, ModelPaths
from bench.engine.peers import PEERS

CASES = ("agree", "decode", "prefill", "batch", "second_turn", "memory")
BIG_MODEL_CASES = ("decode", "prefill", "memory")
OURS = "treadle"
# New tokens of one decode measurement: long enough to average over, short enough to repeat.
DECODE_TOKENS = {"tiny-chat": 256, "random-415m": 48}
# Engines let their idle threads spin for a while (libiomp5: 200 ms); wait until they sleep.
SETTLE_S = 0.3


class Comparison:
    """The running engines of one model and what was measured with them."""

    def __init__(self, paths: ModelPaths, engines: Sequence[str], threads: int, repeats: int):
        self._paths = paths
        self._threads = threads
        self._repeats = repeats
        self._vocab = int(str(paths.config()["vocab_size"]))
        self._workers: dict[str, Worker] = {}
        self._names = list(engines)
        self.results: dict[str, Any] = {"failures": {}, "versions": {}}

    def __enter__(self) -> Comparison:
        for name in self._names:
            worker = Worker(name, self._threads)
            try:
                self.results["versions"][name] = worker.load(self._paths)
            except EngineError as e:
                self._failed(name, "load", e)
                worker.close()
            else:
                self._workers[name] = worker
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def _failed(self, name: str, case: str, e: EngineError) -> None:
        print(f"  {name} failed in {case}: {e}", file=sys.stderr)
        self.results["failures"][f"{name} {case}"] = str(e)

    def run(self, case: str) -> None:
        """Measures `case` and stores what came out under its name."""
        print(f"{self._paths.name}: {case}", file=sys.stderr)
        if case in ("decode", "prefill", "batch"):
            self.results[case] = self._speed(case)
        elif case == "agree":
            self.results[case] = self._agree()
        elif case == "second_turn":
            self.results[case] = self._second_turn()
        elif case == "memory":
            self.results[case] = self._memory()

    def _args(self, case: str, seed: str) -> dict[str, Any]:
        if case == "batch":
            return workloads.mixed_batch(self._vocab, seed)
        return workloads.single(case, self._vocab, seed, DECODE_TOKENS[self._paths.name])

    def _speed(self, case: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, worker in self._workers.items():
            try:
                settings = worker.call(do="variants", case=case)
                tried = []
                for i, s in enumerate(settings):  # twice each: the first pass warms up
                    rate = 0.0
                    for again in range(2):
                        args = self._args(case, f"tune {i} {again}")
                        rate = worker.call(do="measure", case=case, args=args, settings=s)
                        time.sleep(SETTLE_S)
                    tried.append((float(rate), s))
            except EngineError as e:
                self._failed(name, case, e)
                continue
            best = max(tried, key=lambda t: t[0])[1]
            out[name] = {"settings": best, "tried": tried, "runs": []}
        for repeat in range(self._repeats):
            args = self._args(case, f"repeat {repeat}")
            for name, entry in out.items():
                rate = self._workers[name].call(
                    do="measure", case=case, args=args, settings=entry["settings"]
                )
                entry["runs"].append(float(rate))
                time.sleep(SETTLE_S)
        for entry in out.values():
            entry["median"] = statistics.median(entry["runs"])
        return out

    def _agree(self) -> dict[str, Any]:
        """Greedy answers up to the end token, each engine against the others' answers."""
        defaults = json.loads((self._paths.hf / "generation_config.json").read_text())
        stops = defaults["eos_token_id"]
        stops = {stops} if isinstance(stops, int) else set(stops)
        prompts = workloads.chat_prompts(self._paths.hf)
        answers: dict[str, list[list[int]]] = {}
        for name, worker in self._workers.items():
            answers[name] = []
            for prompt in prompts:
                ids: list[int] = worker.call(do="greedy", prompt=prompt, n_new=48)
                end = next((i for i, t in enumerate(ids) if t in stops), len(ids))
                answers[name].append(ids[:end])
        agreed = {}
        for name, mine in answers.items():
            others = [a for other, a in answers.items() if other != name]
            same = [
                sum(mine[i] == other[i] for other in others) * 2 >= len(others)
                for i in range(len(prompts))
            ]
            agreed[name] = {"same": sum(same), "of": len(prompts)}
        return {"with_most_others": agreed, "answers": answers}

    def _second_turn(self) -> dict[str, Any]:
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in self._workers}
        for repeat in range(self._repeats + 1):
            history, new = workloads.session(self._vocab, f"repeat {repeat}")
            for name, runs in turns.items():
                turn = self._workers[name].call(do="second_turn", history=history, new=new)
                if turn and repeat:  # the first round warms up
                    runs.append(turn)
                time.sleep(SETTLE_S)
        return {
            name: {
                "new_tokens": len(new),
                "computed": max(int(r["computed"]) for r in runs),
                "ttft_kept": statistics.median(r["ttft_kept"] for r in runs),
                "ttft_resent": statistics.median(r["ttft_resent"] for r in runs),
                "runs": runs,
            }
            for name, runs in turns.items()
            if runs
        }

    def _memory(self) -> dict[str, Any]:
        out: dict[str, Any] = {"weights": self._paths.weight_bytes()}
        prompt = workloads.single("prefill", self._vocab, "memory", 16)["prompt"]
        for name in self._workers:
            with Worker(name, self._threads) as fresh:
                fresh.load(self._paths)
                out[name] = fresh.call(do="memory", prompt=prompt, n_new=16)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="directory of model files")
    parser.add_argument("--tiny-chat", type=Path, default=DEMO_MODEL, help="the demo model")
    parser.add_argument("--engines", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--models", nargs="+", default=["tiny-chat", "random-415m"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in bench/results/")
    args = parser.parse_args()

    models = prepare(args.cache, args.tiny_chat)
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "python": platform.python_version(),
        "packages": {d: metadata.version(d) for d in machine.PACKAGES if machine.has(d)},
        "commit": machine.commit(REPOSITORY),
        "command": machine.command(sys.argv),
        "threads": args.threads,
        "repeats": args.repeats,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "models": {},
    }
    for name in args.models:
        cases = [c for c in args.cases if name == "tiny-chat" or c in BIG_MODEL_CASES]
        with Comparison(models[name], args.engines, args.threads, args.repeats) as comparison:
            for case in cases:
                comparison.run(case)
        found["models"][name] = comparison.results
    found["machine"]["load_after"] = machine.load()
    out = args.out or REPOSITORY / "bench" / "results" / (
        f"engine-{found['machine']['slug']}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(report.text(found, OURS))
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
