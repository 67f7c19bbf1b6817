"""Probes: classifiers on frozen embeddings. A probe is a name, an op, and the hyper-parameters it is run at.

`Probe.solve` answers a window of few-shot episodes in one batched call an op; `Probe.solve_full` answers the full train
split. Both give one `Solution` a hyper-parameter setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastxfer.errors import UsageError, nearest
from fastxfer.metrics import METRICS
from fastxfer.plugins import Catalogue
from fastxfer.probes.arrays import ArrayProbe
from fastxfer.probes.base import Answer, Probe, Solution
from fastxfer.probes.direct import KnnProbe, PrototypeProbe
from fastxfer.probes.penalised import LogisticProbe, Penalised, RidgeProbe

__all__ = [
    "FIELD_GRID",
    "PROBES",
    "Answer",
    "ArrayProbe",
    "KnnProbe",
    "LogisticProbe",
    "Penalised",
    "Probe",
    "PrototypeProbe",
    "RidgeProbe",
    "Solution",
    "check_metrics",
    "make_probe",
    "probe_options",
    "variant_of",
]

# C = 10^-6, 10^-5.75, … 10^5, as penalties on the sum of losses, 1/C; smallest C first, as the field's sweeps go.
FIELD_GRID = tuple(10.0 ** (6 - i / 4) for i in range(45))


def _wrong(name: str, thing: object) -> str:
    if not (isinstance(thing, type) and issubclass(thing, Probe)):
        return f"it is {thing!r}, expected a subclass of fastxfer.probes.Probe"
    given = getattr(thing, "name", None)
    return "" if given == name else f"its `name` is {given!r}, expected {name!r}, by which rows call it"


PROBES: Catalogue[type[Probe]] = Catalogue(
    "probes", {p.name: p for p in (LogisticProbe, RidgeProbe, PrototypeProbe, KnnProbe)}, _wrong
)


def make_probe(
    name: str,
    *,
    l2: Sequence[float] = (),
    k: Sequence[int] = (),
    transform: Sequence[str] = (),
    l2_by: str = "fixed",
    folds: int | None = None,
    criterion: str | None = None,
    class_weight: str | None = None,
    vote: str | None = None,
) -> Probe:
    """A probe by name; options that it does not have are left aside. `UsageError` for an unknown name.

    vote: "temperature", "plain" or "distance". Where a penalty is to be chosen and none is given, the grid is the field's: C = 10^-6 … 10^5, 45 values.
    """
    if name not in PROBES:
        raise UsageError(f"unknown probe '{name}': choose among {', '.join(PROBES)}.{nearest(name, PROBES)}")
    kind, first = PROBES[name], tuple(transform)
    if issubclass(kind, Penalised):
        options: dict[str, Any] = {} if folds is None else {"folds": folds}
        if l2_by != "fixed" and not l2:
            options["l2_sum"] = FIELD_GRID
        if kind is LogisticProbe:
            options["class_weight"] = class_weight
        return kind(l2=tuple(l2), transform=first, l2_by=l2_by, criterion=criterion, **options)
    if issubclass(kind, KnnProbe):
        options = {"k": tuple(k)} if k else {}
        if vote == "plain":
            options["temperature"] = None
        return kind(transform=first, by_distance=vote == "distance", **options)
    return kind(transform=first)


# Words of `params` that set a probe apart from its plain kind; and those of how its penalty is chosen.
VARIANT = ("temperature", "vote", "class_weight", "tol", "bias_feature", "index", "transform", "preset")
CHOICE = ("l2_by", "folds", "criterion")


def variant_of(params: str) -> str:
    """The `variant` of the probe whose rows carry these `params`."""
    return ";".join(word for word in params.split(";") if word.partition("=")[0] in VARIANT)


def probe_options(params: str) -> tuple[str, ...]:
    """What `params` say of a probe beyond a place in a grid: its variant, and how its penalty is chosen."""
    return tuple(word for word in params.split(";") if word.partition("=")[0] in VARIANT + CHOICE)


def check_metrics(probes: Sequence[Probe], metrics: Sequence[str]) -> None:
    """`UsageError` for a metric of probabilities and a probe that gives none."""
    for metric in (m for m in metrics if METRICS[m].needs_probabilities):
        for probe in probes:
            if not probe.gives_probabilities:
                able = [p.name for p in PROBES.own.values() if p.gives_probabilities]
                raise UsageError(
                    f"metric '{metric}' needs probabilities, which probe '{probe.name}' does not give: "
                    f"choose --probe {' '.join(able)}, or another metric"
                )
