"""Trains the larger model of the quality table on text that ships with Python.

    python -m bench.quality.train_model --out build/quality/stdlib-28m --budget 140

needs torch, transformers and tokenizers, and one GPU for a run of minutes. The folder gets the
model as Hugging Face reads it (fp16), `heldout.jsonl` (never trained on) and `calibration.jsonl`
(trained on; for quantisation). Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from bench.quality import corpus

# transformers' own annotations change between releases more than what is used of it here.
Llama: TypeAlias = Any

ROPE_BASE = 10_000.0
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1

PEAK_LEARNING_RATE = 2e-3
FINAL_LEARNING_RATE = 0.02  # as a fraction of the peak
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0

#: Characters of text held out, set aside for calibration, and kept of each file in both.
HELDOUT_CHARS = 500_000
CALIBRATION_CHARS = 1_000_000
PIECE_CHARS = 8_000
#: The tokenizer learns from every third document: as good, and a third of the time.
TOKENIZER_STRIDE = 3


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE that puts BOS at the beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text with BOS before and EOS behind it."""
    return [[*encoding.ids, EOS_ID] for encoding in tokenizer.encode_batch(texts)]


def settings(vocab_size: int, context: int, small: bool) -> dict[str, Any]:
    """27.8 M parameters at a vocabulary of 8,192, or a toy to try the script with."""
    hidden, inter, layers = (64, 128, 2) if small else (512, 1408, 8)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64 if not small else 2,
        "num_key_value_heads": hidden // 128 if not small else 1,
        "head_dim": 64,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "attn_implementation": "sdpa",
    }


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up by steps, times a cosine by progress (0 to 1) down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    decay = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine
    return PEAK_LEARNING_RATE * decay * min(1.0, (step + 1) / WARMUP_STEPS)


def loss_of(model: Llama, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
        logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def heldout_loss(model: Llama, texts: list[list[int]], context: int) -> float:
    """Mean negative log-likelihood of a token, over each text's first window."""
    model.eval()
    total, count = 0.0, 0
    for ids in texts:
        window = torch.tensor([ids[: context + 1]], device=model.device)
        if (length := window.shape[1] - 1) > 0:
            total += loss_of(model, window[:, :-1], window[:, 1:]).item() * length
            count += length
    model.train()
    return total / count


def train(model: Llama, stream: torch.Tensor, heldout: list[list[int]], args: Any) -> int:
    """Trains in place on random windows of ``stream`` until steps or seconds are used up.

    Returns the number of steps.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=stream.is_cuda,
    )
    generator = torch.Generator(device=stream.device).manual_seed(args.seed)
    offsets = torch.arange(args.context + 1, device=stream.device)
    compute = torch.compile(loss_of) if args.compile else loss_of
    model.train()
    begin, step, shown = time.monotonic(), 0, 0
    while True:
        elapsed = time.monotonic() - begin
        progress = max(elapsed / args.budget, step / args.steps if args.steps else 0.0)
        if progress >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        start = torch.randint(
            len(stream) - args.context, (args.batch, 1), device=stream.device, generator=generator
        )
        window = stream[start + offsets].long()
        loss = compute(model, window[:, :-1].contiguous(), window[:, 1:].contiguous())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        # Reading the loss waits for the GPU; that keeps the clock honest, too.
        if step in (1, 10, 50) or step % 100 == 0:
            seconds = time.monotonic() - begin
            rate = step * args.batch * args.context / seconds
            text = f"step {step}: loss {loss.item():.4f}, {seconds:.0f} s, {rate:,.0f} tok/s"
            if int(progress * 5) > shown:
                shown = int(progress * 5)
                text += f", held out {heldout_loss(model, heldout[:50], args.context):.4f}"
            print(text, flush=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save(model: Llama, tokenizer: Tokenizer, context: int, folder: Path) -> None:
    """Writes fp16 weights, configs and the tokenizer."""
    model.half().eval()
    model.config.dtype = "float16"
    model.save_pretrained(folder)
    # Readers older than `rope_parameters` look for the base at the top level.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"rope_theta": ROPE_BASE})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
        },
    )
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the larger model of the quality table.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--source", type=Path, default=corpus.stdlib(),
        help="library folder, tar of one (see corpus.py) or a text file (default: this Python's)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=140.0, help="seconds of training (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="at most this many steps (default: no limit)")
    parser.add_argument("--batch", type=int, default=64, help="rows a step (default: %(default)s)")
    parser.add_argument("--context", type=int, default=1024, help="default: %(default)s tokens")
    parser.add_argument("--vocab", type=int, default=8192, help="default: %(default)s")
    parser.add_argument("--chars", type=int, help="at most this much text (default: all)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, starts late")
    parser.add_argument("--small", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    for name in ("budget", "steps", "batch", "context", "chars"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be above 0, got {value}")
    if args.vocab < 512:
        parser.error(f"--vocab must be at least 512 (bytes and specials first), got {args.vocab}")

    begin = time.monotonic()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(args.seed)
    documents, heldout = corpus.split(corpus.read(args.source), HELDOUT_CHARS, PIECE_CHARS)
    texts = [document.text for document in documents]
    if args.chars is not None:
        ends = np.cumsum([len(text) for text in texts])
        texts = texts[: int(np.searchsorted(ends, args.chars)) + 1]
    pieces = (corpus.beginning(text, PIECE_CHARS) for text in texts)
    calibration, total = [], 0
    for piece in pieces:
        if total < CALIBRATION_CHARS:
            calibration.append(piece)
            total += len(piece)
    args.out.mkdir(parents=True, exist_ok=True)
    corpus.write_jsonl(args.out / "heldout.jsonl", heldout)
    corpus.write_jsonl(args.out / "calibration.jsonl", calibration)

    tokenizer = train_tokenizer(texts[::TOKENIZER_STRIDE], args.vocab)
    ids = np.concatenate([np.array(x, dtype=np.int32) for x in encode(tokenizer, texts)])
    heldout_ids = [x[:-1] for x in encode(tokenizer, heldout)]
    if len(ids) <= args.context:
        parser.error(f"--source has {len(ids)} tokens, --context needs more than {args.context}")
    stream = torch.from_numpy(ids).to(device)
    model = LlamaForCausalLM(
        LlamaConfig(**settings(tokenizer.get_vocab_size(), args.context, args.small))
    ).to(device)
    print(
        f"{model.num_parameters() / 1e6:.2f} M parameters on {device}, {len(ids):,} tokens, "
        f"{len(heldout)} texts held out, ready after {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    steps = train(model, stream, heldout_ids, args)
    save(model, tokenizer, args.context, args.out)
    print(
        f"{steps} steps, {steps * args.batch * args.context / len(ids):.1f} epochs; held out: loss "
        f"{heldout_loss(model.float(), heldout_ids, args.context):.4f} of the fp16 weights; "
        f"{time.monotonic() - begin:.0f} s in all",
        flush=True,
    )


if __name__ == "__main__":
    main()
