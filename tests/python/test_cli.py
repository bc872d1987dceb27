"""The command line, run as its users run it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import treadle
from devices import Device
from treadle.cli.generate import read_jobs
from treadle.errors import ConfigError

ZHEJIANG, ANSWER = "浙江的省会在哪?", "浙江的省会是杭州。"
COMMAND = [sys.executable, "-m", "treadle"]


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def on(device: Device) -> list[str]:
    return ["--device", device.name]


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith(f"treadle {treadle.__version__} (cpu")


@pytest.mark.parametrize("command", [[], ["chat"], ["generate"], ["info"]])
def test_help_has_examples(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from treadle.cli import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'tqdm', 'treadle._engine'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "usage"),
        (["dance"], "invalid choice: 'dance'"),
        (["chat", "--temperature", "nan"], "temperature is nan: it must be a finite number"),
        (["chat", "--top-k", "many"], "--top-k"),
        (["chat", "--min-new-tokens", "9", "--max-new-tokens", "8"], "min_new_tokens is 9"),
        (["chat", "--max-batch-size", "0"], "max_batch_size is 0"),
        (["generate"], "--prompt"),
        (["generate", "-p", "a", "-f", "b"], "not allowed with"),
        (["generate", "-p", "a", "-n", "0"], "n is 0"),
        (["info", "--cache-max-entry-count", "1.5"], "cache_max_entry_count is 1.5"),
    ],
)
def test_wrong_usage_exits_with_2(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "/no/such/model"], "path is '/no/such/model': there is no such directory"),
        (["chat", __file__], "it is not a directory"),
        (["generate", "-f", "/no/such/file"], "file is '/no/such/file': no such file"),
        (["generate", "-f", "/"], "file is '/': it is a directory, expected a file"),
        (
            ["generate", "-p", "a", "-o", "/no/such/answers"],
            "output is '/no/such/answers': there is no directory '/no/such'",
        ),
        (["chat", "--tp", "2"], "tp = 2"),
        (["chat", "--device", "abacus"], 'device = "abacus"'),
    ],
)
def test_what_fails_says_so_in_one_line(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_chat_reads_a_pipe(device: Device) -> None:
    result = run("chat", *on(device), "--stats", stdin=f"{ZHEJIANG}\n\n这有什么好吃的\n")
    assert result.returncode == 0
    answers = result.stdout.splitlines()
    assert answers[0] == ANSWER
    assert "西湖醋鱼" in answers[1]
    speeds = result.stderr.splitlines()
    assert len(speeds) == 2
    assert speeds[0].startswith("[prompt 12 tokens")
    assert "cached" in speeds[1]  # the second turn sent only what is new


def test_chat_commands(device: Device) -> None:
    lines = [
        "/help",
        "/stats",
        ZHEJIANG,
        "/reset",
        "/what",
        "这有什么好吃的",
        "/exit",
        "never read",
    ]
    result = run("chat", *on(device), stdin="\n".join(lines))
    assert result.returncode == 0
    answers = result.stdout.splitlines()
    assert answers[0] == ANSWER
    assert len(answers) == 2
    assert "杭州" not in answers[1]  # forgotten
    for part in ("/exit", "speed line on", "forgotten", "/what is no command", "tok/s"):
        assert part in result.stderr


def test_chat_with_a_stop_word_and_a_limit(device: Device) -> None:
    result = run("chat", *on(device), "--stop", "省会", "--seed", "1", stdin=ZHEJIANG)
    assert result.stdout == "浙江的\n"
    result = run("chat", *on(device), "--ignore-eos", "--max-new-tokens", "3", stdin=ZHEJIANG)
    assert "cut off" in result.stderr


@contextmanager
def terminal(*args: str) -> Iterator[tuple[subprocess.Popen[bytes], Any, Any]]:
    """The command on a pseudo terminal, a function that types and reads until a text comes, and one
    for Ctrl-C at the prompt."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = bytearray()

    def expect(wanted: str, typed: str = "") -> None:
        os.write(mine, typed.encode())
        while wanted.encode() not in seen:
            chunk = os.read(mine, 4096)
            assert chunk, f"ended without {wanted!r} after {bytes(seen)!r}"
            seen.extend(chunk)
        del seen[: seen.index(wanted.encode()) + len(wanted.encode())]

    def interrupt() -> None:
        """Ctrl-C at the prompt. The empty line wakes input() should the signal come an instant
        before it sleeps."""
        process.send_signal(signal.SIGINT)
        os.write(mine, b"\n")

    try:
        yield process, expect, interrupt
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_chat_on_a_terminal(device: Device) -> None:
    with terminal("chat", *on(device)) as (process, expect, interrupt):
        expect("> ")
        expect(ANSWER, ZHEJIANG + "\n")
        expect("西湖醋鱼", "这有什么好吃的\n")
        expect("> ")
        interrupt()
        expect("again or /exit")
        expect(ANSWER, ZHEJIANG + "\n")  # a question between them, and the next is the first again
        expect("> ")
        interrupt()
        expect("again or /exit")
        expect("> ")
        interrupt()
        assert process.wait(timeout=60) == 130


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(device: Device) -> None:
    with terminal("chat", *on(device), "--ignore-eos", "--max-new-tokens", "1900") as (
        process,
        expect,
        interrupt,
    ):
        expect("> ")
        expect("The", "Tell me a story.\n")
        process.send_signal(signal.SIGINT)
        expect("again or /exit")
        expect("> ")
        expect("forgotten", "/reset\n")
        expect("> ")
        interrupt()
        expect("again or /exit")
        expect("> ")
        interrupt()
        assert process.wait(timeout=60) == 130


def test_generate_one_prompt(device: Device) -> None:
    result = run("generate", *on(device), "-p", "What is 37 + 48?")
    assert result.returncode == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line) == {
        "index": 0,
        "text": "37 + 48 = 85",
        "finish_reason": "stop",
        "prompt_tokens": 19,
        "output_tokens": 11,
    }
    assert result.stderr == ""  # no progress bar where nobody sees it
    assert (
        run("generate", *on(device), "-p", "What is 37 + 48?", "--text").stdout == "37 + 48 = 85\n"
    )


def test_generate_a_file(device: Device, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(f"What is 37 + 48?\n\n{ZHEJIANG}\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    result = run("generate", *on(device), "-f", str(tmp_path / "in.txt"), "-o", str(out))
    assert (result.returncode, result.stdout) == (0, "")
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert texts == ["37 + 48 = 85", ANSWER]


def test_generate_jsonl_from_stdin(device: Device) -> None:
    records = [
        {"id": "a", "prompt": "What is 37 + 48?"},
        {"messages": [{"role": "user", "content": ZHEJIANG}]},
        {"id": 3, "prompt": "The sky " * 3000},
    ]
    result = run("generate", *on(device), "-f", "-", stdin="\n".join(map(json.dumps, records)))
    assert result.returncode == 1
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert (first["id"], first["text"]) == ("a", "37 + 48 = 85")
    assert "id" not in second
    assert second["text"] == ANSWER
    assert third["id"] == 3
    assert third["error"]["code"] == "too_long"
    assert "1 of 3 prompts failed" in result.stderr


def test_generate_options(device: Device) -> None:
    args = ["--raw", "-n", "2", "--temperature", "1.5", "--seed", "3", "--max-new-tokens", "4"]
    first, again = (
        run("generate", *on(device), "-p", "The sky", *args, "--logprobs", "1") for _ in range(2)
    )
    assert first.stdout == again.stdout
    records = [json.loads(line) for line in first.stdout.splitlines()]
    assert [record.get("continuation", 0) for record in records] == [0, 1]
    assert len(records[0]["logprobs"][0]["top"]) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "in: no prompts found"),
        (['{"prompt": "a"}', "{"], "in:2: malformed JSON"),
        (['{"prompt": "a"}', "[1]"], "in:2: a JSON list"),
        (['{"text": "a"}'], 'in:1: needs either "prompt" or "messages"'),
        (['{"prompt": "a", "messages": []}'], "in:1: needs either"),
        (['{"prompt": 3}'], 'in:1: "prompt" is a int'),
        (['{"messages": "hi"}'], 'in:1: "messages" is a str'),
        (['{"prompt": ' + "[" * 100000], "in:1: malformed JSON"),
    ],
)
def test_a_wrong_file_of_prompts_is_named_by_line(lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_jobs(lines, "in")
    assert message in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\xff\xfe")
    result = run("generate", "-f", str(tmp_path / "in"))
    assert result.returncode == 1
    assert "not UTF-8 at byte 0" in result.stderr


def test_a_reader_that_leaves() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "-f", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate("What is 37 + 48?\n" * 50, timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in errors


def test_info_agrees_with_what_loading_gives(engine: treadle.Engine) -> None:
    result = run("info", "--json", "--cache-max-entry-count", "512")
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    for name in (
        "architecture",
        "family",
        "num_layers",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "eos_token_ids",
        "weight_dtype",
        "kv_dtype",
        "num_parameters",
        "kv_bytes_per_token",
        "kv_block_tokens",
        "kv_blocks",
        "kv_pool_bytes",
        "session_len",
    ):
        assert facts[name] == getattr(engine.info, name), name
    assert facts["stop_words"] == ["<|im_end|>"]
    assert facts["tokens_that_fit"] > 1000


def test_info_for_people() -> None:
    text = run("info").stdout
    for part in (
        "LlamaForCausalLM",
        "8.39 M parameters",
        "4.0 KiB per token",
        "tokens of KV cache",
    ):
        assert part in text


def test_info_reads_no_weights(tmp_path: Path, demo_path: str) -> None:
    (tmp_path / "config.json").write_text((Path(demo_path) / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    result = run("info", str(tmp_path))
    assert result.returncode == 0
    assert "1 files, 16 B" in result.stdout
    assert "no tokenizer found" in result.stdout


def test_info_tells_of_calibrated_ranges(tmp_path: Path, demo_path: str) -> None:
    (tmp_path / "config.json").write_text((Path(demo_path) / "config.json").read_text())
    own = run("info", str(tmp_path), "--quant-policy", "8", "--device", "cpu").stdout
    assert "2.2 KiB per token (int8)" in own
    (tmp_path / "kv_qparams.safetensors").touch()
    static = run("info", str(tmp_path), "--quant-policy", "8", "--device", "cpu").stdout
    assert "2.0 KiB per token (int8, ranges of kv_qparams.safetensors)" in static
    assert "kv_qparams" not in run("info", str(tmp_path), "--device", "cpu").stdout


def test_chat_refuses_a_broken_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["AbacusForCausalLM"]}')
    result = run("chat", str(tmp_path))
    assert result.returncode == 1
    assert "AbacusForCausalLM" in result.stderr
    assert len(result.stderr.splitlines()) == 1
