"""An engine's life: loading, facts about it, closing, processes and signals."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import treadle
from devices import Device
from streams import last, wait_until
from treadle import Engine, EngineConfig
from treadle.errors import (
    QueueFullError,
    ShutdownError,
)


def test_stats_info_and_health(engine: Engine, prompt_ids: list[int]) -> None:
    before = engine.stats()
    last(engine.create_instance().stream_infer(None, prompt_ids))
    wait_until(lambda: engine.stats().requests_finished > before.requests_finished)
    after = engine.stats()
    assert after.requests_submitted == before.requests_submitted + 1
    assert after.prompt_tokens == before.prompt_tokens + len(prompt_ids)
    assert after.output_tokens > before.output_tokens
    assert after.mean_ttft > 0
    assert after.as_dict()["steps"] == after.steps
    assert engine.info.architecture == "LlamaForCausalLM"
    assert engine.info.session_len == 2048
    assert engine.info.eos_token_ids == [2, 4]
    assert engine.info.kv_blocks == 512
    assert engine.health()
    assert engine.health().cause == ""


def test_closing(device: Device, demo_path: str, prompt_ids: list[int]) -> None:
    engine = device.load(demo_path, cache_max_entry_count=64)
    stream = engine.create_instance().stream_infer(
        None, prompt_ids, ignore_eos=True, max_new_tokens=1900
    )
    next(stream)
    engine.close()
    (output,) = last(stream)
    assert output.finish_reason == "error"
    assert isinstance(output.error, ShutdownError)
    engine.close()
    assert not engine.health()
    assert "closed" in engine.health().cause
    with pytest.raises(ShutdownError, match="closed"):
        engine.create_instance().stream_infer(None, prompt_ids)
    with pytest.raises(ShutdownError, match="closed"):
        engine.stats()
    assert engine.info.vocab_size == 4096  # what was loaded can still be read


def test_closing_may_let_requests_finish(
    device: Device, demo_path: str, prompt_ids: list[int]
) -> None:
    engine = device.load(demo_path, cache_max_entry_count=64)
    stream = engine.create_instance().stream_infer(None, prompt_ids)
    engine.close(drain_seconds=60)
    assert last(stream)[0].finish_reason == "stop"


def test_a_full_queue(device: Device, demo_path: str) -> None:
    config = EngineConfig(max_batch_size=1, max_queue_size=2, cache_max_entry_count=64)
    with device.load(demo_path, config=config) as engine:
        generator = engine.create_instance()
        ids = engine.tokenizer.encode("The sky")
        options: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 1900}
        streams = [generator.stream_infer(None, ids, **options)]
        next(streams[0])
        streams += [generator.stream_infer(None, ids, **options) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2"):
            generator.stream_infer(None, ids)
        for stream in streams:
            stream.close()


def test_config_and_overrides(device: Device, demo_path: str) -> None:
    config = EngineConfig(max_batch_size=2, cache_max_entry_count=64)
    with device.load(demo_path, config=config, session_len=256) as engine:
        assert engine.config.max_batch_size == 2
        assert engine.info.session_len == 256
        assert config.session_len is None  # the caller's object is left alone


def test_loading_tells_its_progress_and_can_be_stopped(device: Device, demo_path: str) -> None:
    from treadle import _engine

    seen: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        seen.append((done, total))

    native = EngineConfig(device=device.name, cache_max_entry_count=8).to_native()
    _engine.Engine.load(demo_path, native, on_load_progress=tell).close()
    assert seen[-1][0] == seen[-1][1] > 16_000_000
    assert seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _engine.Engine.load(demo_path, native, on_load_progress=stop)


def test_a_slow_load_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def load(stderr: io.StringIO, delay: float) -> str:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(progress, "LOAD_DELAY_S", delay)
        with progress.LoadProgress("tiny-model") as bar:
            if bar.callback is not None:
                bar.callback(0, 123)
                bar.callback(123, 123)
        return stderr.getvalue()

    assert "tiny-model" in load(Terminal(), 0.0)
    assert load(Terminal(), 1000.0) == ""  # quick
    assert load(io.StringIO(), 0.0) == ""  # nobody would see it


def test_the_stub_names_what_the_extension_has() -> None:
    """Classes and their members, both ways."""
    from treadle import _engine

    stub = ast.parse((Path(treadle.__file__).parent / "_engine.pyi").read_text(encoding="utf-8"))
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(_engine, node.name))
        if not isinstance(node, ast.ClassDef):
            continue
        listed = {
            item.target.id if isinstance(item, ast.AnnAssign) else item.name  # type: ignore[union-attr]
            for item in node.body
            if isinstance(item, ast.AnnAssign | ast.FunctionDef)
        }
        members = {name for name in vars(getattr(_engine, node.name)) if not name.startswith("_")}
        assert {name for name in listed if not name.startswith("_")} == members
    classes = {name for name, value in vars(_engine).items() if isinstance(value, type)}
    assert classes == {node.name for node in stub.body if isinstance(node, ast.ClassDef)}


def test_without_a_tokenizer_ids_still_work(device: Device, tmp_path: Any, demo_path: str) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(Path(demo_path) / name)
    with device.load(tmp_path, cache_max_entry_count=64) as engine:
        (output,) = last(engine.create_instance().stream_infer(0, [1, 5, 6], max_new_tokens=3))
        assert len(output.token_ids) <= 3
        with pytest.raises(treadle.TreadleError, match=r"tokenizer\.json"):
            _ = engine.tokenizer
        with pytest.raises(treadle.TreadleError, match=r"tokenizer\.json"):
            engine.create_instance().stream_infer(0, [1, 5], return_text=True)


def run_python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_importing_is_lazy() -> None:
    code = (
        "import sys, treadle\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'tqdm', 'sentencepiece', 'treadle._engine'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "treadle.Engine; treadle.GenerationConfig; treadle.pipeline; treadle.errors\n"
        "print(sorted({'torch', 'transformers', 'jinja2', 'tqdm'} & set(sys.modules)))\n"
        "print(callable(treadle.pipeline), treadle.TurboMind is treadle.Engine)\n"
    )
    result = run_python(code)
    assert result.stdout.splitlines() == ["[]", "[]", "True True"], result.stderr


def test_exit_without_closing_is_clean(device: Device) -> None:
    code = (
        "import sys, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1])\n"
        "stream = engine.create_instance().stream_infer(0, [1, 5], ignore_eos=True,"
        " max_new_tokens=1900)\n"
        "print(len(next(stream)))\n"
    )
    result = run_python(code, device.name)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_a_forked_child_is_told(device: Device) -> None:
    code = (
        "import os, sys, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: engine.create_instance().stream_infer(0, [1, 5])\n"
        "    except treadle.errors.ShutdownError as e: print('fork' in str(e), flush=True)\n"
        "    raise SystemExit\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    result = run_python(code, device.name)
    assert result.stdout.split() == ["True", "0"], result.stderr


def test_ctrl_c_reaches_a_waiting_thread(device: Device) -> None:
    """The signal comes while the main thread waits inside the extension."""
    code = (
        "import os, signal, sys, threading, treadle\n"
        "engine = treadle.Engine.from_pretrained(treadle.demo_model_path(), device=sys.argv[1],"
        " max_batch_size=1)\n"
        "generator = engine.create_instance()\n"
        "options = dict(ignore_eos=True, max_new_tokens=1900)\n"
        "running = generator.stream_infer(1, [1, 5], **options)\n"
        "next(running)\n"
        "waiting = generator.stream_infer(2, [1, 5], stream_output=False, **options)\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    for _ in waiting: print('not interrupted')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
        "running.close()\n"
        "out = list(generator.stream_infer(2, [1, 5], max_new_tokens=2))[-1]\n"
        "print(out[0].finish_reason)\n"
    )
    result = run_python(code, device.name)
    assert result.stdout.splitlines() == ["interrupted", "length"], result.stderr
