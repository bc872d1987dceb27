"""Trains the demo model: a small Llama on the corpus of corpus.py.

    python train.py --corpus build/demo/corpus.json --model build/demo/model --budget 330

The model folder must hold the `tokenizer.model` of train_tokenizer.py; the weights and configs are
written beside it. Needs torch and transformers. Uses a GPU when there is one (bf16 autocast, fp32
weights and optimizer); a CPU works but takes days for the full run.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import chatml

# transformers' own annotations change between releases more than what is used of it here.
Llama: TypeAlias = Any

ROPE_BASE = 10_000.0
PEAK_LEARNING_RATE = 3e-3
FINAL_LEARNING_RATE = 0.02  # As a fraction of the peak.
WARMUP_STEPS = 150
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0

# How many of 96 rows come from each part. Conversations are what the model is for; the lists are
# tiny and would otherwise be repeated to no end.
ROWS_OF_96 = {"library": 14, "conversations": 78, "lists": 4}


@dataclass(frozen=True)
class Schedule:
    """When to stop: after `steps` steps or `budget` seconds, whichever comes first."""

    steps: int | None
    budget: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """Returns how much of the training is done, from 0 to 1 or above."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = elapsed / self.budget if self.budget is not None else 0.0
        return max(by_steps, by_time)


def learning_rate(step: int, progress: float) -> float:
    """Returns the rate of a step: linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return PEAK_LEARNING_RATE * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def pack(
    processor: sentencepiece.SentencePieceProcessor, documents: list[str], minimum: int
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Returns the documents' ids as one stream, each as BOS, ids, EOS.

    A stream shorter than `minimum` is repeated until it is that long.
    """
    ids: list[int] = []
    for encoded in processor.encode(documents):
        ids += (chatml.BOS_ID, *encoded, chatml.EOS_ID)
    repeats = -(-minimum // max(1, len(ids)))
    return np.tile(np.array(ids, dtype=np.int32), max(1, repeats))


class Batches:
    """Draws random windows of `context` + 1 tokens from the packed parts of the corpus."""

    def __init__(
        self,
        corpus: dict[str, list[str]],
        processor: sentencepiece.SentencePieceProcessor,
        context: int,
        device: torch.device,
        seed: int,
    ) -> None:
        """Tokenizes the corpus and moves it to the device. Raises ValueError on an empty part."""
        streams = []
        for part in ROWS_OF_96:
            if not corpus[part]:
                raise ValueError(f"the corpus has no {part}")
            streams.append(pack(processor, corpus[part], context + 2))
            print(f"{part}: {len(streams[-1]):,} tokens", flush=True)
        lengths = torch.tensor([len(stream) for stream in streams])
        self._tokens = torch.from_numpy(np.concatenate(streams)).to(device)
        self._first = (lengths.cumsum(0) - lengths).to(device)
        self._starts = (lengths - context - 1).to(device)
        self._shares = torch.tensor(list(ROWS_OF_96.values()), dtype=torch.float32, device=device)
        self._window = torch.arange(context + 1, device=device)
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def draw(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and next-token targets, both int64 [rows, context]."""
        part = torch.multinomial(self._shares, rows, replacement=True, generator=self._generator)
        # float64: a float32 cannot name every position of a stream of 10^8 tokens.
        where = torch.rand(
            rows, dtype=torch.float64, device=self._shares.device, generator=self._generator
        )
        start = self._first[part] + (where * self._starts[part]).long()
        windows = self._tokens[start[:, None] + self._window].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def build_model(vocab_size: int, context: int) -> Llama:
    """Returns the untrained model in fp32: 8.39 M parameters at the default vocabulary."""
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": chatml.BOS_ID,
        "eos_token_id": chatml.EOS_ID,
        "attn_implementation": "sdpa",
    }
    return LlamaForCausalLM(LlamaConfig(**settings))


def build_optimizer(model: Llama, device: torch.device) -> torch.optim.AdamW:
    """Returns AdamW that decays matrices and leaves the norms' gains alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )


def train(model: Llama, batches: Batches, rows: int, schedule: Schedule) -> int:
    """Trains in place until the schedule ends; prints the loss. Returns the number of steps."""
    device = model.device
    optimizer = build_optimizer(model, device)

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    compute = torch.compile(loss_of) if device.type == "cuda" else loss_of
    model.train()
    begin, step, tokens = time.monotonic(), 0, 0
    while (progress := schedule.progress(step, time.monotonic() - begin)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        inputs, targets = batches.draw(rows)
        loss = compute(inputs, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + inputs.numel()
        if step in (1, 10, 50, 100) or step % 400 == 0:
            seconds = time.monotonic() - begin
            rate = tokens / seconds
            print(
                f"step {step}: loss {loss.item():.4f}, {seconds:.0f} s, {rate:,.0f} tok/s",
                flush=True,
            )
    return step


def save(model: Llama, folder: Path) -> None:
    """Writes fp16 weights, `config.json` and `generation_config.json`."""
    model.half().eval()
    model.config.dtype = "float16"
    model.save_pretrained(folder)
    # Readers older than `rope_parameters` look for the base at the top level.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"rope_theta": ROPE_BASE}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    generation = {
        "bos_token_id": chatml.BOS_ID,
        "eos_token_id": [chatml.EOS_ID, chatml.IM_END_ID],
        "do_sample": False,
        "max_new_tokens": 256,
    }
    path = folder / "generation_config.json"
    path.write_text(json.dumps(generation, indent=1), encoding="utf-8")


def main() -> None:
    """Parses the command line, trains and saves."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.json of corpus.py")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with tokenizer.model; weights go there"
    )
    parser.add_argument("--budget", type=float, help="seconds of training (bundled model: 330)")
    parser.add_argument("--steps", type=int, help="steps of training (bundled model: 3,704)")
    parser.add_argument("--batch", type=int, default=96, help="rows a step (default: %(default)s)")
    parser.add_argument(
        "--context", type=int, default=2048, help="tokens a row (default: %(default)s)"
    )
    parser.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    if args.budget is None and args.steps is None:
        parser.error("give --budget, --steps or both")
    for name in ("budget", "steps", "batch", "context"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be above 0, got {value}")

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    corpus = json.loads(args.corpus.read_text(encoding="utf-8"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(args.model / "tokenizer.model"))
    batches = Batches(corpus, processor, args.context, device, args.seed)
    model = build_model(processor.vocab_size(), args.context).to(device)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters on {device}", flush=True)
    steps = train(model, batches, args.batch, Schedule(args.steps, args.budget))
    save(model, args.model)
    print(f"{steps} steps, saved to {args.model}")


if __name__ == "__main__":
    main()
