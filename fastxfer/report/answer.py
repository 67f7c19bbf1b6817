"""The answer first, in words and numbers: who leads each target, by how much, how sure, and what stays open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pandas as pd

from fastxfer.report import cells as c
from fastxfer.report.html import Markup, join, tag

Name = Callable[[str], Markup]  # a backbone's label -> its name with its colour


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def value_with_interval(row: pd.Series) -> Markup:
    """``84.3 % (83.9–84.7)``; without interval where there is none."""
    interval = f" ({percent(row['low'])}–{percent(row['high'])})" if pd.notna(row["low"]) else ""
    return tag("span", tag("b", f"{percent(row['mean'])} %"), interval, class_="value")


def listed(items: list[Markup]) -> Markup:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(items) < 2:
        return join(*items)
    return join([[item, ", "] for item in items[:-2]], items[-2], " and ", items[-1])


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def setting(standing: c.Standing) -> str:
    if standing.shots == c.FULL:
        return f"With the whole train split ({probe_name(standing.probe)})"
    ways = "all classes" if standing.ways == "all" else f"{standing.ways}-way"
    return f"At {plural(int(standing.shots), 'shot')} ({ways}, {probe_name(standing.probe)})"


def probe_name(probe: str) -> str:
    return {
        "logistic": "logistic probe",
        "ridge": "ridge probe",
        "knn": "kNN",
        "finetune": "fine-tuning",
    }.get(probe, probe)


def sentence(standing: c.Standing, name: Name) -> Markup:
    """One setting of one target as a sentence."""
    best, table = standing.best, standing.table
    start = f"{setting(standing)} "
    leader = name(best["label"])
    if len(table) == 1:
        return join(start, leader, " reaches ", value_with_interval(best), "; no other backbone was tried here.")
    second = table.iloc[1]
    if not standing.has_intervals:
        gap = f"; {standing.gap:.1f} points above "
        ending = ". Not every value has an interval, so how sure this is remains unknown."
        return join(start, leader, " is ahead with ", value_with_interval(best), gap, name(second["label"]), ending)
    if standing.decided:
        gap = f", {standing.gap:.1f} points above "
        apart = 100 * float(best["low"] - table.iloc[1:]["high"].max())
        ending = f"; the intervals lie {apart:.1f} points apart." if apart >= 0.05 else "; the intervals barely part."
        return join(start, leader, " leads with ", value_with_interval(best), gap, name(second["label"]), ending)
    rivals = [name(label) for label in standing.tied]
    return join(
        start,
        leader,
        " is ahead with ",
        value_with_interval(best),
        ", but ",
        listed(rivals),
        " cannot be told apart from it: ",
        "its interval overlaps" if len(rivals) == 1 else "their intervals overlap",
        f" (distance to the next: {standing.gap:.1f} points).",
    )


def crossings(standings: list[c.Standing], stated: c.Standing, name: Name) -> Markup | None:
    """Where other shots have another clear leader than the stated setting."""
    other = [s for s in standings if s.decided and s.best["label"] != stated.best["label"] and s.shots != stated.shots]
    if not other:
        return None
    parts = [join(f"at {plural(int(s.shots), 'shot')} ", name(s.best["label"])) for s in other]
    return join(" Elsewhere on the curve another leads: ", listed(parts), ".")


def tally(standings: list[c.Standing], when: str, name: Name) -> Markup | None:
    """``At 5 shots, A leads on 3 of 4 targets …; undecided: 1.``"""
    rated = [s for s in standings if len(s.table) > 1]
    if not rated:
        return None
    wins = Counter(str(s.best["label"]) for s in rated if s.decided)
    of = f" of {len(rated)} targets" if len(rated) > 1 else " of 1 target"
    parts = [
        join(name(b), f" {'leads ' if not i else ''}on {n}{of if not i else ''}")
        for i, (b, n) in enumerate(wins.most_common())
    ]
    left = len(rated) - sum(wins.values())
    if not parts:
        return join(when, " no backbone is clearly ahead on any", of.replace(" of", " of the"), ".")
    ending = f"; {left} {'is' if left == 1 else 'are'} not decided." if left else "."
    return join(when, " ", listed(parts), ending)


def answer(cells: pd.DataFrame, name: Name) -> Markup:
    """The section: a lede over all targets, then each target in two or three sentences, then how to read it."""
    targets = list(cells["target"].unique())
    ways = c.main_ways(cells)
    few: dict[str, c.Standing] = {}
    curves: dict[str, list[c.Standing]] = {}
    full: dict[str, c.Standing] = {}
    for target in targets:
        here = cells[cells["target"] == target]
        own_ways = ways if ways in set(here.loc[here["shots"] != c.FULL, "ways"]) else c.main_ways(here)
        if own_ways is not None:
            probe = c.probes(here[here["ways"] == own_ways], full=False)[0]
            shots = c.main_shots(here[here["probe"] == probe], own_ways)
            all_shots = sorted(set(here.loc[here["shots"] != c.FULL, "shots"]), key=c.natural_key)
            found = [s for k in all_shots if (s := c.standing(cells, target, own_ways, k, probe))]
            curves[target] = found
            stated = [s for s in found if s.shots == shots]
            if stated:
                few[target] = stated[0]
        for probe in c.probes(here, full=True)[:1]:
            if best := c.standing(cells, target, "all", c.FULL, probe):
                full[target] = best

    shots_seen = {s.shots for s in few.values()}
    when = f"At {plural(int(next(iter(shots_seen))), 'shot')}" if len(shots_seen) == 1 else "With few shots"
    lede = [
        tally(list(few.values()), when, name) if few else None,
        tally(list(full.values()), "With the whole train split", name) if full else None,
    ]
    blocks = []
    for target in targets:
        sentences = []
        if target in few:
            sentences.append(join(sentence(few[target], name), crossings(curves[target], few[target], name)))
        if target in full:
            sentences.append(sentence(full[target], name))
        sentences += _finetuned(cells, target, full.get(target), name)
        metric = c.metric_name(str(cells.loc[(cells["target"] == target) & cells["main"], "metric"].iloc[0]))
        blocks.append(
            tag(
                "div",
                tag("h3", target, " ", tag("small", metric)),
                [tag("p", s) for s in sentences],
                class_="verdict",
            )
        )
    return join(
        tag("p", [[part, " "] for part in lede if part], class_="lede") if any(lede) else None,
        tag("div", blocks, class_="verdicts"),
        _open_questions([*few.values(), *full.values()], name),
        _how_to_read(cells),
    )


def _finetuned(cells: pd.DataFrame, target: str, probe: c.Standing | None, name: Name) -> list[Markup]:
    split = c.main_split(cells[cells["target"] == target])
    tuned = cells[
        (cells["target"] == target) & (cells["probe"] == c.FINETUNE) & cells["main"] & (cells["split"] == split)
    ]
    if tuned.empty:
        return []
    best = tuned.loc[tuned["mean"].idxmax()]
    start = "Fine-tuned, " if tuned["label"].nunique() == 1 else f"Of {tuned['label'].nunique()} fine-tuned, "
    beside: Markup | str = "."
    if probe is not None:
        same = probe.table[probe.table["label"] == best["label"]]
        if len(same):
            change = 100 * float(best["mean"] - same.iloc[0]["mean"])
            beside = f", {abs(change):.1f} points {'above' if change >= 0 else 'below'} its own probe."
    return [join(start, name(best["label"]), " reaches ", value_with_interval(best), beside)]


def _open_questions(standings: list[c.Standing], name: Name) -> Markup | None:
    undecided = [s for s in standings if len(s.table) > 1 and not s.decided]
    if not undecided:
        return None
    items = [
        tag(
            "li",
            tag("b", s.target),
            ", the whole train split: " if s.shots == c.FULL else f", {plural(int(s.shots), 'shot')}: ",
            listed([name(b) for b in [str(s.best["label"]), *s.tied]]) if s.has_intervals else "no intervals",
        )
        for s in undecided
    ]
    return tag(
        "div",
        tag("h3", "Not decided"),
        tag("p", "Where the leader's interval and another's overlap, this report names no winner."),
        tag("ul", items),
        class_="open",
    )


def _how_to_read(cells: pd.DataFrame) -> Markup:
    populations = set(cells["interval"])
    notes = ["Numbers in brackets are 95 % intervals."]
    if "episodes" in populations:
        notes.append(
            "Few-shot intervals are over episodes: what other draws from these same images would give. New test "
            "images would move the values further."
        )
    if "test images" in populations:
        notes.append("Intervals of full probes and fine-tunings are over test images.")
    if len(populations) > 1:
        notes.append("The two kinds are not comparable in width.")
    notes.append("Non-overlap is a cautious criterion: a paired comparison may decide more.")
    splits = {c.main_split(g) for _, g in cells.groupby("target")}
    if splits != {"test"}:
        other = " and ".join(sorted(splits - {"test"}))
        notes.append(f"There are no test rows for some targets: their numbers are of the {other} split.")
    return tag("p", " ".join(notes), class_="note")
