"""The tables beside the page -> the named values that its template quotes: numbers, words and small tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.realstudy.design import ALL_TARGETS, CHEST, NATURAL
from fastxfer.hyperrule import PRESETS, hyperrule
from fastxfer.paper import paper_results
from fastxfer.paper.facts import MODELS, SOURCES

Tables = Mapping[str, pd.DataFrame]
TUNED, PROBE, WHOLE = "finetune", "logistic", "full"
FEW = "5"
REGIMES = ("few, all", "full")
_VERDICTS = ("a better", "b better", "equivalent", "undecided")


def values(t: Tables) -> dict[str, Any]:
    """All of them."""
    return {
        **_design(t), **_leaders(t), **_floors(t), **_sure(t), **_source(t), **_near(t), **_scale(t), **_tuned(t),
        **_selection(t), **_cost(t), **_paper(t),
    }  # fmt: skip


def extent_of(t: Tables) -> dict[str, Any]:
    """What was asked for: the fields of `Extent`, and pixels."""
    return {key: json.loads(value) for key, value in t["extent"].itertuples(index=False)}


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table, a column a key."""
    columns = list(lines[0])
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(rows + ["| " + " | ".join(str(line[c]) for c in columns) + " |" for line in lines])


def interval(low: float, high: float) -> str:
    """ "+1.2 … +3.4"; "–" where it is not known."""
    return "–" if low != low else f"{low:+.1f} … {high:+.1f}"


def _counted(verdicts: pd.Series) -> dict[str, int]:
    return {word: int((verdicts == word).sum()) for word in _VERDICTS}


def _design(t: Tables) -> dict[str, Any]:
    e, all_backbones, data = extent_of(t), t["backbones"], t["data"]
    ours = all_backbones[all_backbones["size"].notna()]
    sizes = dict(zip(ours["size"], ours["parameters"] / 1e6, strict=True))
    lines = [
        {
            "target": f"`{r.target}`", "what": ALL_TARGETS[r.target].words, "kind": r.domain, "classes": r.classes,
            "train": f"{r.train:,}", "val": f"{r.val:,}", "test": f"{r.test:,}",
        }
        for r in data.itertuples()
    ]  # fmt: skip
    seen = all_backbones[all_backbones["seen"].notna()]
    return {
        "n_backbones": len(all_backbones), "n_ours": len(ours), "n_targets": len(data), "n_foreign": len(e["foreign"]),
        "n_sizes": len(e["sizes"]), "n_amounts": len(e["amounts"]), "amounts": ", ".join(f"{a:,}" for a in e["amounts"]),
        "sizes": ", ".join(f"{size.upper()} {millions:.2f}" for size, millions in sizes.items()),
        "span_size": max(sizes.values()) / min(sizes.values()), "span_data": max(e["amounts"]) / min(e["amounts"]),
        "images_seen": e["images_seen"], "episodes": e["episodes"], "side": e["side"], "foreign_side": e["foreign_side"], "native_side": e["native_side"],
        "many": " and ".join(f"{episodes:,} at {shots} shots" for shots, episodes in e["many"]),
        "steps": e["steps"], "batch": e["batch"], "base_lr": f'{e["base_lr"]:g}',
        "table_data": markdown(lines), "n_seen_cells": int(t["cells"].query("probe == @PROBE and shots == @WHOLE")["seen"].sum()),
        "n_pairs": len(t["cells"].query("probe == @PROBE and shots == @WHOLE")),
        "seen_backbones": ", ".join(f"`{b}`" for b in seen["backbone"] if not b.startswith(("natural", "chest"))),
        "n_cells": len(t["cells"]), "n_rows": int(t["cells"]["n"].sum()),
    }  # fmt: skip


def _of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def _leaders(t: Tables) -> dict[str, Any]:
    """Who leads at five shots and with the whole train split, among those that have not seen the target."""
    leaders, e = _of(t["leaders"], probe=PROBE), extent_of(t)
    lines = []
    for shots in (FEW, WHOLE):
        for r in _of(leaders, shots=shots).itertuples():
            lines.append(
                {
                    "target": r.target, "shots": shots, "best unseen": f"{r.leader} {r.value:.1f}", "next": r.next,
                    "difference": f"{r.difference:+.1f}", "on these images": interval(r.low, r.high) if shots != WHOLE else "–",
                    "on new images": interval(r.low_images, r.high_images),
                    "surely beats": f"{r.beaten} of {r.rivals}", "verdict on the next": _plain(r.verdict),
                }
            )  # fmt: skip
    sure = _of(leaders, shots=WHOLE)["verdict"].eq("a better").sum()
    names = _of(leaders, shots=WHOLE)["leader"]
    common = names.value_counts()
    return {
        "table_leaders": markdown(lines), "n_leaders_sure": int(sure), "n_leaders": len(names),
        "n_leaders_few_sure": int(_of(leaders, shots=FEW)["verdict"].eq("a better").sum()), "n_leaders_few": len(_of(leaders, shots=FEW)),
        **_neighbours(t), "commonest_leader": common.index[0], "commonest_leader_count": int(common.iloc[0]),
        "n_foreign_leaders": int(names.isin(e["foreign"]).sum()),
        **_of_nih(t), "nih_leader": ", ".join(_of(leaders, shots=WHOLE, target="nih")["leader"]), "most_images": max(e["amounts"]),
    }  # fmt: skip


def _of_nih(t: Tables) -> dict[str, Any]:
    whole = _of(t["leaders"], probe=PROBE, shots=WHOLE, target="nih").merge(
        t["backbones"], left_on="leader", right_on="backbone"
    )
    return {f"nih_{key}": ", ".join(map(str, whole[key])) for key in ("domain", "beaten", "rivals")}


def _neighbours(t: Tables) -> dict[str, Any]:
    whole = _of(t["cells"], shots=WHOLE).pivot_table("mean", ["target", "backbone"], "probe")[[PROBE, "knn"]].dropna()
    ahead = whole[PROBE] - whole["knn"]
    return {"knn_n": len(ahead), "knn_below": int((ahead > 0).sum()), "knn_median": ahead.median()}


def _plain(verdict: str) -> str:
    return {"a better": "better", "b better": "worse"}.get(verdict, verdict)


def _floors(t: Tables) -> dict[str, Any]:
    """What training brings over the same network untrained, five shots."""
    some = _of(t["contrasts"], kind="training", shots=FEW, probe=PROBE, seen=False)
    counts = _counted(some["verdict"])
    by = some.groupby(["domain", "target"])["difference"].mean()
    lines = [
        {"target": target, **{f"{d} source": f"{by[d, target]:+.1f}" if (d, target) in by.index else "seen" for d in (NATURAL, CHEST)}}
        for target in sorted(set(some["target"]))
    ]  # fmt: skip
    largest = some.loc[some["difference"].idxmax()]
    return {
        "floor_n": len(some), "floor_better": counts["a better"], "floor_worse": counts["b better"],
        "floor_alike": counts["equivalent"], "floor_undecided": counts["undecided"], "table_floors": markdown(lines),
        "floor_largest": largest["difference"], "floor_largest_a": largest["a"], "floor_largest_target": largest["target"],
    }  # fmt: skip


def _sure(t: Tables) -> dict[str, Any]:
    """Of targets whose test images (patients, drawers) are enough to speak of new ones."""
    v = _of(t["verdicts"], probe=PROBE)
    v = v[v["half_images"].notna()]
    few, whole = _of(v, shots=FEW), _of(v, shots=WHOLE)

    def share(frame: pd.DataFrame, column: str) -> float:
        return 100 * frame[column].sum() / frame["pairs"].sum()

    return {
        "few_pairs": int(few["pairs"].sum()), "few_better": share(few, "better"), "few_alike": share(few, "equivalent"),
        "few_undecided": share(few, "undecided"), "few_better_episodes": share(few, "better_episodes"),
        "whole_pairs": int(whole["pairs"].sum()), "whole_better": share(whole, "better"),
        "whole_alike": share(whole, "equivalent"), "whole_undecided": share(whole, "undecided"),
        "half_episodes": float(few["half"].median()), "half_images": float(few["half_images"].median()),
        "half_ratio": float((few["half_images"] / few["half"]).median()),
        "omniglot_half": float(_of(few, target="omniglot")["half_images"].sum()),
        "few_sure_targets": few["target"].nunique(), "whole_sure_targets": whole["target"].nunique(),
    }  # fmt: skip


def _source(t: Tables) -> dict[str, Any]:
    """Natural less chest, at the same size and amount."""
    some = _of(t["contrasts"], kind="source", probe=PROBE, seen=False)
    found: dict[str, Any] = {}
    lines = []
    for shots in (FEW, WHOLE):
        for target, group in _of(some, shots=shots).groupby("target"):
            c = _counted(group["verdict"])
            lines.append(
                {
                    "target": target, "shots": shots, "mean difference": f"{group['difference'].mean():+.1f}",
                    "smallest … largest": interval(group["difference"].min(), group["difference"].max()),
                    "natural better": c["a better"], "chest better": c["b better"], "equivalent": c["equivalent"], "undecided": c["undecided"],
                }
            )  # fmt: skip
    for name, domain in (("natural", NATURAL), ("chest", CHEST)):
        on = [ALL_TARGETS[target].domain == domain for target in some["target"]]
        few = _of(some[on], shots=FEW)
        c = _counted(few["verdict"])
        found[f"source_{name}_word"] = _word(few["verdict"], "a better" if domain == NATURAL else "b better")
        found |= {f"source_{name}_n": len(few), f"source_{name}_mean": float(few["difference"].mean())}
        found |= {f"source_{name}_{key}": c[word] for key, word in (("natural", "a better"), ("chest", "b better"), ("alike", "equivalent"), ("open", "undecided"))}  # fmt: skip
    return found | {"table_source": markdown(lines)}


def _near(t: Tables) -> dict[str, Any]:
    """How near the chest source is to the targets, beside what it is worth there."""
    near = _of(t["near"], measure="mmd")
    if near.empty:
        return {
            "table_near": "not measured",
            "nearest": "–",
            "furthest": "–",
            "near_targets": 0,
            "near_rank": 0.0,
            "near_references": 0,
        }
    worth = _of(t["contrasts"], kind="source", shots=WHOLE, probe=PROBE).groupby("target")["difference"].mean()
    mean = near.groupby("target")["value"].agg(["mean", "min", "max"]).sort_values("mean")
    lines = [
        {
            "target": target, "distance of Kermany": f"{r['mean']:.2f} ({r['min']:.2f} … {r['max']:.2f})",
            "natural less chest, full probe": f"{worth[target]:+.1f}",
        }
        for target, r in mean.iterrows()
    ]  # fmt: skip
    both = mean["mean"].to_frame("distance").join(worth).dropna()
    return {
        "table_near": markdown(lines), "nearest": str(mean.index[0]), "furthest": str(mean.index[-1]), "near_targets": len(both),
        "near_rank": float(both.corr(method="spearman").iloc[0, 1]), "near_references": near["reference"].nunique(),
    }  # fmt: skip


def _scale(t: Tables) -> dict[str, Any]:
    """Gains per tenfold, ours beside the paper's, by relation."""
    relations = {"natural to natural": "natural to natural", "natural to X-ray": "natural to chest", "X-ray to X-ray": "chest to chest"}  # fmt: skip
    ours, paper = _of(t["gains"], of="ours"), _of(t["gains"], of="paper")
    lines, same, opposed, open_ = [], 0, 0, 0
    for kind in ("size", "data"):
        for theirs, mine in relations.items():
            for regime in REGIMES:
                a = _of(ours, kind=kind, relation=mine, shots=regime)
                b = _of(paper, kind=kind, relation=theirs, shots=regime)
                if a.empty or b.empty or a["value"].isna().any() or b["value"].isna().any():
                    continue
                x, y = a.iloc[0], b.iloc[0]
                sign = (_sign(x), _sign(y))
                word = "open" if 0 in sign else "agree" if sign[0] == sign[1] else "differ"
                same, opposed, open_ = same + (word == "agree"), opposed + (word == "differ"), open_ + (word == "open")
                lines.append(
                    {
                        "tenfold": kind, "relation": theirs, "shots": regime.split(",")[0], "ours": f"{x['value']:+.1f}",
                        "ours, interval": interval(x["low"], x["high"]), "paper": f"{y['value']:+.1f}",
                        "paper, interval": interval(y["low"], y["high"]), "signs": word,
                    }
                )  # fmt: skip
    few = _of(t["contrasts"], shots=FEW, probe=PROBE, seen=False)
    few = few[few["domain"].isin([NATURAL, CHEST])]
    size, data = _of(few, kind="size"), _of(few, kind="data")
    s, d = _counted(size["verdict"]), _counted(data["verdict"])
    return {
        **_size_by_relation(size), "table_gains": markdown(lines), "gains_same": same, "gains_opposed": opposed, "gains_open": open_, "gains_n": len(lines),
        "size_n": len(size), "size_better": s["a better"], "size_worse": s["b better"], "size_alike": s["equivalent"],
        "size_open": s["undecided"], "size_mean": float(size["difference"].mean()),
        "data_n": len(data), "data_better": d["a better"], "data_worse": d["b better"], "data_alike": d["equivalent"],
        "data_open": d["undecided"], "data_mean": float(data["difference"].mean()),
    }  # fmt: skip


def _size_by_relation(size: pd.DataFrame) -> dict[str, Any]:
    """The largest network against the smallest, natural source: on natural targets (near) and on chest X-rays (far)."""
    found: dict[str, Any] = {"size_word": _word(size["verdict"])}
    for name, domain in (("near", NATURAL), ("far", CHEST)):
        on = [ALL_TARGETS[target].domain == domain for target in size["target"]]
        verdicts = _of(size[on], domain=NATURAL)["verdict"]
        c = _counted(verdicts)
        found |= {
            f"size_{name}_n": len(verdicts),
            f"size_{name}_better": c["a better"],
            f"size_{name}_worse": c["b better"],
        }
        found[f"size_{name}_word"] = _word(verdicts)
    return found


def _word(verdicts: pd.Series, first: str = "a better") -> str:
    """Whether comparisons say that the first is the better one: "yes", "no", "both ways" or "undecided"."""
    second = "b better" if first == "a better" else "a better"
    yes, no = bool((verdicts == first).any()), bool((verdicts == second).any())
    return {(True, False): "yes", (False, True): "no", (True, True): "both ways"}.get((yes, no), "undecided")


def _sign(gain: pd.Series) -> int:
    """1 or -1 where the interval leaves 0 out, else 0."""
    return int(gain["low"] > 0) - int(gain["high"] < 0)


def _tuned(t: Tables) -> dict[str, Any]:
    """Fine-tunings beside the full probes of the same pairs; `is_complete`: whether there is one of every pair."""
    plan, e, whole = t["plan"], extent_of(t), _of(t["cells"], shots=WHOLE)
    both = whole[whole["probe"].isin([PROBE, TUNED])].pivot_table("mean", ["target", "backbone"], "probe").dropna()
    gain = both[TUNED] - both[PROBE]
    seen = {(r.backbone, r.target): " (seen)" for r in whole.itertuples() if r.seen}
    lines = [
        {
            "target": target,
            "backbone": backbone + seen.get((backbone, target), ""),
            "probe": f"{r[PROBE]:.1f}",
            "fine-tuned": f"{r[TUNED]:.1f}",
        }
        for (target, backbone), r in both.iterrows()  # type: ignore[misc]
    ]
    ranks = [
        {
            "target": r.target, "fine-tunings": r.of, "above their probe": r.above_probe, "median gain": f"{r.gain_median:+.1f}",
            "rank correlation": f"{r.rank_correlation:.2f}", "best fine-tuning": f"{r.best_value:.1f}", "best probe": f"{r.best_probe:.1f}",
        }
        for r in plan.itertuples()
    ]  # fmt: skip
    return {
        "is_complete": len(t["selection"]) > 0, "tuned_n": len(both), "tuned_of": len(e["targets"]) * len(t["backbones"]),
        "tuned_above": int((gain > 0).sum()), "tuned_gain": gain.median(), "tuned_best": gain.max(), "tuned_worst": gain.min(),
        "table_tuned": markdown(lines), "table_ranks": markdown(ranks),
        "tuned_rank_low": plan["rank_correlation"].min(), "tuned_rank_high": plan["rank_correlation"].max(),
        **_agreement(t),
        "probe_wins": int((plan["best_probe"] > plan["best_value"]).sum()), "n_tuned_targets": len(plan),
    }  # fmt: skip


def _agreement(t: Tables) -> dict[str, Any]:
    """Scores and the probe by how they rank backbones, means over targets, best first."""
    every = t["agreement"]
    means = every[every["target"].isna() | (every["target"] == "")]
    here = every.drop(means.index)
    lines = [
        {"score": r.score, "weighted tau": f"{r.weighted_tau:.2f}", "Spearman": f"{r.spearman:.2f}",
         "Spearman, lowest target": f"{here.loc[here['score'] == r.score, 'spearman'].min():.2f}",
         "targets": int((here["score"] == r.score).sum())}
        for r in means.itertuples()
    ]  # fmt: skip
    scores = means[~means["score"].str.contains("full, val", regex=False)]
    probes = means[means["score"].str.startswith("logistic")]
    known = len(scores) > 0 and len(probes) > 0
    return {
        "table_agreement": markdown(lines) if lines else "",
        "best_score": scores["score"].iloc[0] if known else "", "best_score_tau": scores["weighted_tau"].iloc[0] if known else 0.0,
        "probe_tau": probes["weighted_tau"].iloc[0] if known else 0.0,
        "scores_above_probe": int((scores["weighted_tau"] > probes["weighted_tau"].iloc[0]).sum()) if known else 0,
        "n_scores": len(scores),
    }  # fmt: skip


def _selection(t: Tables) -> dict[str, Any]:
    plan, replay = t["plan"], t["selection"]
    seen = {(r.backbone, r.target) for r in t["cells"].itertuples() if r.seen}
    lines = [
        {
            "target": r.target, "run": r.runs, "best of all": f"{r.best} {r.best_value:.1f}",
            "best of the selected": f"{r.selected} {r.selected_value:.1f}", "lost": f"{r.lost:.1f}",
        }
        for r in plan.itertuples()
    ]  # fmt: skip
    played = [
        {
            "policy": r.policy, "budget": f"{r.budget} of {r.of}", "runs made": f"{r.runs:.1f}",
            "lost, mean": f"{r.lost_mean:.1f}", "lost, worst target": f"{r.lost_worst:.1f}",
        }
        for r in replay.itertuples()
    ]  # fmt: skip
    twice = replay[replay["budget"] == 2 * len(plan)].set_index("policy") if played else pd.DataFrame()
    lost = {
        f"{policy}_{part}": float(twice.loc[policy, f"lost_{part}"]) if played else 0.0
        for policy in ("top", "ei", "random")
        for part in ("mean", "worst")
    }
    return {
        **lost, "twice": 2 * len(plan), "twice_share": 100 * 2 * len(plan) / replay["of"].max() if played else 0.0,
        "table_plan": markdown(lines), "plan_runs": int(plan["runs"].sum()), "plan_of": int(plan["of"].sum()),
        "plan_saved": 100 * (1 - plan["runs"].sum() / plan["of"].sum()), "plan_lost": plan["lost"].mean(), "plan_worst": plan["lost"].max(),
        "plan_worst_target": plan.loc[plan["lost"].idxmax(), "target"], "table_replay": markdown(played) if played else "",
        "replay_draws": int(replay["draws"].max()) if played else 0,
        "plan_seen": sum((r.selected, r.target) in seen for r in plan.itertuples()),
        "selected": ", ".join(f"`{r.selected}` on `{r.target}`" for r in plan.itertuples()),
    }  # fmt: skip


def _cost(t: Tables) -> dict[str, Any]:
    spent = t["spent"].set_index("stage")
    core = spent["core"].dropna()
    tuned, selected = spent.loc["tuned, all", "clock"], spent.loc["tuned, selected", "clock"]
    probes = sum(spent.loc[f"stage {s}", "clock"] for s in ("embed", "fewshot", "probe", "knn"))
    lines = [
        {"part": stage, "seconds of the clock": f"{r['clock']:,.0f}", "core-seconds": "–" if r["core"] != r["core"] else f"{r['core']:,.0f}"}
        for stage, r in spent.iterrows()
    ]  # fmt: skip
    return {
        "table_cost": markdown(lines), "core_minutes": core.sum() / 60, "core_hours": core.sum() / 3600,
        "clock_hours": spent.loc[core.index, "clock"].sum() / 3600, "tuned_minutes": tuned / 60, "selected_minutes": selected / 60,
        "selected_share": 100 * selected / tuned, "probe_minutes": probes / 60,
        "share_of_cores": 100 * core.sum() / spent.loc[core.index, "clock"].sum(),
    }  # fmt: skip


def _paper(t: Tables) -> dict[str, Any]:
    """The size of the paper's study, beside ours."""
    natural = [s.images for s in SOURCES.values() if s.domain == NATURAL]
    sizes = [m.parameters for m in MODELS.values()]
    cells = paper_results()
    of_target = cells.groupby("target")
    return {
        "paper_span_size": max(sizes) / min(sizes), "paper_span_data": max(natural) / min(natural),
        "paper_weights": max(sizes) / 1e6, "paper_source": max(natural) / 1e6,
        "paper_times": max(sizes) / t["backbones"]["parameters"].max(),
        "paper_images": hyperrule(1, 1.0).steps * PRESETS["paper"].batch_size,
        "paper_networks": max(len(g[["source", "model"]].drop_duplicates()) for _, g in of_target),
        "paper_shots": max(g["shots"].nunique() for _, g in of_target), "beside_n": int(t["beside"]["cells"].sum()),
    }  # fmt: skip
