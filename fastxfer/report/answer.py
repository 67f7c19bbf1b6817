"""The answer first, in words and numbers: who leads each target, by how much, how sure, and what stays open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fastxfer.report import cells as c
from fastxfer.report.comparisons import MARGIN, NONE, Comparisons
from fastxfer.report.flags import Flag
from fastxfer.report.html import Markup, join, tag
from fastxfer.report.words import bounds, joined, plural, with_unit
from fastxfer.statistics import EPISODES

Name = Callable[[str], Markup]  # a backbone's label -> its name with its colour
RIVALS = 5  # so many are named in a sentence
NAMED = 3  # so many targets are named in the first sentences; more are counted


@dataclass(frozen=True)
class Standings:
    """Who leads each target: at few shots, along the curve, and on the whole train split, where there are such rows."""

    few: dict[str, c.Standing]
    curves: dict[str, list[c.Standing]]
    full: dict[str, c.Standing]


def value_with_interval(row: pd.Series) -> Markup:
    """``84.3 % (83.9–84.7; new images 80.1–88.0)``: without an interval where there is none or where it has no width."""
    text, wide = bounds(row["low"], row["high"]), ""
    if row["interval"] == EPISODES:
        wide = bounds(row["low_images"], row["high_images"])
    inside = "; ".join([*([text] if text else []), *([f"new images {wide}"] if wide else [])])
    return tag("span", tag("b", with_unit(row["mean"])), f" ({inside})" if inside else "", class_="value")


def listed(items: Sequence[Markup]) -> Markup:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(items) < 2:
        return join(*items)
    return join([[item, ", "] for item in items[:-2]], items[-2], " and ", items[-1])


def setting(standing: c.Standing) -> str:
    """``5-way 5-shot, logistic``."""
    if standing.shots == c.FULL:
        return f"Whole train split, {standing.probe}"
    ways = "All-way" if standing.ways == "all" else f"{standing.ways}-way"
    return f"{ways} {standing.shots}-shot, {standing.probe}"


def sentence(standing: c.Standing, name: Name) -> Markup:
    """One setting of one target as a sentence."""
    best, table = standing.best, standing.table
    leader, value = name(best["label"]), value_with_interval(best)
    if len(table) == 1:
        return join(leader, " reaches ", value, "; no other backbone was tried here.")
    second = table.iloc[1]
    gap = [f", {standing.gap:.1f} points above ", name(second["label"]), " at ", value_with_interval(second)]
    if standing.verdicts:
        return join(
            leader, " leads at " if standing.decided else " is ahead at ", value, gap, *_by_pairs(standing, name), "."
        )
    if standing.decided:
        return join(leader, " leads at ", value, gap, ".")
    if not standing.has_intervals:
        ending = ". Without intervals for all values, how sure this is remains unknown."
        return join(leader, " is ahead at ", value, gap, ending)
    rivals = [name(label) for label in standing.tied]
    overlap = "The intervals overlap" if len(rivals) == 1 else ["Its interval overlaps those of ", listed(rivals)]
    return join(leader, " is ahead at ", value, gap, ". ", overlap, ": not decided.")


def _by_pairs(standing: c.Standing, name: Name) -> list[Any]:
    """What paired comparisons say of the leader and its nearest rivals."""
    second = str(standing.table.iloc[1]["label"])
    told: list[Any] = []
    if verdict := standing.verdicts.get(second):
        told.append(f" (paired: {verdict.low:+.1f} to {verdict.high:+.1f})".replace("-", "−"))
    if alike := standing.alike:
        told += [f". No difference above {MARGIN:g} point from ", listed([name(label) for label in alike])]
    if unknown := [label for label in standing.tied if label not in alike]:
        more = len(unknown) - RIVALS
        named = [name(label) for label in (unknown if more <= 1 else unknown[:RIVALS])]
        told += [". Not decided against ", listed([*named, join(f"{more} more")] if more > 1 else named)]
    return told


def crossings(standings: list[c.Standing], stated: c.Standing, name: Name) -> Markup | None:
    """Where other shots have another clear leader than the stated setting."""
    other = [s for s in standings if s.decided and s.best["label"] != stated.best["label"] and s.shots != stated.shots]
    if not other:
        return None
    parts = [join(f"at {plural(int(s.shots), 'shot')} ", name(s.best["label"])) for s in other]
    return join(" Elsewhere on the curve another leads: ", listed(parts), ".")


def tally(standings: list[c.Standing], when: str, name: Name) -> Markup | None:
    """``At 5 shots, A leads on x and y; B leads on z; w is not decided.``"""
    rated = [s for s in standings if len(s.table) > 1]
    if not rated:
        return None
    won: dict[str, list[str]] = {}
    for s in rated:
        if s.decided:
            won.setdefault(str(s.best["label"]), []).append(s.target)
    shared: dict[tuple[str, ...], list[str]] = {}
    for s in rated:
        if s.is_shared:
            shared.setdefault((str(s.best["label"]), *s.alike), []).append(s.target)
    open_ = [s.target for s in rated if not s.decided and not s.is_shared]

    def places(targets: list[str]) -> Markup:
        if len(targets) > NAMED:
            return join(f"{len(targets)} of {len(rated)} targets")
        return listed([tag("b", target) for target in targets])

    leaders = sorted(won.items(), key=lambda item: -len(item[1]))
    clauses = [join(name(label), " leads on ", places(targets)) for label, targets in leaders]
    for labels, targets in sorted(shared.items(), key=lambda item: -len(item[1])):
        ahead = [name(label) for label in labels]
        clauses.append(
            join("on ", places(targets), " ", listed(ahead), f" are ahead, with no difference above {MARGIN:g} point")
        )
    if open_:
        clauses.append(join(places(open_), " is not decided" if len(open_) == 1 else " are not decided"))
    return join(when, ", ", [[clause, "; "] for clause in clauses[:-1]], clauses[-1], ".")


def stand(cells: pd.DataFrame, compared: Comparisons = NONE) -> Standings:
    """The settings that the answer speaks of, see `cells.usual`; with the verdicts of paired comparisons, where there are any."""
    few: dict[str, c.Standing] = {}
    curves: dict[str, list[c.Standing]] = {}
    full: dict[str, c.Standing] = {}

    def standing(target: str, ways: str, shots: str, probe: str) -> c.Standing | None:
        found = c.standing(cells, target, ways, shots, probe)
        if found is None:
            return None
        leader, *others = found.table["label"]
        verdicts = {b: v for b in others if (v := compared.verdict((target, ways, shots, probe), leader, b))}
        return replace(found, verdicts=verdicts)

    for target, of in c.usual(cells).items():
        here = cells[(cells["target"] == target) & (cells["shots"] != c.FULL)]
        if of.ways and of.probe:
            shots = sorted(here["shots"].unique(), key=c.natural_key)
            curves[target] = [s for k in shots if (s := standing(target, of.ways, k, of.probe))]
            if usual := next((s for s in curves[target] if s.shots == of.shots), None):
                few[target] = usual
        if of.full and (best := standing(target, "all", c.FULL, of.full)):
            full[target] = best
    return Standings(few, curves, full)


def answer(standings: Standings, raised: list[Flag], name: Name) -> Markup:
    """Two sentences over all targets, and which of them need a grain of salt."""
    few, full = standings.few, standings.full
    shots_seen = {s.shots for s in few.values()}
    when = f"At {plural(int(next(iter(shots_seen))), 'shot')}" if len(shots_seen) == 1 else "With few shots"
    lede = [tally(list(few.values()), when, name), tally(list(full.values()), "With the whole train split", name)]
    doubts: dict[str, list[str]] = {}
    for flag in raised:
        if flag.target and flag.target not in doubts.get(flag.head, []):
            doubts.setdefault(flag.head, []).append(flag.target)
    return join(
        tag("p", [[part, " "] for part in lede if part], class_="lede")
        if any(lede)
        else tag("p", "There is one backbone only, so there is nothing to compare."),
        tag(
            "p",
            "Read with care: ",
            "; ".join(f"{joined(targets)} ({head.lower()})" for head, targets in doubts.items()),
            ". Details: ",
            tag("a", "target by target", href="#targets"),
            ".",
            class_="caution",
        )
        if doubts
        else None,
    )


def by_target(cells: pd.DataFrame, standings: Standings, raised: list[Flag], name: Name) -> Markup:
    """Each target's standings and warnings, then how to read them."""
    blocks = []
    for target in cells["target"].unique():
        lines: list[tuple[str, Markup]] = []
        if few := standings.few.get(target):
            lines.append((setting(few), join(sentence(few, name), crossings(standings.curves[target], few, name))))
        if full := standings.full.get(target):
            lines.append((setting(full), sentence(full, name)))
        lines += _finetuned(cells, target, full, name)
        lines += [(flag.head, tag("span", flag.text, class_="caution")) for flag in raised if flag.target == target]
        metric = c.metric_name(str(cells.loc[(cells["target"] == target) & cells["main"], "metric"].iloc[0]))
        heading = tag("h3", target, " ", tag("small", metric))
        body = [join(tag("dt", label), tag("dd", text)) for label, text in lines]
        blocks.append(tag("div", heading, tag("dl", body), class_="verdict", data_target=target))
    return join(
        tag("div", blocks, class_="verdicts"), _how_to_read(cells, any(s.verdicts for s in standings.few.values()))
    )


def _finetuned(cells: pd.DataFrame, target: str, probe: c.Standing | None, name: Name) -> list[tuple[str, Markup]]:
    split = c.main_split(cells[cells["target"] == target])
    tuned = cells[
        (cells["target"] == target) & (cells["probe"] == c.FINETUNE) & cells["main"] & (cells["split"] == split)
    ]
    if tuned.empty:
        return []
    best, n = tuned.loc[tuned["mean"].idxmax()], tuned["label"].nunique()
    beside: Markup | str = "."
    if probe is not None:
        same = probe.table[probe.table["label"] == best["label"]]
        if len(same):
            change = 100 * float(best["mean"] - same.iloc[0]["mean"])
            beside = f", {abs(change):.1f} points {'above' if change >= 0 else 'below'} its own probe."
    heading = "Fine-tuned" if n == 1 else f"Best of {n} fine-tuned"
    return [(heading, join(name(best["label"]), " reaches ", value_with_interval(best), beside))]


def _how_to_read(cells: pd.DataFrame, paired: bool) -> Markup:
    populations = set(cells["interval"])
    notes = ["Brackets hold 95 % intervals."]
    if EPISODES in populations:
        notes.append(
            "Those of few-shot values are over episodes: they say what other draws from these same images would give, "
            "not what new images would."
        )
    few = cells[cells["interval"] == EPISODES]
    if few["low_images"].notna().any():
        notes.append("“New images”: over episodes and test images, what new images of the same kind would give, too.")
        without = few.loc[few["low_images"].isna() & few["main"], "reason"].value_counts()
        notes += [f"{plural(int(n), 'cell')} {'has' if n == 1 else 'have'} none: {why}." for why, n in without.items()]
    if len(populations) > 1:
        notes.append("So the two kinds cannot be compared in width.")
    notes.append("None covers another training run of the same backbone, which may move a value by more.")
    if paired:
        notes.append(
            "A backbone leads where it is better than every other one in paired comparisons on the same episodes or images, "
            "corrected for their number."
        )
    else:
        notes.append(
            "A backbone leads where its interval lies above all others; where intervals overlap, no winner is named."
        )
    splits = {c.main_split(g) for _, g in cells.groupby("target")}
    if splits != {"test"}:
        other = " and ".join(sorted(splits - {"test"}))
        notes.append(f"Some targets have no test rows: their values are those of the {other} split.")
    return tag("p", " ".join(notes), class_="note")
