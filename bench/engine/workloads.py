"""The inputs of the benchmark: seeded, so that every engine and every run sees the same ids."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

CHATS = [
    "浙江的省会在哪?",
    "这有什么好吃的",
    "What is 37 + 48?",
    "Reverse the order: stone cloud engine paper",
    "What is the capital of France?",
    "四川的省会是哪里?",
    "Tell me a short story about a fox.",
    "Write JSON: Ada, 36, London",
]


def chat_prompts(model: Path) -> list[list[int]]:
    """`CHATS` in the demo model's template (ChatML), as ids."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [
        tokenizer.encode(
            f"<s><|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
        ).ids
        for text in CHATS
    ]


def random_ids(rng: random.Random, vocab: int, n: int) -> list[int]:
    """<s> (id 1) and n - 1 ordinary ids."""
    return [1, *(rng.randrange(5, vocab) for _ in range(n - 1))]


def single(case: str, vocab: int, seed: str, n_new: int) -> dict[str, Any]:
    """The arguments of one decode (prompt of 32) or prefill (prompt of 512) measurement. Every
    repeat has a seed of its own, so that no engine's prefix cache helps."""
    rng = random.Random(f"{case} {seed}")
    return {"prompt": random_ids(rng, vocab, 512 if case == "prefill" else 32), "n_new": n_new}


def mixed_batch(vocab: int, seed: str, count: int = 32) -> dict[str, Any]:
    """`count` requests with prompts of 16..512 and outputs of 16..256 tokens. The lengths are the
    same for every `seed`; only the ids differ."""
    lengths, ids = random.Random("mixed lengths"), random.Random(f"mixed {seed}")
    return {
        "requests": [
            {
                "prompt": random_ids(ids, vocab, lengths.randint(16, 512)),
                "n_new": lengths.randint(16, 256),
            }
            for _ in range(count)
        ]
    }


def session(vocab: int, seed: str) -> tuple[list[int], list[int]]:
    """A first turn of 1,480 tokens and a second one of 20."""
    rng = random.Random(f"session {seed}")
    return random_ids(rng, vocab, 1480), random_ids(rng, vocab, 21)[1:]
