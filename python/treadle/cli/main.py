"""Commands, their options, and how the program ends.

Nothing heavy is imported before the options are known to be right, so ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from treadle.cli import lite, options

#: Exit codes; 2 is argparse's for wrong usage.
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """\
LLM inference engine.

examples:
  treadle chat                         chat with the bundled demo model
  treadle chat models/qwen2.5-7b       chat with a model of yours
  treadle generate models/llama -p "The sky is" --raw
  treadle generate models/llama -f prompts.jsonl -o answers.jsonl
  treadle info models/llama            what would be loaded, and how much fits
  treadle eval ppl models/llama --text wiki.txt
  treadle convert models/llama --out workspace
  treadle lite auto_awq models/llama --data wiki.txt --out models/llama-awq

Every command has its own --help.
"""

_CHAT = """\
Chat with a model in the terminal. The conversation is kept in an engine session, so each turn
computes only what is new. Lines are also read from a pipe.

commands in the chat:
  /reset   forget the conversation
  /stats   turn the speed line on or off
  /help    this list
  /exit    leave (also Ctrl-D)

Ctrl-C stops an answer; a second one leaves.

examples:
  treadle chat
  treadle chat models/llama --system "Answer briefly." --temperature 0.7 --stats
  printf 'What is 37 + 48?\\n' | treadle chat
"""

_GENERATE = """\
Answer one prompt or a file of prompts, many at a time. Writes one JSON object per sequence, in the
order of the prompts:

  {"index": 0, "text": "...", "finish_reason": "stop", "prompt_tokens": 12, "output_tokens": 7}

A file holds one prompt per line, or JSONL with "prompt" (a text) or "messages" (OpenAI style) and,
if you like, an "id" that is copied to the output. "-" reads standard input. What is wrong with one
prompt is its "error"; the others are answered, and the exit code is 1.

examples:
  treadle generate -p "What is 37 + 48?"
  treadle generate models/llama -f prompts.txt -o answers.jsonl --max-new-tokens 64
  cat prompts.jsonl | treadle generate models/llama -f - --temperature 0.8 --seed 1
  treadle generate models/llama -p "The sky is" --raw --text
"""

_INFO = """\
Say what a model directory means: architecture, sizes, memory, KV cache bytes per token, and how
many tokens fit into the memory that is free now. Reads config.json and file sizes, not the weights.

examples:
  treadle info models/llama
  treadle info models/llama --session-len 32768 --dtype float16 --json
"""

_CONVERT = """\
Make a workspace: the model's weights as they are computed (QKV as one, gate and up as one, 4-bit
weights unpacked from their format), its tokenizer and chat template, and a config.ini with options.
It is used wherever a model directory is and gives the same tokens. 4-bit weights load about twice
as fast from it. In config.ini, quant_policy = 8 turns int8 KV on.

examples:
  treadle convert models/llama --out workspace
  treadle convert models/llama-awq --out workspace --quant-policy 8 --session-len 8192
  treadle chat workspace
"""

_EVAL = """\
Measure the quality of a model.

examples:
  treadle eval ppl models/llama --text wiki.txt
  treadle eval ppl --help
"""

_PPL = """\
Perplexity of a text by a sliding window: each token is scored once, with at least WINDOW - STRIDE
tokens before it. The text begins with a BOS where the model's tokenizer adds one, which is context
only. In a JSONL file (*.jsonl) the "text" of each line is a text of its own.

examples:
  treadle eval ppl models/llama --text wiki.txt
  treadle eval ppl models/llama --text wiki.txt --window 2048 --stride 512 --json result.json
  treadle eval ppl models/llama --text wiki.txt --quant-policy 8
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="treadle",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="{chat,generate,info,eval,convert,lite}"
    )

    def command(
        name: str, summary: str, description: str, group: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = group.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "path", nargs="?", metavar="PATH", help="model directory (default: the demo model)"
        )
        sub.set_defaults(parser=sub)  # wrong values are reported with this command's usage
        return sub

    chat = command("chat", "chat in the terminal", _CHAT)
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument("--stats", action="store_true", help="show prompt and decode speed")
    options.add_sampling(chat)
    options.add_engine(chat)

    generate = command("generate", "answer prompts, JSONL out", _GENERATE)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", metavar="TEXT", help="one prompt")
    source.add_argument("-f", "--file", metavar="FILE", help="file of prompts; - for stdin")
    generate.add_argument("-o", "--output", metavar="FILE", help="write there instead of stdout")
    generate.add_argument(
        "--raw", action="store_true", help="complete texts as they are, without the chat format"
    )
    generate.add_argument("--text", action="store_true", help="write only the texts, not JSON")
    generate.add_argument(
        "-n", type=int, metavar="N", help="continuations of each prompt (default 1)"
    )
    generate.add_argument(
        "--logprobs", type=int, metavar="N", help="log-probabilities, of the N best tokens too"
    )
    options.add_sampling(generate)
    options.add_engine(generate)

    info = command("info", "sizes and memory of a model", _INFO)
    info.add_argument("--json", action="store_true", help="print JSON")
    options.add_engine(info)

    evaluate = commands.add_parser(
        "eval",
        help="quality of a model on a text",
        description=_EVAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measures = evaluate.add_subparsers(dest="measure", metavar="{ppl}", required=True)
    ppl = command("ppl", "perplexity of a text", _PPL, measures)
    ppl.add_argument("--text", metavar="FILE", required=True, help="UTF-8 text, or JSONL")
    ppl.add_argument(
        "--window", type=int, metavar="N", help="tokens seen at once (default: session_len - 1)"
    )
    ppl.add_argument(
        "--stride", type=int, metavar="N", help="tokens to the next window (default: half of it)"
    )
    ppl.add_argument("--json", metavar="FILE", help="write the result there, too")
    options.add_engine(ppl)

    convert = command("convert", "make a workspace: weights as computed, and options", _CONVERT)
    convert.add_argument("--out", metavar="DIR", required=True, help="the new directory")
    options.add_workspace(convert)
    lite.add_parsers(commands)
    return parser


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if args.version:
        from treadle import _engine

        print(f"treadle {_engine.version()} ({_engine.backends()})")
        return OK
    if args.command == "chat":
        from treadle.cli import chat

        return chat.run(args, args.parser)
    if args.command == "generate":
        from treadle.cli import generate

        return generate.run(args, args.parser)
    if args.command == "info":
        from treadle.cli import info

        return info.run(args, args.parser)
    if args.command == "eval":
        from treadle.cli import evaluate

        return evaluate.run(args, args.parser)
    if args.command == "convert":
        from treadle.cli import convert

        return convert.run(args, args.parser)
    if args.command == "lite":
        return lite.run(args, args.parser)
    parser.print_help(sys.stderr)
    return USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; wrong usage exits with 2."""
    from treadle.errors import TreadleError

    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        code = _run(args, parser)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (TreadleError, OSError, MemoryError, ImportError) as error:
        print(f"treadle: {error or type(error).__name__}", file=sys.stderr)
        return FAILED
