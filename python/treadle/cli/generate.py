"""``treadle generate``: prompts in, JSON lines out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from treadle.cli import options
from treadle.errors import ConfigError, TreadleError
from treadle.outputs import PositionLogprobs
from treadle.pipelines import Pipeline, Prompt, Response
from treadle.progress import ProgressBar


@dataclass(frozen=True)
class Job:
    """One prompt and the name its author gave it."""

    prompt: Prompt
    id: Any = None


def read_jobs(lines: Iterable[str], name: str) -> list[Job]:
    """Prompts of a file: JSONL when its first line with text begins with ``{``, else plain lines.

    Raises ConfigError naming file and line.
    """
    numbered = [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{name}: no prompts found")
    if not numbered[0][1].startswith("{"):
        return [Job(line) for _, line in numbered]
    return [_parse(line, f"{name}:{i}") for i, line in numbered]


def _parse(line: str, where: str) -> Job:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: malformed JSON: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: a JSON {type(record).__name__}, expected an object")
    if ("prompt" in record) == ("messages" in record):
        raise ConfigError(f'{where}: needs either "prompt" or "messages"')
    prompt: Any = record.get("prompt", record.get("messages"))
    if "prompt" in record and not isinstance(prompt, str):
        raise ConfigError(f'{where}: "prompt" is a {type(prompt).__name__}, expected a string')
    if "messages" in record and not isinstance(prompt, list):
        raise ConfigError(f'{where}: "messages" is a {type(prompt).__name__}, expected a list')
    return Job(prompt, record.get("id"))


def _jobs(args: argparse.Namespace) -> list[Job]:
    if args.prompt is not None:
        return [Job(args.prompt)]
    if args.file == "-":
        return read_jobs(sys.stdin, "stdin")
    options.check_input("file", args.file)
    try:
        with open(args.file, encoding="utf-8-sig") as file:
            return read_jobs(file, args.file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{args.file}: not UTF-8 at byte {error.start}") from error


@contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
    else:
        with open(path, "w", encoding="utf-8") as file:
            yield file


def _record(job: Job, response: Response) -> dict[str, Any]:
    record: dict[str, Any] = {"index": response.index}
    if job.id is not None:
        record["id"] = job.id
    if response.continuation:
        record["continuation"] = response.continuation
    record |= {
        "text": response.text,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.usage.prompt_tokens,
        "output_tokens": response.usage.output_tokens,
    }
    if response.logprobs is not None:
        record["logprobs"] = [_logprobs(position) for position in response.logprobs]
    if response.error is not None:
        record["error"] = {"code": response.error.code, "message": str(response.error)}
    return record


def _logprobs(position: PositionLogprobs) -> dict[str, Any]:
    chosen, top = position
    return {"token_id": chosen.token_id, "logprob": chosen.logprob, "top": [list(t) for t in top]}


def _in_order(finished: Iterator[list[Response]], bar: ProgressBar) -> Iterator[list[Response]]:
    """Answers in the order of their prompts, each as soon as those before it are there."""
    early: dict[int, list[Response]] = {}
    due = 0
    for responses in finished:
        bar.update()
        early[responses[0].index] = responses
        while due in early:
            yield early.pop(due)
            due += 1


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    config = options.generation_config(args, parser)
    try:
        config = config.replace(n=args.n, logprobs=args.logprobs)
    except TreadleError as error:
        parser.error(str(error))
    engine_config = options.engine_config(args, parser)
    options.check_output("output", args.output)
    jobs = _jobs(args)
    failed = 0
    with Pipeline(options.load_engine(args, engine_config)) as pipe, _output(args.output) as out:
        prompts = [job.prompt for job in jobs]
        finished = pipe.as_finished(prompts, config, do_preprocess=not args.raw)
        with ProgressBar(len(jobs), None) as bar:
            for responses in _in_order(finished, bar):
                for response in responses:
                    failed += response.error is not None
                    if args.text:
                        print(response.text, file=out, flush=True)
                    else:
                        record = _record(jobs[response.index], response)
                        print(json.dumps(record, ensure_ascii=False), file=out, flush=True)
    if failed:
        print(f"treadle: {failed} of {len(jobs)} prompts failed", file=sys.stderr)
    return 1 if failed else 0
