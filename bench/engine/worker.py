"""One engine in a process of its own: JSON requests on stdin, JSON answers on stdout.

Engines bring their own thread pools (OpenMP of two makes, oneDNN, plain threads); a process each
keeps them from touching one another, and makes peak memory a figure of one engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.engine.paths import ModelPaths
from bench.engine.peers import PEERS
from bench.engine.peers.base import Peer, Request


def peak_memory_bytes() -> int:
    """VmHWM of this process: the most that was ever resident, mapped weights included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure(peer: Peer, case: str, args: dict[str, Any], settings: dict[str, object]) -> float:
    """The speed of one case, in tokens per second."""
    if case == "decode":
        return peer.decode_speed(args["prompt"], args["n_new"], settings)
    if case == "prefill":
        return peer.prefill_speed(args["prompt"], settings)
    if case == "batch":
        return peer.batch_throughput([Request(**r) for r in args["requests"]], settings)
    raise ValueError(f"unknown case '{case}'")


def answer(peer: Peer, message: dict[str, Any]) -> object:
    """Does what `message["do"]` names."""
    action = message["do"]
    if action == "load":
        paths = dict(message["paths"])
        name = str(paths.pop("name"))
        peer.load(ModelPaths(name, **{k: Path(v) for k, v in paths.items()}), message["threads"])
        return peer.version()
    if action == "variants":
        return peer.variants(message["case"])
    if action == "measure":
        return measure(peer, message["case"], message["args"], message["settings"])
    if action == "greedy":
        return peer.greedy(message["prompt"], message["n_new"])
    if action == "second_turn":
        turn = peer.second_turn(message["history"], message["new"])
        return asdict(turn) if turn else None
    if action == "memory":
        before = time.perf_counter()
        kv = peer.memory_run(message["prompt"], message["n_new"])
        return {
            "peak": peak_memory_bytes(),
            "kv": kv,
            "seconds": time.perf_counter() - before,
        }
    raise ValueError(f"unknown action '{action}'")


def main() -> None:
    # Libraries print to stdout when they like; the protocol keeps the real one to itself.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        reply: dict[str, object]
        try:
            peer = peer or PEERS[sys.argv[1]]()
            reply = {"ok": answer(peer, json.loads(line))}
        except Exception as e:  # an engine that fails is a line in the report, not the end of it
            reply = {"error": f"{type(e).__name__}: {e}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
