"""What quantisation costs: perplexity, and how often a model still says the same.

    python -m bench.quality.compare --work build/quality demo stdlib-28m=build/quality/stdlib-28m

quantises each model by `treadle lite`, measures the variants on the model's held-out text, and
writes `bench/results/quality-MODEL.json` and `.md`. A model is a folder with `heldout.jsonl` and
`calibration.jsonl` beside the weights (train_model.py makes one); "demo" is the bundled one, whose
texts are those of examples/train_demo.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.engine import machine
from bench.engine.paths import DEMO_MODEL, REPOSITORY
from bench.quality import agreement, corpus, report
from treadle import Engine, evaluation
from treadle.generation_config import GenerationConfig

EXAMPLE = REPOSITORY / "examples" / "train_demo"
#: Characters that a model is to continue, and tokens of the continuation.
OPENING_CHARS = 600
NEW_TOKENS = 64
#: What the demo model is calibrated on.
CONVERSATIONS = 512


@dataclass(frozen=True)
class Model:
    name: str
    folder: Path
    heldout: Path
    calibration: Path


@dataclass(frozen=True)
class Variant:
    """Weights and KV cache of one row."""

    weights: str
    folder: Path
    #: "16", "8" or "8 static ..."
    kv: str
    quant_policy: int = 0


def demo(work: Path) -> Model:
    """The bundled model with its held-out conversations; it is calibrated on new ones."""
    sys.path.insert(0, str(EXAMPLE))
    from conversations import conversation

    heldout = json.loads((EXAMPLE / "heldout.json").read_text(encoding="utf-8"))
    rng = random.Random("quality/calibration")
    model = Model("demo", DEMO_MODEL, work / "heldout.jsonl", work / "calibration.jsonl")
    corpus.write_jsonl(model.heldout, heldout["chats"])
    corpus.write_jsonl(model.calibration, [conversation(rng) for _ in range(CONVERSATIONS)])
    return model


def find(spec: str, work: Path) -> Model:
    """ "demo" or NAME=FOLDER. Raises ValueError for what is neither."""
    name, equals, folder = spec.partition("=")
    if spec == "demo":
        return demo(work)
    path = Path(folder)
    model = Model(name, path, path / "heldout.jsonl", path / "calibration.jsonl")
    for needed in (path / "config.json", model.heldout, model.calibration):
        if not equals or not needed.is_file():
            raise ValueError(f'{spec}: expected "demo" or NAME=FOLDER; there is no {needed}')
    return model


def lite(*arguments: str | Path) -> None:
    """Runs `treadle lite`; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "treadle", "lite", *map(str, arguments)]
    print("$ treadle", *command[3:], flush=True)
    subprocess.run(command, check=True)


def quantised(model: Model, scheme: str, group: int, work: Path) -> Path:
    """The folder of the model in int4; made unless it is there."""
    folder = work / f"{scheme}-g{group}"
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        lite(
            "auto_awq", model.folder, "--scheme", scheme, "--group-size", str(group),
            "--data", model.calibration, "--out", folder,
        )  # fmt: skip
    return folder


def with_ranges(model: Model, symmetric: bool, work: Path) -> Path:
    """A folder of links to the model's files, with static ranges of K and V beside them."""
    statistics = work / "statistics"
    if not statistics.is_dir():
        partial = work / "statistics.partial"
        lite("calibrate", model.folder, "--data", model.calibration, "--work-dir", partial)
        partial.rename(statistics)
    out = work / ("kv-symmetric" if symmetric else "kv-asymmetric")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for file in model.folder.iterdir():
        if file.is_file():
            (out / file.name).symlink_to(file.resolve())
    lite("kv_qparams", statistics, "--out", out, *["--symmetric"] * symmetric)
    return out


def variants(model: Model, groups: list[int], work: Path) -> list[Variant]:
    """What is measured, fp16 first; static ranges of KV with fp16 weights only."""
    rows = [Variant("fp16", model.folder, "16"), Variant("fp16", model.folder, "8", 8)]
    for symmetric in (False, True):
        kind = "symmetric" if symmetric else "asymmetric"
        folder = with_ranges(model, symmetric, work)
        rows.append(Variant("fp16", folder, f"8 static {kind}", 8))
    for group in groups:
        for scheme in ("rtn", "awq"):
            name = f"int4 {scheme.upper()} g{group}"
            rows.append(Variant(name, quantised(model, scheme, group, work), "16"))
        rows.append(Variant(name, rows[-1].folder, "8", 8))
    return rows


def ask(engine: Engine, prompts: list[list[int]], config: GenerationConfig) -> list[Any]:
    """What comes of each prompt; raises the first error."""
    stream = engine.create_instance().stream_infer(None, prompts, config, stream_output=False)
    (outputs,) = list(stream)
    for output in outputs:
        if output.error is not None:
            raise output.error
    return outputs


def read(engine: Engine, texts: list[str], window: int) -> tuple[float, list[list[int]]]:
    """(sum of log-probabilities, most likely tokens) at every scored position of the texts.

    The windows and the sum are those of `treadle eval ppl`; one pass gives both.
    """
    windows = [
        each
        for text in texts
        for each in evaluation.sliding_windows([engine.tokenizer.encode(text)], window, window // 2)
    ]
    config = GenerationConfig(prompt_logprobs=1, max_new_tokens=1, do_sample=False)
    total, best = 0.0, []
    for each, output in zip(windows, ask(engine, [w.ids for w in windows], config), strict=True):
        scored = output.prompt_logprobs[-each.scored :]
        total += math.fsum(entry.chosen.logprob for entry in scored)
        best.append([entry.top[0].token_id for entry in scored])
    return total, best


def go_on(engine: Engine, texts: list[str], window: int) -> list[list[int]]:
    """Greedy continuations of the openings of the texts."""
    openings = [engine.tokenizer.encode(agreement.opening(text, OPENING_CHARS)) for text in texts]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False)
    prompts = [ids[-(window - NEW_TOKENS) :] for ids in openings]
    return [output.token_ids.tolist() for output in ask(engine, prompts, config)]


def measure(
    variant: Variant, texts: list[str], args: Any
) -> tuple[dict[str, Any], agreement.Choices]:
    """One row of the table, without the agreement, and the choices for that."""
    with Engine.from_pretrained(
        variant.folder, device=args.device, quant_policy=variant.quant_policy
    ) as engine:
        window = min(args.window, engine.info.session_len - 1)
        total, best = read(engine, texts, window)
        said = agreement.Choices(best, go_on(engine, texts, window))
        info = engine.info
    tokens = sum(map(len, best))
    row = {
        "weights": variant.weights,
        "kv": variant.kv,
        "weight_bytes": sum(
            f.stat().st_size
            for f in variant.folder.glob("*.safetensors")
            if f.name != "kv_qparams.safetensors"
        ),
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "kv_dtype": info.kv_dtype,
        "kv_static_ranges": info.kv_static_ranges,
        "device": info.device,
        "tokens": tokens,
        "window": window,
        "stride": window // 2,
        "mean_nll": -total / tokens,
        "perplexity": math.exp(-total / tokens),
    }
    return row, said


def compare(model: Model, args: Any, work: Path) -> dict[str, Any]:
    texts = corpus.read_jsonl(model.heldout)[: args.texts]
    texts = [corpus.beginning(text, args.chars) for text in texts]
    rows: list[dict[str, Any]] = []
    reference: agreement.Choices | None = None
    for variant in variants(model, args.groups, work):
        row, said = measure(variant, texts, args)
        if reference is None:
            reference = said
        else:
            row["agreement"] = asdict(agreement.compare(reference, said))
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"name": model.name, "texts": len(texts), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help='"demo" or NAME=FOLDER')
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results")
    parser.add_argument(
        "--groups", type=int, nargs="+", default=[128], help="group sizes (default: 128)"
    )
    parser.add_argument("--window", type=int, default=1023, help="tokens (default: %(default)s)")
    parser.add_argument("--texts", type=int, help="at most this many (default: all)")
    parser.add_argument(
        "--chars", type=int, default=3000, help="of each text, at most (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    args = parser.parse_args()

    commit = machine.commit(REPOSITORY)
    missed = False
    for spec in args.models:
        work = args.work / spec.partition("=")[0]
        work.mkdir(parents=True, exist_ok=True)
        try:
            model = find(spec, work)
        except ValueError as error:
            parser.error(str(error))
        result = compare(model, args, work)
        result["machine"] = machine.describe()
        result["commit"] = commit
        text = report.section(result)
        print(text)
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / f"quality-{model.name}"
        file.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(text, encoding="utf-8")
        missed |= not all(met for met, _ in report.targets(result["rows"]))
    sys.exit(missed)


if __name__ == "__main__":
    main()
