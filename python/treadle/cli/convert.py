"""``treadle convert``: a model directory becomes a workspace."""

from __future__ import annotations

import argparse

from treadle.cli import options


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from treadle.workspace import convert, weight_folder

    config = options.engine_config(args, parser)
    out = convert(options.model_path(args), args.out, model_name=args.model_name, config=config)
    size = sum(file.stat().st_size for file in weight_folder(out).iterdir())
    print(f"{out}: {size / 1e9:.2f} GB of weights; options are in {out / 'config.ini'}")
    return 0
