"""The quality table and its targets, from what compare.py has measured."""

from __future__ import annotations

from typing import Any

#: A variant with 8-bit KV may have this much of the perplexity of the same with 16-bit KV.
KV8_LIMIT = 1.01

_HEAD = [
    "weights", "KV", "MB", "perplexity", "over fp16", "same next token", "same greedy prefix",
    "same continuation",
]  # fmt: skip


def change(value: float, base: float) -> str:
    """A ratio as the percentage it adds."""
    percent = round((value / base - 1) * 100, 2)
    return f"{percent + 0.0:+.2f} %"  # adding 0 makes -0.0 a plain one


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the first row is what the others are compared with."""
    base = rows[0]["perplexity"]
    cells = [_HEAD]
    for row in rows:
        line = [row["weights"], row["kv"], f"{row['weight_bytes'] / 1e6:.1f}"]
        line += [f"{row['perplexity']:.4f}"]
        if (same := row.get("agreement")) is None:
            line += ["", "", "", ""]
        else:
            line += [
                change(row["perplexity"], base),
                f"{same['same_next'] * 100:.2f} %",
                f"{same['mean_prefix']:.1f} of {same['mean_length']:.1f}",
                f"{same['same_continuation'] * 100:.0f} %",
            ]
        cells.append(line)
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def targets(rows: list[dict[str, Any]]) -> list[tuple[bool, str]]:
    """Each target that the rows can decide: whether it is met, and what it says with its figures.

    AWQ must have a lower perplexity than round-to-nearest with the same groups; int8 KV at most 1 %
    more than 16-bit KV over the same weights.
    """
    found = {(row["weights"], row["kv"]): row["perplexity"] for row in rows}
    out = []
    for (weights, kv), value in found.items():
        if weights.startswith("int4 AWQ") and kv == "16":
            nearest = found.get((weights.replace("AWQ", "RTN"), kv))
            if nearest is not None:
                text = f"{weights} {value:.4f} < round-to-nearest {nearest:.4f}"
                out.append((value < nearest, text))
        if kv != "16" and (whole := found.get((weights, "16"))) is not None:
            text = f"{weights}, KV {kv}: {change(value, whole)} over 16-bit KV, at most +1 %"
            out.append((value <= whole * KV8_LIMIT, text))
    return out


def section(model: dict[str, Any]) -> str:
    """One model's heading, table, notes and targets."""
    rows = model["rows"]
    lines = [f"## {model['name']}", "", table(rows), ""]
    if (same := rows[-1].get("agreement")) is not None:
        lines += [
            f"{rows[0]['tokens']:,} tokens scored in {model['texts']:,} held-out texts, window "
            f"{rows[0]['window']}, stride {rows[0]['stride']}; next tokens compared at "
            f"{same['positions']:,} positions; {same['continuations']} continuations.",
            "",
        ]
    lines += [f"- {'met' if met else 'MISSED'}: {text}" for met, text in targets(rows)]
    return "\n".join(lines) + "\n"
