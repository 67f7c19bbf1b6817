"""Numbers and names as words, the same in every section, in the table and on the demo's last screen."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(value: float) -> str:
    """``84.3``. Only 1 itself is ``100``: what would round to it gets a second digit, ``99.98``."""
    if value == 1:
        return "100"
    short = f"{100 * value:.1f}"
    return f"{min(100 * value, 99.99):.2f}" if short == "100.0" and value < 1 else short


def with_unit(value: float) -> str:
    """``84.3 %``, never broken across lines."""
    return f"{percent(value)}\u00a0%"


def bounds(low: float, high: float) -> str:
    """``83.9–84.7``, kept within 0 and 100 %; nothing where there is no interval or it has no width."""
    return f"{percent(max(low, 0))}–{percent(min(high, 1))}" if math.isfinite(low) and low < high else ""


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def joined(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def probe_name(probe: str) -> str:
    return {
        "logistic": "logistic probe",
        "ridge": "ridge probe",
        "prototype": "prototypes",
        "knn": "kNN",
        "finetune": "fine-tuning",
    }.get(probe, probe)


def duration(seconds: float) -> str:
    """``0.4 s``, ``45.0 s``, ``3 min 20 s``, ``2.5 h``, ``3.1 days``; "unknown" for NaN."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
