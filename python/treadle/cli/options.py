"""Options that several commands share, and what they become."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.config import EngineConfig
    from treadle.engine import Engine
    from treadle.generation_config import GenerationConfig

#: (flag, type, metavar, help); the name is GenerationConfig's.
_SAMPLING = (
    ("max-new-tokens", int, "N", "most tokens to generate"),
    ("min-new-tokens", int, "N", "bar end tokens before this many"),
    ("temperature", float, "T", "0 is greedy, above 1 is wilder"),
    ("top-k", int, "K", "draw from the K most likely tokens (0: all)"),
    ("top-p", float, "P", "draw from the most likely tokens that reach probability P"),
    ("min-p", float, "P", "leave out tokens below P times the most likely one"),
    ("repetition-penalty", float, "X", "above 1 avoids tokens seen before"),
    ("presence-penalty", float, "X", "subtracted from tokens already generated"),
    ("frequency-penalty", float, "X", "subtracted per earlier occurrence"),
)

#: The same for EngineConfig.
_ENGINE = (
    ("device", str, "NAME", '"auto", "cpu", "cuda" or "cuda:N"'),
    ("dtype", str, "TYPE", "auto, float16, bfloat16, float32 (on a CPU: of the KV cache)"),
    ("session-len", int, "N", "longest history + prompt + output, in tokens"),
    ("max-batch-size", int, "N", "most sequences in one step"),
    ("cache-max-entry-count", float, "X", "KV pool: fraction of free memory, or blocks above 1"),
    ("max-prefill-token-num", int, "N", "most prompt tokens in one step"),
    ("num-threads", int, "N", "CPU threads"),
    ("quant-policy", int, "N", "KV quantisation: 0 none, 8 int8"),
    ("tp", int, "N", "tensor-parallel degree"),
    ("rope-scaling-factor", float, "X", "dynamic NTK factor"),
)


def check_input(name: str, path: str) -> None:
    """Raises NotFoundError or InvalidArgumentError, naming the option, for what is no file."""
    from treadle.errors import InvalidArgumentError, NotFoundError

    if not os.path.exists(path):
        raise NotFoundError(f"{name} is {path!r}: no such file")
    if os.path.isdir(path):
        raise InvalidArgumentError(f"{name} is {path!r}: it is a directory, expected a file")


def check_output(name: str, path: str | None) -> None:
    """The same for a file that is to be written: before the work, not after it."""
    from treadle.errors import InvalidArgumentError, NotFoundError

    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise NotFoundError(f"{name} is {path!r}: there is no directory {folder!r}")
    if os.path.isdir(path):
        raise InvalidArgumentError(f"{name} is {path!r}: it is a directory, expected a file")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: what the model's files say)")
    for flag, kind, metavar, text in _SAMPLING:
        group.add_argument(f"--{flag}", type=kind, metavar=metavar, help=text)
    group.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same tokens")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end at this text (may be repeated)"
    )
    group.add_argument(
        "--bad-word", action="append", metavar="TEXT", help="never write this (may be repeated)"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after end tokens")


def add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model-name", metavar="NAME", help="built-in chat format for a model without its own"
    )
    for flag, kind, metavar, text in _ENGINE:
        group.add_argument(f"--{flag}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--use-logn-attn", action="store_true", help="logn scaling beyond the training length"
    )
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="share no KV blocks between requests"
    )


#: Those that a workspace keeps.
_WORKSPACE = (
    "session-len",
    "max-batch-size",
    "cache-max-entry-count",
    "max-prefill-token-num",
    "quant-policy",
    "tp",
    "rope-scaling-factor",
)


def add_workspace(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("kept in config.ini")
    group.add_argument(
        "--model-name", metavar="NAME", help="built-in chat format for a model without its own"
    )
    for flag, kind, metavar, text in _ENGINE:
        if flag in _WORKSPACE:
            group.add_argument(f"--{flag}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--use-logn-attn", action="store_true", help="logn scaling beyond the training length"
    )


def _given(args: argparse.Namespace, flags: Any) -> dict[str, Any]:
    names = [flag.replace("-", "_") for flag, *_ in flags]
    values = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def engine_config(args: argparse.Namespace, parser: argparse.ArgumentParser) -> EngineConfig:
    """Wrong values end the program as wrong usage."""
    from treadle.config import EngineConfig
    from treadle.errors import InvalidArgumentError

    values = _given(args, _ENGINE)
    if args.use_logn_attn:
        values["use_logn_attn"] = True
    if getattr(args, "no_prefix_caching", False):
        values["enable_prefix_caching"] = False
    try:
        return EngineConfig(**values)
    except InvalidArgumentError as error:
        parser.error(str(error))


def generation_config(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> GenerationConfig:
    """Wrong values end the program as wrong usage."""
    from treadle.errors import InvalidArgumentError
    from treadle.generation_config import GenerationConfig

    values = _given(args, _SAMPLING)
    values.update(
        do_sample=False if args.greedy else None,
        random_seed=args.seed,
        stop_words=args.stop,
        bad_words=args.bad_word,
        ignore_eos=args.ignore_eos or None,
    )
    try:
        return GenerationConfig(**values)
    except InvalidArgumentError as error:
        parser.error(str(error))


def model_path(args: argparse.Namespace) -> str:
    from treadle import demo_model_path

    return demo_model_path() if args.path is None else str(args.path)


def load_engine(args: argparse.Namespace, config: EngineConfig) -> Engine:
    from treadle.engine import Engine

    return Engine.from_pretrained(model_path(args), model_name=args.model_name, config=config)
