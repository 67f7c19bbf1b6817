"""What a careful reader must know before believing a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from fastxfer.protocol import dropped_of
from fastxfer.report import cells as c
from fastxfer.report.facts import Facts
from fastxfer.report.words import joined, plural, probe_name, with_unit
from fastxfer.targets.findings import contaminated

SMALL_TEST = 200  # below it, one image more or less right moves an accuracy by half a point
SATURATED = 0.99
SHARES = ("accuracy", "balanced_accuracy", "auc", "average_precision")


@dataclass(frozen=True)
class Flag:
    """One warning: `head` names its kind; one with a `target` is also shown beside the answer for that target."""

    head: str
    text: str
    target: str = ""


def flags(cells: pd.DataFrame, facts: Facts) -> list[Flag]:
    """All warnings, what changes the answer first."""
    return [
        *_contaminated(cells, facts),
        *_leaks(cells, facts),
        *_saturated(cells),
        *_shifted(cells),
        *_unconverged(cells),
        *_small(cells),
        *_store(cells, facts),
        *_notes(facts),
    ]


def _contaminated(cells: pd.DataFrame, facts: Facts) -> Iterator[Flag]:
    for (source, label, target), _ in cells.groupby(["source", "label", "target"]):
        if contaminated(source, target):
            yield Flag(
                "Seen in training",
                f"{label} was trained on {source}. Its values on {target} do not show transfer to new data, and it may "
                "have seen test images.",
                target,
            )
        elif target in facts.findings and "source" in facts.findings[target].flags(source):
            text = f"{label} was trained on {source}, which contains test images of {target}."
            yield Flag("Seen in training", text, target)


def _leaks(cells: pd.DataFrame, facts: Facts) -> Iterator[Flag]:
    """Targets with leaks or shortcuts, by `targets check --save`; and whether some rows were measured without the leaks."""
    for target, group in cells.groupby("target"):
        for sentence in facts.leaks.get(str(target), []):
            yield Flag("Leaks and shortcuts", f"{target}: {sentence}", str(target))
        dropped = sorted({words for params in group["params"] if (words := dropped_of(str(params)))})
        if dropped:
            text = f"Rows on {target} with dropped={joined(dropped)} in their parameters leave out so many test images."
            yield Flag("Leaks and shortcuts", text)


def _saturated(cells: pd.DataFrame) -> Iterator[Flag]:
    """Targets on which some backbone leaves less than one in a hundred: where, at the fewest shots."""
    shown = cells[cells["main"] & cells["chosen"] & cells["metric"].isin(SHARES) & (cells["probe"] != c.FINETUNE)]
    for target, group in shown.groupby("target"):
        group = group[(group["split"] == c.main_split(group)) & (group["mean"] >= SATURATED)]
        probe_order = group["probe"].map({p: i for i, p in enumerate(c.PROBE_ORDER)})
        shots_order = group["shots"].map(lambda s: float("inf") if s == c.FULL else float(s))
        first = group.assign(s=shots_order, p=probe_order).sort_values(["s", "p"], kind="stable")
        places = [
            f"{cell.label} {with_unit(cell.mean)} "
            + ("on the whole train split" if cell.shots == c.FULL else f"at {plural(int(cell.shots), 'shot')}")
            + f" ({probe_name(cell.probe)})"
            for cell in first.drop_duplicates("label").itertuples()
        ]
        if places:
            text = f"An easy target: {joined(places)}. A still better backbone could not stand out on {target}."
            yield Flag("Saturated", text, target)


def _shifted(cells: pd.DataFrame) -> Iterator[Flag]:
    """Full probes whose validation and test intervals do not meet: the two splits are not alike."""
    full = cells[cells["main"] & cells["chosen"] & (cells["shots"] == c.FULL) & (cells["probe"] == c.PROBE_ORDER[0])]
    for (label, target), group in full.groupby(["label", "target"]):
        val, test = (group[group["split"] == split] for split in ("val", "test"))
        if val.empty or test.empty:
            continue
        v, t = val.iloc[0], test.iloc[0]
        if v["low"] > t["high"] or t["low"] > v["high"]:
            yield Flag(
                "Validation is unlike test",
                f"{label} on {target} reaches {with_unit(v['mean'])} on validation and "
                f"{with_unit(t['mean'])} on test; the intervals do not meet. Choices made on validation may not "
                "hold.",
            )


def _unconverged(cells: pd.DataFrame) -> Iterator[Flag]:
    probed = cells[cells["main"] & (cells["probe"] != c.FINETUNE)]
    for (label, probe), group in probed.groupby(["label", "probe"], sort=True):
        failed = ((1 - group["converged"]) * group["n"]).groupby(group["target"]).sum().round().astype(int)
        failed = failed[failed > 0]
        if len(failed):
            fits = int(group.loc[group["target"].isin(failed.index), "n"].sum())
            yield Flag(
                "Not converged",
                f"{failed.sum():,} of {fits:,} fits of {probe}, {label} on {joined(list(failed.index))}.",
            )


def _small(cells: pd.DataFrame) -> Iterator[Flag]:
    sizes = cells[(cells["shots"] == c.FULL) & (cells["split"] == "test")].groupby("target")["n_queries"].max()
    small = [f"{t} has {n:,} test images ({100 / n:.1f} points each)" for t, n in sizes.items() if 0 < n < SMALL_TEST]
    if small:
        yield Flag("Small test split", f"{joined(small)}.")


def _store(cells: pd.DataFrame, facts: Facts) -> Iterator[Flag]:
    yield from (Flag("Store", problem) for problem in facts.problems)
    probed = cells[cells["probe"] != c.FINETUNE]
    if facts.embeddings:
        for backbone, target in sorted(set(zip(probed["backbone"], probed["target"], strict=True))):
            if (str(backbone), str(target)) not in facts.embeddings:
                yield Flag("Store", f"It no longer holds the embeddings of {backbone} on {target}.")


def _notes(facts: Facts) -> Iterator[Flag]:
    """What the targets' tables note, equal notes together."""
    of: dict[str, list[str]] = {}
    for target, about in sorted(facts.targets.items()):
        for note in about.notes:
            of.setdefault(note, []).append(target)
    yield from (Flag(joined(targets), note) for note, targets in of.items())
