"""``treadle lite``: tools that make quantised models."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from treadle.cli import options

_LITE = """\
Make quantised models. Needs torch, transformers and safetensors:
pip install "treadle[quantize]"

examples:
  treadle lite auto_awq models/llama --data wiki.txt --out models/llama-awq
  treadle lite calibrate models/llama --data wiki.txt --work-dir llama-stats
  treadle lite kv_qparams llama-stats --out models/llama

Every command has its own --help; more in docs/quantization.md.
"""

_CALIBRATE = """\
Measure a model on a text, layer by layer: max and mean of the inputs of its linear layers, ranges
of K and V. A run that was killed goes on when the same command is given again.

The text is a UTF-8 file, a JSONL file (*.jsonl: "text", or OpenAI-style "messages", which go
through the model's chat template), or a directory written by datasets' save_to_disk with such
columns.

examples:
  treadle lite calibrate models/llama --data wiki.txt --work-dir llama-stats
  treadle lite calibrate models/llama --data chats.jsonl --work-dir stats --samples 64 --seqlen 2048
"""

_AWQ = """\
Quantise the linear layers of a model to 4 bits, by AWQ (activation-aware scales and clipping, both
found by search) or, to compare with, by rounding to the nearest. Writes a Hugging Face directory in
AutoAWQ's "gemm" layout. Layer by layer; a run that was killed goes on when the same command is
given again. The text is as for calibrate.

examples:
  treadle lite auto_awq models/llama --data wiki.txt --out models/llama-awq
  treadle lite auto_awq models/llama --data chats.jsonl --out models/llama-awq --group-size 64
  treadle lite auto_awq models/llama --scheme rtn --out models/llama-rtn
"""

_GPTQ = """\
Quantise the linear layers of a model to 4 bits by GPTQ, with the library llm-compressor
(pip install "treadle[gptq]"). Writes a Hugging Face directory in the layout of
compressed-tensors. The text is as for calibrate.

examples:
  treadle lite gptq models/llama --data wiki.txt --out models/llama-gptq
"""

_KV = """\
Write constant scales of an int8 KV cache, per layer and head, from what calibrate or auto_awq
measured. An engine with --quant-policy 8 uses the file that it finds beside config.json.

examples:
  treadle lite kv_qparams llama-stats --out models/llama
  treadle lite kv_qparams llama-stats --out workspace --symmetric
"""


def add_parsers(commands: Any) -> None:
    """commands: of the main parser's add_subparsers."""
    lite = _add(commands, "lite", "make quantised models", _LITE)
    tools = lite.add_subparsers(
        dest="tool", metavar="{calibrate,auto_awq,gptq,kv_qparams}", required=True
    )

    def tool(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        sub = _add(tools, name, summary, description)
        sub.set_defaults(parser=sub)
        return sub

    calibrate = tool("calibrate", "measure a model on a text", _CALIBRATE)
    _add_model(calibrate)
    _add_data(calibrate, required=True)
    calibrate.add_argument(
        "--work-dir", metavar="DIR", required=True, help="where the statistics go"
    )
    _add_run(calibrate)

    awq = tool("auto_awq", "4-bit weights by AWQ", _AWQ)
    _add_model(awq)
    _add_data(awq, required=False)
    awq.add_argument("--out", metavar="DIR", required=True, help="the new model's directory")
    awq.add_argument("--scheme", choices=("awq", "rtn"), default="awq", help="default: awq")
    awq.add_argument("--bits", type=int, default=4, metavar="N", help="only 4")
    _add_group_size(awq)
    awq.add_argument(
        "--work-dir", metavar="DIR", help="kept, with the statistics (default: OUT.work, removed)"
    )
    _add_run(awq)

    gptq = tool("gptq", "4-bit weights by GPTQ (llm-compressor)", _GPTQ)
    _add_model(gptq)
    _add_data(gptq, required=True)
    gptq.add_argument("--out", metavar="DIR", required=True, help="the new model's directory")
    _add_group_size(gptq)

    kv = tool("kv_qparams", "constant scales of an int8 KV cache", _KV)
    kv.add_argument("work_dir", metavar="WORK_DIR", help="of calibrate, or of auto_awq")
    kv.add_argument(
        "--out", metavar="DIR", required=True, help="model directory or workspace to write to"
    )
    kv.add_argument("--symmetric", action="store_true", help="zero points of 0")


def _add(group: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="model directory (default: the demo model)"
    )


def _add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_argument_group("text")
    group.add_argument("--data", metavar="PATH", required=required, help="text, JSONL or dataset")
    group.add_argument(
        "--samples", type=int, default=128, metavar="N", help="pieces of it (default: 128)"
    )
    group.add_argument(
        "--seqlen", type=int, default=512, metavar="N", help="tokens of a piece (default: 512)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="other pieces (default: 0)")
    group.add_argument(
        "--chat", action="store_true", help="texts are users' messages, not texts of their own"
    )


def _add_group_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group-size", type=int, default=128, metavar="N", help="32, 64 or 128 (default: 128)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help='"auto", "cpu", "cuda" or "cuda:N"'
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget what the work directory holds"
    )


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from treadle import lite

    names = "samples seqlen seed chat device restart scheme bits group_size"
    given = {name: getattr(args, name) for name in names.split() if hasattr(args, name)}
    if args.tool == "calibrate":
        lite.calibrate(options.model_path(args), args.data, args.work_dir, **given)
        written = f"statistics: {args.work_dir}"
    elif args.tool == "auto_awq":
        lite.auto_awq(
            options.model_path(args), args.out, args.data, work_dir=args.work_dir, **given
        )
        written = f"model: {args.out}"
    elif args.tool == "gptq":
        lite.gptq(options.model_path(args), args.out, args.data, **given)
        written = f"model: {args.out}"
    else:
        path = lite.kv_qparams(args.work_dir, args.out, symmetric=args.symmetric)
        written = f"scales: {path}"
    print(written, file=sys.stderr)
    return 0
