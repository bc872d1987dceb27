"""Prints a comparison: a table per case, the ratios, and each target with whether it was met."""

from __future__ import annotations

from typing import Any

_TITLES = {
    "decode": "decode, one sequence (tok/s)",
    "prefill": "prefill of 512 (tok/s)",
    "batch": "32 mixed requests (new tok/s in total)",
}
MB = 1e6


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _speeds(model: str, results: dict[str, Any], ours: str) -> str:
    cases = [c for c in _TITLES if c in results]
    rows = [["engine", *(f"{_TITLES[c]}, {ours}/peer" for c in cases)]]
    for name in results["versions"]:
        row = [name]
        for case in cases:
            entry = results[case].get(name)
            mine = results[case].get(ours)
            if entry is None:
                row.append("failed")
            elif name == ours or mine is None:
                row.append(f"{entry['median']:.1f}")
            else:
                row.append(f"{entry['median']:.1f}, {mine['median'] / entry['median']:.2f}x")
        rows.append(row)
    return f"## {model}\n\n{_table(rows)}" if cases else f"## {model}"


def _rest(results: dict[str, Any]) -> list[str]:
    out = []
    if "agree" in results:
        agreed = results["agree"]["with_most_others"]
        out.append(
            "Greedy answers equal to most other engines': "
            + ", ".join(f"{n} {a['same']}/{a['of']}" for n, a in agreed.items())
        )
    if results.get("second_turn"):
        rows = [["engine", "new ids", "prompt tokens computed", "TTFT kept", "TTFT resent", "x"]]
        for name, t in results["second_turn"].items():
            rows.append(
                [
                    name,
                    str(t["new_tokens"]),
                    str(t["computed"]),
                    f"{t['ttft_kept'] * 1e3:.1f} ms",
                    f"{t['ttft_resent'] * 1e3:.1f} ms",
                    f"{t['ttft_resent'] / t['ttft_kept']:.1f}",
                ]
            )
        out.append("Second turn of a 1,500-token session:\n\n" + _table(rows))
    if "memory" in results:
        weights = results["memory"]["weights"]
        rows = [["engine", "peak MB", "weights (fp16) MB", "KV MB", "the rest MB"]]
        for name, m in results["memory"].items():
            if name != "weights":
                rest = m["peak"] - weights - m["kv"]
                values = (m["peak"], weights, m["kv"], rest)
                rows.append([name, *(f"{v / MB:.0f}" for v in values)])
        out.append("Peak memory (VmHWM of a fresh process):\n\n" + _table(rows))
    if results["failures"]:
        out.append("Failures: " + "; ".join(f"{k}: {v}" for k, v in results["failures"].items()))
    return out


def targets(found: dict[str, Any], ours: str) -> list[tuple[str, float, float, bool]]:
    """Each target as (what, value, bound, met). Only what was measured appears."""
    out: list[tuple[str, float, float, bool]] = []

    def ratio(model: str, case: str, peers: list[str], bound: float) -> None:
        entries = found["models"].get(model, {}).get(case, {})
        speeds = {p: entries[p]["median"] for p in peers if p in entries}
        if ours in entries and speeds:
            best = max(speeds, key=lambda p: speeds[p])
            value = entries[ours]["median"] / speeds[best]
            out.append((f"{model} {case}: {ours} / {best}", value, bound, value >= bound))

    ratio("tiny-chat", "decode", ["llama.cpp"], 1.0)
    ratio("random-415m", "decode", ["llama.cpp"], 0.95)
    for model in ("tiny-chat", "random-415m"):
        ratio(model, "prefill", ["llama.cpp"], 1.0)
    versions = found["models"].get("tiny-chat", {}).get("versions", {})
    ratio("tiny-chat", "batch", [p for p in versions if p != ours], 1.5)
    for model, results in found["models"].items():
        m = results.get("memory", {})
        if ours in m:
            rest = (m[ours]["peak"] - m["weights"] - m[ours]["kv"]) / MB
            out.append((f"{model} memory beyond weights and KV, MB", rest, 300, rest <= 300))
        turn = results.get("second_turn", {}).get(ours)
        if turn:
            gain = turn["ttft_resent"] / turn["ttft_kept"]
            out.append((f"{model} second turn: TTFT resent / kept", gain, 10, gain >= 10))
            # One more than the new ones: the last sampled token was never fed.
            limit = turn["new_tokens"] + 1
            met = 0 < turn["computed"] <= limit
            out.append((f"{model} second turn: tokens computed", turn["computed"], limit, met))
    return out


def text(found: dict[str, Any], ours: str) -> str:
    """The whole report as Markdown."""
    m = found["machine"]
    parts = [
        f"{m['cpu']}, {m['cores']} cores, {found['threads']} threads, median of "
        f"{found['repeats']}; load before {m['load_before'][0]}; commit {found['commit'][:12]}"
    ]
    for model, results in found["models"].items():
        parts += [_speeds(model, results, ours), *_rest(results)]
    checks = targets(found, ours)
    if checks:
        rows = [["target", "value", "bound", "met"]]
        rows += [[w, f"{v:.2f}", f"{b:g}", "yes" if ok else "NO"] for w, v, b, ok in checks]
        parts.append("## Targets\n\n" + _table(rows))
    return "\n\n".join(parts)
