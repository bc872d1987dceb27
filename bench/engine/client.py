"""The harness's end of a worker process (see worker.py)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from bench.engine.paths import REPOSITORY, ModelPaths


class EngineError(RuntimeError):
    """An engine could not do what it was asked."""


class Worker:
    """One engine's process; usable as a context manager."""

    def __init__(self, engine: str, threads: int) -> None:
        self._threads = threads
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.engine.worker", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def load(self, paths: ModelPaths) -> str:
        """Loads the model and returns the engine's version."""
        as_text = {k: str(v) for k, v in asdict(paths).items()}
        return str(self.call(do="load", paths=as_text, threads=self._threads))

    def call(self, **message: Any) -> Any:
        """Sends `message` and waits for the answer; raises `EngineError` on an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # On a broken pipe the read below finds out how the process ended.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply["ok"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
