"""Probes: classifiers on frozen embeddings. A probe is a name, an op, and the hyper-parameters it is run at.

`Probe.solve` answers a window of few-shot episodes in one batched call an op; `Probe.solve_full` answers the full train
split. Both give one `Solution` a hyper-parameter setting.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastxfer.errors import UsageError, nearest
from fastxfer.metrics import NEED_PROBABILITIES
from fastxfer.probes.base import Answer, Probe, Solution
from fastxfer.probes.direct import KnnProbe, PrototypeProbe
from fastxfer.probes.penalised import LogisticProbe, Penalised, RidgeProbe

__all__ = [
    "PROBES",
    "Answer",
    "KnnProbe",
    "LogisticProbe",
    "Penalised",
    "Probe",
    "PrototypeProbe",
    "RidgeProbe",
    "Solution",
    "check_metrics",
    "make_probe",
    "variant_of",
]

PROBES: dict[str, type[Probe]] = {p.name: p for p in (LogisticProbe, RidgeProbe, PrototypeProbe, KnnProbe)}


def make_probe(
    name: str, *, l2: Sequence[float] = (), k: Sequence[int] = (), transform: Sequence[str] = (), l2_by: str = "fixed"
) -> Probe:
    """A probe by name; options that it does not have are left aside. `UsageError` for an unknown name."""
    if name not in PROBES:
        raise UsageError(f"unknown probe '{name}': choose among {', '.join(PROBES)}.{nearest(name, PROBES)}")
    kind = PROBES[name]
    if issubclass(kind, Penalised):
        return kind(l2=tuple(l2), transform=tuple(transform), l2_by=l2_by)
    if issubclass(kind, KnnProbe) and k:
        return kind(k=tuple(k), transform=tuple(transform))
    return kind(transform=tuple(transform))


def variant_of(params: str) -> str:
    """The `variant` of the probe whose rows carry these `params`."""
    words = ("bias_feature", "transform", "preset")
    return ";".join(word for word in params.split(";") if word.partition("=")[0] in words)


def check_metrics(probes: Sequence[Probe], metrics: Sequence[str]) -> None:
    """`UsageError` for a metric of probabilities and a probe that gives none."""
    for metric in NEED_PROBABILITIES.intersection(metrics):
        for probe in probes:
            if not probe.gives_probabilities:
                able = [p.name for p in PROBES.values() if p.gives_probabilities]
                raise UsageError(
                    f"metric '{metric}' needs probabilities, which probe '{probe.name}' does not give: "
                    f"choose --probe {' '.join(able)}, or another metric"
                )
