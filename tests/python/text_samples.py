"""Strings that tokenizers get wrong: two languages, emoji, code, blanks, control characters."""

from __future__ import annotations

import random

PARTS = [
    "Hello", " world", "the", " quick brown fox", "jumps", "I'm", "don't", "WE'LL", "naïve café",
    "浙江的省会在哪?", "杭州", "这有什么好吃的", "。", ",", "「引号」", "日本語テキスト", "한국어",
    "Привет", "ελληνικά", "שלום", "مرحبا", "हिन्दी", "𝔘𝔫𝔦", "😀", "👩‍👩‍👧", "🇨🇳",
    "e\u0301", "\u200b", "\ufeff",
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2581", "_",
    "\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x85", "\u2028", "\ufffd", "\U0010ffff",
    "0", "1", "37 + 48 = 85", "1234567890", "3.14159", "-1e-9", "2024-01-01",
    "def f(x):\n    return x * 2\n", "for (int i = 0; i < n; ++i) {", "<div class=\"a\">", "&amp;",
    "{\"name\": \"Ada\", \"age\": 36}",
    "https://example.com/a?b=c#d", "a_b_c", "CamelCase", "!!!", "...", "--",
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<|im_end|>\n",
    "<|begin_of_text|>", "<|eot_id|>", "<|tool|>", "<0x41>", "<", "|>", "<s", "s>",
]  # fmt: skip


def samples(count: int) -> list[str]:
    """The same ``count`` strings every time: each part alone, then random mixtures."""
    rng = random.Random(20240101)
    texts = ["", *PARTS, "a" * 300, " " * 100, "\n" * 50, "你" * 100, "😀" * 40]
    while len(texts) < count:
        texts.append("".join(rng.choices(PARTS, k=rng.randrange(1, 12))))
        if rng.random() < 0.3:
            points = [rng.choice([rng.randrange(128), rng.randrange(0xD800)]) for _ in range(12)]
            texts.append("".join(map(chr, points)))
    return texts[:count]


def training_text() -> list[str]:
    """A few hundred lines to train small vocabularies on."""
    rng = random.Random(7)
    plain = [part for part in PARTS if "<" not in part and part.isprintable() and part.strip()]
    lines = ["".join(rng.choices([*plain, " "], k=12)).strip() for _ in range(600)]
    return [line for line in lines if line]
