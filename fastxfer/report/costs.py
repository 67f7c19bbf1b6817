"""What the results cost, and what the same answers by fine-tuning alone would have cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fastxfer.budgets import COSTS, finished, is_stopped
from fastxfer.report import cells as c
from fastxfer.report.answer import Name
from fastxfer.report.facts import Facts
from fastxfer.report.html import Markup, join, table, tag
from fastxfer.report.words import duration, plural

PROBING = ("fewshot", "probe", "knn")


@dataclass(frozen=True)
class Costs:
    """Seconds spent, by stage, and seconds that fine-tuning instead would take (NaN where none was measured)."""

    by_pair: dict[tuple[str, str], float]  # embedding of (backbone, target); NaN where the store doesn't say
    by_stage: dict[str, float]  # seconds of "fewshot", "probe", "knn"
    finetuning: float
    finetunings: int
    fits: int  # few-shot classifiers, every probe counted
    few_cells: int  # few-shot settings of (backbone, target), whatever the number of probes
    episodes: int  # their episodes together: so many fine-tunings would take the probes' place
    pairs: int  # (backbone, target) pairs
    full_fits: int  # probes on whole train splits
    every_pair: float
    every_episode: float
    amounts: dict[str, float]  # what fine-tuning took besides: images, images_scored, flops, joules, where it is known
    per_run: float  # seconds of a fine-tuning that was finished, on average
    stopped: int  # fine-tunings that were not finished, since they could not win

    @property
    def embedding(self) -> float:
        return sum(v for v in self.by_pair.values() if math.isfinite(v))

    @property
    def probing(self) -> float:
        return sum(self.by_stage.values())

    @property
    def total(self) -> float:
        return self.embedding + self.probing + self.finetuning


def number(value: Any) -> float:
    """A plain number, NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def costs(results: pd.DataFrame, cells: pd.DataFrame, runs: Sequence[Mapping[str, Any]], facts: Facts) -> Costs:
    """Measured seconds; a (backbone, target) that was never fine-tuned is taken to cost what others did.

    results, cells: the rows and what `cells.aggregate` made of them; runs: `ResultStore.runs`; facts: of the store
    """
    text = results[["backbone", "target", "probe", "params", "metric", "value"]].astype(
        {"backbone": str, "target": str, "probe": str, "params": str, "metric": str}
    )
    spent = text[(text["probe"] == c.FINETUNE) & text["metric"].isin(COSTS)]
    every_run = spent[spent["metric"] == c.SECONDS]
    stopped = is_stopped(every_run)
    tuned = every_run[~stopped]
    pairs = sorted(set(zip(cells["backbone"], cells["target"], strict=True)))
    seconds = dict(zip(pairs, _per_run(tuned, pairs), strict=True))
    few = cells[(cells["shots"] != c.FULL) & cells["main"]]
    full = cells[(cells["shots"] == c.FULL) & (cells["probe"] != c.FINETUNE)]
    episodes = few.groupby(["backbone", "target", "source", "ways", "shots", "seed"])["n"].max()
    per_pair = episodes.groupby(["backbone", "target"]).sum()
    return Costs(
        by_pair={pair: number(attributes.get("seconds")) for pair, attributes in facts.embeddings.items()},
        by_stage={
            stage: sum(s for r in runs if r.get("stage") == stage and math.isfinite(s := number(r.get("seconds"))))
            for stage in PROBING
        },
        finetuning=float(every_run["value"].sum()),
        finetunings=len(tuned),
        fits=int(few["n"].sum()),
        few_cells=len(episodes),
        episodes=int(episodes.sum()),
        pairs=len(pairs),
        full_fits=len(full[["backbone", "target", "source", "probe", "params"]].drop_duplicates()),
        every_pair=sum(seconds.values()),
        every_episode=float(sum(n * seconds[str(b), str(t)] for (b, t), n in per_pair.items())),
        amounts=spent.groupby("metric")["value"].sum().drop(c.SECONDS, errors="ignore").to_dict(),
        per_run=float(tuned["value"].mean()) if len(tuned) else math.nan,
        stopped=int(stopped.sum()),
    )


def _per_run(tuned: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> list[float]:
    """Seconds of a fine-tuning of each pair: its own, else the mean of its target, of its backbone, of all."""
    means = [tuned.groupby(keys)["value"].mean() for keys in (["backbone", "target"], "target", "backbone")]
    every = float(tuned["value"].mean()) if len(tuned) else math.nan
    return [
        float(next((m[k] for m, k in zip(means, ((b, t), t, b), strict=True) if k in m.index), every)) for b, t in pairs
    ]


def points(results: pd.DataFrame, cells: pd.DataFrame, facts: Facts) -> list[dict[str, Any]]:
    """What an answer took, for the figure of cost against accuracy: {label, target, shots, seconds, flops, parameters}.

    A line with `shots` None is an embedding, from which all probes of its (backbone, target) are solved; the others are
    fine-tunings, the mean of those that were finished. What isn't known is NaN.
    """
    found: list[dict[str, Any]] = []
    labels = cells[["backbone", "target", "label"]].drop_duplicates()
    tuned = finished(results)
    tuned = tuned[tuned["metric"].isin(COSTS)].astype({"shots": str})
    means = tuned.groupby(["backbone", "target", "shots", "metric"])["value"].mean().unstack("metric")
    for backbone, target, label in labels.itertuples(index=False):
        attributes, about = facts.embeddings.get((backbone, target), {}), facts.targets.get(target)
        parameters = number(attributes.get("parameters"))
        of_all = number(attributes.get("flops")) * about.n_images if about else math.nan
        common = {"label": label, "target": target, "parameters": parameters}
        found.append({**common, "shots": None, "seconds": number(attributes.get("seconds")), "flops": of_all})
        for (b, t, shots), row in means.iterrows():
            if (b, t) == (backbone, target):
                found.append(
                    {**common, "shots": shots, "seconds": number(row.get("seconds")), "flops": number(row.get("flops"))}
                )
    return found


def _known(seconds: float) -> str:
    return duration(seconds) if seconds else "–"


def _amounts(spent: Costs) -> str:
    """ "They took 64,000 images forward and backward, 1.2 PFLOP and 0.3 kWh." """
    known = spent.amounts
    words = [f"{known['images']:,.0f} images forward and backward"] if known.get("images") else []
    if known.get("images_scored"):
        words.append(f"{known['images_scored']:,.0f} more forward")
    if known.get("flops"):
        words.append(f"{operations(known['flops'])} of computing")
    if known.get("joules"):
        words.append(f"{known['joules'] / 3.6e6:.2g} kWh")
    if not words:
        return ""
    text = f" The fine-tunings took {' and '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)}."
    if spent.stopped:
        text += f" {plural(spent.stopped, 'run')} more {'was' if spent.stopped == 1 else 'were'} stopped by validation on the way."
    return text


def operations(flops: float) -> str:
    """Floating-point operations, for people: "1.2 PFLOP"."""
    for unit in ("GFLOP", "TFLOP", "PFLOP"):
        flops /= 1e9 if unit == "GFLOP" else 1e3
        if flops < 1000:
            return f"{flops:.3g} {unit}"
    return f"{flops / 1e3:.3g} EFLOP"


def costs_section(spent: Costs, facts: Facts, name: Name, labels: dict[str, str]) -> Markup:
    """A sentence, the sums, and each embedding."""
    lead = f"These results took {duration(spent.total)} of computing"
    if not any(math.isfinite(v) for v in spent.by_pair.values()):
        lead += ", the embedding left out, since the store holds no times"
    rows: list[list[Any]] = [
        ["Forward passes", plural(len(spent.by_pair), "embedding"), _known(spent.embedding)],
        ["Few-shot probes", plural(spent.fits, "fit"), _known(spent.by_stage["fewshot"])],
        ["Full probes", plural(spent.full_fits, "fit"), _known(spent.by_stage["probe"] + spent.by_stage["knn"])],
        ["Selected fine-tunings", plural(spent.finetunings, "run"), _known(spent.finetuning)],
        [tag("b", "Together"), "", tag("b", duration(spent.total))],
    ]
    if spent.finetunings:
        lead += (
            f". Fine-tuning instead, {plural(spent.pairs, 'run')} on whole train splits and {spent.episodes:,} on "
            f"few-shot episodes, would take about {duration(spent.every_pair + spent.every_episode)}"
        )
        rows += [
            ["Instead: fine-tune every train split", plural(spent.pairs, "run"), f"≈ {duration(spent.every_pair)}"],
            ["Instead: fine-tune every episode", plural(spent.episodes, "run"), f"≈ {duration(spent.every_episode)}"],
        ]
        note = (
            f"Both estimates rest on the {duration(spent.per_run)} that a fine-tuning took on "
            "average; a target or backbone with fine-tunings of its own takes theirs. Larger backbones cost more."
            + _amounts(spent)
        )
    else:
        note = "No fine-tuning was measured here, so what fine-tuning everything would take is not known."
    passes: list[list[Any]] = []
    for (backbone, target), attributes in sorted(facts.embeddings.items()):
        about, rate = facts.targets.get(target), number(attributes.get("images_per_second"))
        passes.append(
            [
                name(labels.get(backbone, backbone)),
                target,
                f"{about.n_images:,}" if about else "–",
                duration(spent.by_pair[backbone, target]),
                f"{rate:,.0f}" if math.isfinite(rate) else "–",
            ]
        )
    return join(
        tag("p", lead, "."),
        table(["stage", "amount", "time"], rows, numeric=frozenset({1, 2})),
        tag("p", note, class_="note"),
        tag(
            "details",
            tag("summary", f"Each embedding ({len(passes)})"),
            table(["backbone", "target", "images", "time", "images/s"], passes, numeric=frozenset({2, 3, 4})),
        )
        if passes
        else None,
    )
