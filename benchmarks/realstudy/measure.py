"""Rows -> the tables beside the page (docs/study/*.csv): cells, comparisons, gains, selection, costs. All values in points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.realstudy.design import (
    ALL_TARGETS,
    CHEST,
    FOREIGN_SIDE,
    NATIVE_SIDE,
    NATURAL,
    NONE,
    SIDE,
    SIZES,
    BackboneDesign,
    Extent,
    backbones,
)  # fmt: skip
from fastxfer.budgets import COSTS, FINETUNE, Rates
from fastxfer.comparing import compare, contests
from fastxfer.comparing.pairs import holm
from fastxfer.paper.beside import beside
from fastxfer.plans import CRITERIA, read_plan
from fastxfer.results import ResultStore
from fastxfer.scale import cells_of, fit_scale, own, paper_cells
from fastxfer.selection import policy_named
from fastxfer.selection.replay import of_rows, play
from fastxfer.statistics import summarise
from fastxfer.transferability import METRIC as TRANSFERABILITY
from fastxfer.transferability import rank_agreement

FULL = "full"
INTERVALS = ["mean", "low", "high", "low_images", "high_images"]
POLICIES = ("top", "ei", "kg", "random")
BY_BELIEF = ("ei", "kg")
SCORED = ", scored"
RANDOM_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Rows:
    """What a study has measured. rows: those of the page's metrics, test only;  everything: of the study that fine-tunes, to select by."""

    stores: tuple[ResultStore, ...]
    rows: pd.DataFrame
    everything: pd.DataFrame

    def images(self, cells: Any) -> pd.DataFrame:
        """What is known of single test images, for the cells of either results folder."""
        found = [s.read_images(cells & set(s.cells())) for s in self.stores]
        return pd.concat(found, ignore_index=True)


def read(out: Path) -> Rows:
    """The rows of a study's folder, in one metric a target: of episodes accuracy, of an image with several labels AUC,
    of whole splits what `fastxfer select` decides by.
    """
    stores = tuple(ResultStore.open(out / name) for name in ("results", "results-more") if (out / name).exists())
    read = [store.read() for store in stores]
    text = dict.fromkeys(("source", "backbone", "target", "ways", "shots", "probe", "params", "split", "metric"), str)
    everything = pd.concat(read, ignore_index=True).astype(text)
    test = everything[(everything["split"] == "test") & ~everything["metric"].isin(COSTS)]
    whole = test["shots"] == FULL
    several = {t for t, g in test[whole].groupby("target") if "balanced_accuracy" not in set(g["metric"])}
    labels = test["target"].isin(several)
    wanted = np.select([labels, whole], ["auc", CRITERIA[0]], "accuracy")
    kept = test[test["metric"] == wanted]
    return Rows(stores, kept.reset_index(drop=True), read[0].astype(text))


def tables(out: Path, extent: Extent) -> dict[str, pd.DataFrame]:
    """All of them, by the names of their files."""
    found = read(out)
    designs = {b.name: b for b in backbones(extent)}
    pairs = _pairs(found)
    return {
        "extent": _extent(extent),
        "backbones": _backbones(designs, found),
        "cells": _cells(found, designs),
        "verdicts": _verdicts(pairs),
        "leaders": _leaders(pairs, designs),
        "contrasts": _contrasts(pairs, designs),
        "gains": pd.concat([_our_gains(found, designs), _paper_gains()], ignore_index=True),
        "near": _near(out),
        "selection": _selection(found, designs),
        "agreement": _agreement(found, designs),
        "plan": _plan(found, out),
        "spent": _spent(out, found),
        "data": _data(out, extent),
        "beside": pd.DataFrame({"cells": [int(beside(found.everything)["ours"].notna().sum())]}),
    }


def _extent(extent: Extent) -> pd.DataFrame:
    """What was asked for, a value a line, as JSON."""
    told = {**asdict(extent), "side": SIDE, "foreign_side": FOREIGN_SIDE, "native_side": NATIVE_SIDE}
    return pd.DataFrame([{"key": key, "value": json.dumps(value)} for key, value in told.items()])


def _backbones(designs: dict[str, BackboneDesign], found: Rows) -> pd.DataFrame:
    """What each is, and which targets it has seen."""
    parameters = _parameters(designs)
    lines = [
        {
            "backbone": b.name, "domain": b.domain, "size": b.size, "images": b.images, "parameters": parameters[b.name],
            "seen": " ".join(sorted(t for t in set(found.rows["target"]) if b.has_seen(t))),
        }
        for b in designs.values()
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _parameters(designs: dict[str, BackboneDesign]) -> dict[str, int]:
    """Of the bodies of our own; of others unknown here: 0."""
    import timm

    sizes = {
        size: sum(
            p.numel()
            for p in timm.create_model("resnetv2_50x1_bit", channels=channels, stem_chs=32, num_classes=0).parameters()
        )
        for size, channels in SIZES.items()
    }
    return {name: sizes.get(b.size, 0) for name, b in designs.items()}


def _cells(found: Rows, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """A line a cell: mean and both intervals."""
    store_cells = {cell for store in found.stores for cell in store.cells()}
    summary = summarise(found.rows, images=found.images(store_cells)).astype({"target": str, "backbone": str})
    summary[INTERVALS] *= 100
    summary["seen"] = [_has_seen(designs, b, t) for b, t in zip(summary["backbone"], summary["target"], strict=True)]
    return summary[["target", "backbone", "shots", "ways", "probe", "metric", "seen", "n", *INTERVALS]]


def _has_seen(designs: dict[str, BackboneDesign], backbone: str, target: str) -> bool:
    return designs[backbone].has_seen(target)


def _pairs(found: Rows) -> pd.DataFrame:
    """Every pair of backbones on what both saw: the logistic probe, and fine-tuning. A target, number of shots and probe is a
    family of its own, by Holm.
    """
    rows = found.rows[found.rows["probe"].isin(["logistic", FINETUNE])]
    several = set(rows.loc[rows["metric"] == "auc", "target"])
    tables = []
    for is_several in (True, False):
        some = rows[rows["target"].isin(several) == is_several]
        for _, setting in some.groupby(["shots", "probe"]):
            if setting["backbone"].nunique() > 1:
                lined, _ = contests(setting, found.images, only={"metric": sorted(set(setting["metric"]))})
                tables += [compare([contest]) for contest in lined]
    pairs = pd.concat(tables, ignore_index=True)
    pairs["p_episodes_holm"] = np.nan
    for _, at in pairs.groupby(["target", "shots", "probe"]).indices.items():
        pairs.loc[pairs.index[at], "p_episodes_holm"] = holm(pairs["p_episodes"].to_numpy(float)[at])
    return pairs


def _verdicts(pairs: pd.DataFrame) -> pd.DataFrame:
    """How many pairs of a setting are told apart, on new images and on these alone; are equivalent; stay undecided."""
    lines = []
    for (target, shots, probe), group in pairs.groupby(["target", "shots", "probe"]):
        verdict = group["verdict"]
        better = verdict.str.endswith("better")
        lines.append(
            {
                "target": target, "shots": shots, "probe": probe, "pairs": len(group), "better": int(better.sum()),
                "equivalent": int((verdict == "equivalent").sum()), "undecided": int((verdict == "undecided").sum()),
                "better_episodes": int((group["p_episodes_holm"] <= 0.05).sum()), "n": int(group["n"].max()),
                "n_images": int(group["n_images"].max()),
                "half": float((group["high"] - group["low"]).median() / 2),
                "half_images": float((group["high_images"] - group["low_images"]).median() / 2),
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def _oriented(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair twice, once from either side; columns of a difference alone."""
    kept = ["target", "shots", "probe", "a", "b", "mean_a", "mean_b", "difference", "low", "high", "low_images", "high_images", "verdict"]  # fmt: skip
    there = pairs[kept]
    back = there.rename(columns={"a": "b", "b": "a", "mean_a": "mean_b", "mean_b": "mean_a"}).assign(
        difference=-there["difference"], low=-there["high"], high=-there["low"],
        low_images=-there["high_images"], high_images=-there["low_images"],
        verdict=there["verdict"].replace({"a better": "b better", "b better": "a better"}),
    )  # fmt: skip
    return pd.concat([there, back], ignore_index=True)


def _leaders(pairs: pd.DataFrame, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """Of each setting the best backbone that has not seen the target, the next, and how many rivals it surely beats."""
    both = _oriented(pairs)
    clean = [not (_has_seen(designs, a, t) or _has_seen(designs, b, t)) for a, b, t in zip(both["a"], both["b"], both["target"], strict=True)]  # fmt: skip
    lines = []
    for (target, shots, probe), group in both[clean].groupby(["target", "shots", "probe"]):
        best = group.loc[group["mean_a"].idxmax(), "a"]
        against = group[group["a"] == best].sort_values("mean_b", ascending=False)
        line: dict[str, Any] = {"target": target, "shots": shots, "probe": probe, "leader": best, "value": against["mean_a"].iloc[0]}  # fmt: skip
        line |= {"next": against["b"].iloc[0], "rivals": len(against)}
        line |= {k: against[k].iloc[0] for k in ("difference", "low", "high", "low_images", "high_images", "verdict")}
        line["beaten"] = int((against["verdict"] == "a better").sum())
        line["equivalent"] = int((against["verdict"] == "equivalent").sum())
        lines.append(line)
    return pd.DataFrame(lines)


def _contrasts(pairs: pd.DataFrame, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """The pairs of ours that differ in one thing: source, size, amount of data, or training at all."""
    ours = [b for b in designs.values() if b.is_ours]
    largest, most = ours[-1].size, max(b.images for b in ours)
    first, least = ours[0].size, min(b.images for b in ours if b.images)
    wanted: dict[tuple[str, str], str] = {}
    for a in ours:
        for b in ours:
            if a.domain == NATURAL and b.domain == CHEST and (a.size, a.images) == (b.size, b.images):
                wanted[a.name, b.name] = "source"
            if (
                a.domain == b.domain
                and a.images == b.images
                and (a.size, b.size) == (largest, first)
                and a.size != b.size
            ):
                wanted[a.name, b.name] = "size"
            if a.domain == b.domain and a.size == b.size and (a.images, b.images) == (most, least):
                wanted[a.name, b.name] = "data"
            if a.domain != NONE and b.domain == NONE and a.size == b.size:
                wanted[a.name, b.name] = "training"
    both = _oriented(pairs)
    kind = [wanted.get((a, b), "") for a, b in zip(both["a"], both["b"], strict=True)]
    found = both.assign(kind=kind)[np.array(kind) != ""]
    seen = [_has_seen(designs, a, t) or _has_seen(designs, b, t) for a, b, t in zip(found["a"], found["b"], found["target"], strict=True)]  # fmt: skip
    domain = [designs[a].domain for a in found["a"]]
    return found.assign(seen=seen, domain=domain)[
        ["kind", "domain", "target", "shots", "probe", "a", "b", "seen", "difference", "low", "high", "low_images", "high_images", "verdict"]
    ].reset_index(drop=True)  # fmt: skip


def _our_gains(found: Rows, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """What ten times the parameters or images bring, of our own networks on targets that they have not seen: probes."""
    parameters = _parameters(designs)
    ours = {b.name for b in designs.values() if b.is_ours and b.domain != NONE}
    rows = found.rows[(found.rows["probe"] == "logistic") & found.rows["backbone"].isin(ours)]
    rows = rows[[not _has_seen(designs, b, t) for b, t in zip(rows["backbone"], rows["target"], strict=True)]]
    # A source of another size is another source, as in the paper.
    rows = rows.assign(source=[f"{designs[b].source}-{designs[b].images}" for b in rows["backbone"]])
    about = pd.DataFrame(
        [
            {"backbone": b.name, "parameters": float(parameters[b.name]), "images": float(b.images), "domain": b.domain}
            for b in designs.values()
            if b.name in ours
        ]
    )
    relations = own.relations_by_domain(rows, about, {t: d.domain for t, d in ALL_TARGETS.items()})
    runs = [
        own.runs_of(rows, about, relations, probe="logistic", metric=metric).assign(
            # One network a (source, size): the model is its size, the source says the rest.
            model=lambda r: r["model"].map(lambda name: designs[name].size)
        )
        for metric in sorted(set(rows["metric"]))
    ]
    return fit_scale(cells_of(pd.concat(runs, ignore_index=True)), "points").effects().assign(of="ours")


def _paper_gains() -> pd.DataFrame:
    return fit_scale(paper_cells(), "points").effects().assign(of="paper")


def _near(out: Path) -> pd.DataFrame:
    file = out / "near.csv"
    return pd.read_csv(file, keep_default_na=False) if file.exists() else pd.DataFrame(columns=["target", "measure"])


def _selection(found: Rows, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """Policies played on fine-tunings that have all been made, of pairs that show transfer; judged by test. Empty before.

    Those that a belief is of also with transferability scores to learn from.
    """
    if not _all_tuned(found):
        return pd.DataFrame(columns=["policy", "budget", "of", "runs", "lost_mean", "lost_worst", "draws"])
    rows = _whole_unseen(found, designs)
    games = {"": of_rows(rows[rows["metric"] != TRANSFERABILITY]), SCORED: of_rows(rows)}
    game = games[""]
    tuned = found.rows[(found.rows["probe"] == FINETUNE)].set_index(["backbone", "target"])["value"]
    truth = 100 * np.array([tuned[b, t] for b, t in zip(game.table["backbone"], game.table["target"], strict=True)])
    targets = game.table["target"].nunique()
    lines = []
    for budget in (targets, 2 * targets, 4 * targets):
        for policy, extra, draws in _policies():
            played = [play(games[extra], p, budget) for p in draws]
            lost = np.array([_lost(game.belief.contests(), truth, one.chosen) for one in played])
            lines.append(
                {
                    "policy": policy + extra, "budget": budget, "of": len(truth), "runs": float(np.mean([len(p.order) for p in played])),
                    "lost_mean": float(lost.mean()), "lost_worst": float(lost.max(axis=1).mean()), "draws": len(played),
                }
            )  # fmt: skip
    return pd.DataFrame(lines)


def _all_tuned(found: Rows) -> bool:
    """Whether every backbone that was probed on a target of the study's file has been fine-tuned on it."""
    whole = found.everything[(found.everything["shots"] == FULL) & (found.everything["split"] == "val")]
    pairs = whole.groupby("probe")[["backbone", "target"]].apply(lambda g: len(g.drop_duplicates()))
    return bool(pairs.get(FINETUNE, 0) == pairs["logistic"])


def _whole_unseen(found: Rows, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """Rows of whole train splits, of pairs that show transfer."""
    rows = found.everything[found.everything["shots"] == FULL]
    return rows[[not _has_seen(designs, b, t) for b, t in zip(rows["backbone"], rows["target"], strict=True)]]


def _agreement(found: Rows, designs: dict[str, BackboneDesign]) -> pd.DataFrame:
    """`rank_agreement` of scores with fine-tunings on pairs that show transfer. Empty until all are made."""
    if not _all_tuned(found):
        return pd.DataFrame(columns=["target", "score", "metric", "n_backbones", "weighted_tau", "spearman", "p"])
    return rank_agreement(_whole_unseen(found, designs))


def _policies() -> Iterator[tuple[str, str, list[Any]]]:
    """Name, whether scores are to be learnt from, and the policy, or several draws of it."""
    from fastxfer.selection.frame import Random

    for name in POLICIES:
        yield name, "", [Random(seed) for seed in range(RANDOM_DRAWS)] if name == "random" else [policy_named(name)]
    for name in BY_BELIEF:
        yield name, SCORED, [policy_named(name)]


def _lost(contests_: Any, truth: Any, chosen: Any) -> Any:
    return np.array([truth[members].max() for members in contests_]) - truth[chosen]


def _plan(found: Rows, out: Path) -> pd.DataFrame:
    """A line a target: what the study's own plan ran, and what the best of all fine-tunings would have been."""
    (file,) = (out / "results").glob("plan*.json")
    chosen = {(entry.backbone, entry.target) for entry in read_plan(file)[1]}
    tuned = found.rows[found.rows["probe"] == FINETUNE]
    probed = found.rows[(found.rows["probe"] == "logistic") & (found.rows["shots"] == FULL)]
    lines = []
    for target, group in tuned.groupby("target"):
        mine = group[[(b, target) in chosen for b in group["backbone"]]]
        best, ours = group.loc[group["value"].idxmax()], mine.loc[mine["value"].idxmax()]
        of_probe = probed[probed["target"] == target].set_index("backbone")["value"]
        both = group.set_index("backbone")["value"]
        lines.append(
            {
                "target": target, "runs": len(mine), "of": len(group), "best": best["backbone"], "best_value": 100 * best["value"],
                "selected": ours["backbone"], "selected_value": 100 * ours["value"], "lost": 100 * (best["value"] - ours["value"]),
                "above_probe": int((both > of_probe[both.index]).sum()),
                "gain_median": float(100 * (both - of_probe[both.index]).median()),
                "rank_correlation": float(both.corr(of_probe[both.index], method="spearman")),
                "best_probe": 100 * of_probe.max(),
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def _spent(out: Path, found: Rows) -> pd.DataFrame:
    """Seconds by stage: of the clock and of the cores; and of all fine-tunings, those of the plan among them."""
    spent = json.loads((out / "spent.json").read_text())
    lines = [{"stage": stage, **both} for stage, both in spent.items()]
    runs = Rates.of(found.everything).runs
    (file,) = (out / "results").glob("plan*.json")
    chosen = {(entry.backbone, entry.target) for entry in read_plan(file)[1]}
    selected = runs[[pair in chosen for pair in zip(runs["backbone"], runs["target"], strict=True)]]
    for stage, some in (("tuned, selected", selected), ("tuned, all", runs)):
        lines.append({"stage": stage, "clock": float(some["seconds"].sum()), "core": np.nan, "runs": len(some)})
    logged = [line for store in found.stores for line in store.runs()]
    for stage in ("embed", "fewshot", "probe", "knn"):
        seconds = sum(line["seconds"] for line in logged if line.get("stage") == stage)
        lines.append({"stage": f"stage {stage}", "clock": seconds, "core": np.nan})
    return pd.DataFrame(lines)


def _data(out: Path, extent: Extent) -> pd.DataFrame:
    """A line a target: images by split, classes."""
    from fastxfer.store import EmbeddingStore

    store = EmbeddingStore.open(str(out / "store"))
    lines = []
    for name in (*extent.targets, *extent.more_targets):
        table = store.target(name)
        sizes = {split: len(table.rows(split)) for split in ("train", "val", "test")}
        lines.append({"target": name, "domain": ALL_TARGETS[name].domain, "classes": len(table.class_names), **sizes})
    return pd.DataFrame(lines)
