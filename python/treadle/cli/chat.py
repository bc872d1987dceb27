"""``treadle chat``: turns typed on a terminal or read from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass, field

from treadle.cli import options
from treadle.conversation import Conversation
from treadle.errors import TreadleError
from treadle.generation_config import GenerationConfig
from treadle.outputs import SequenceOutput

HELP = """\
/reset   forget the conversation
/stats   turn the speed line on or off
/help    this list
/exit    leave (also Ctrl-D)
Ctrl-C stops an answer; a second one leaves."""


@dataclass
class Clock:
    """Times one answer as its reader sees it."""

    start: float = field(default_factory=time.monotonic)
    first: float | None = None

    def tick(self, output: SequenceOutput) -> None:
        if self.first is None and output.usage.output_tokens > 0:
            self.first = time.monotonic()
            self._at_first = output.usage.output_tokens

    def line(self, output: SequenceOutput) -> str:
        """Prompt speed up to the first token, then decode speed over the later ones."""
        end, usage = time.monotonic(), output.usage
        first = end if self.first is None else self.first
        text = f"prompt {usage.computed_tokens} tokens"
        if usage.cached_tokens:
            text += f" (+{usage.cached_tokens} cached)"
        text += _speed(usage.computed_tokens, first - self.start)
        later = usage.output_tokens - (0 if self.first is None else self._at_first)
        return f"[{text} | answer {usage.output_tokens} tokens{_speed(later, end - first)}]"


def _speed(tokens: int, seconds: float) -> str:
    return f", {tokens / seconds:.1f} tok/s" if tokens > 0 and seconds > 0 else ""


class Chat:
    """Reads lines and answers them until the end of input, /exit or two Ctrl-C."""

    def __init__(self, conversation: Conversation, config: GenerationConfig, stats: bool) -> None:
        self._conversation = conversation
        self._config = config
        self._stats = stats
        self._terminal = sys.stdin.isatty()

    def run(self) -> int:
        interrupted = False
        while True:
            try:
                line = self._read()
                if line is None or line in ("/exit", "/quit"):
                    return 0
                if line:
                    interrupted = False
                    self._answer(line)
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if interrupted or not self._terminal:
                    raise
                interrupted = True
                print("(Ctrl-C again or /exit leaves)", file=sys.stderr)

    def _read(self) -> str | None:
        """The next line without its blanks; None at the end."""
        if self._terminal:
            try:
                return input("> ").strip()
            except EOFError:
                print()
                return None
        line = sys.stdin.readline()
        return line.strip() if line else None

    def _answer(self, line: str) -> None:
        if line == "/reset":
            self._conversation.reset()
            print("(forgotten)", file=sys.stderr)
        elif line == "/stats":
            self._stats = not self._stats
            print(f"(speed line {'on' if self._stats else 'off'})", file=sys.stderr)
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif line.startswith("/") and line[1:].isalpha():
            print(f"{line} is no command; /help lists them", file=sys.stderr)
        else:
            self._ask(line)

    def _ask(self, question: str) -> None:
        clock = Clock()
        output: SequenceOutput | None = None
        try:
            for output in self._conversation.ask(question, self._config):
                clock.tick(output)
                print(output.new_text, end="", flush=True)
        finally:
            print(flush=True)
        if output is None:
            return
        if output.error is not None:
            raise output.error
        if output.finish_reason == "length":
            print("(cut off: --max-new-tokens or --session-len was reached)", file=sys.stderr)
        if self._stats:
            print(clock.line(output), file=sys.stderr)


def _prepare_terminal() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() history and line editing
    print("Ask something. /help lists the commands, /exit leaves.", file=sys.stderr)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    config = options.generation_config(args, parser)
    with options.load_engine(args, options.engine_config(args, parser)) as engine:
        if engine.model.is_plain:
            print(
                "This model has no chat format, so it only continues your text; --model-name picks "
                "a built-in format.",
                file=sys.stderr,
            )
        chat = Chat(Conversation(engine, system=args.system), config, args.stats)
        if sys.stdin.isatty():
            _prepare_terminal()
        try:
            return chat.run()
        except TreadleError as error:
            print(f"treadle: {error}", file=sys.stderr)
            return 1
