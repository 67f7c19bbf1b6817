"""Rows of ours as runs: which size and source a backbone has, and how near its source is to a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastxfer.errors import DataError, nearest
from fastxfer.paper.facts import SOURCES, TARGETS, paper_source, paper_target
from fastxfer.proximity.distances import distances
from fastxfer.registered import find_registered, registered_names
from fastxfer.scale.cells import FACTS, RUNS

ABOUT = ("parameters", "images", "domain")
NEAR, FAR = "near", "far"


def about_backbones(rows: pd.DataFrame, data_root: Path, file: Path | None = None) -> pd.DataFrame:
    """A line a backbone of the rows: backbone, parameters, and of its source images and domain; NaN and "" for what nobody says.

    A file (CSV with a column backbone and any of ABOUT) has the last word; else parameters are those of a registered
    backbone (`fastxfer backbones add`), images and domain those that the paper's sources of this name have.
    """
    lines = []
    known = set(registered_names(data_root))
    for name, source in rows[["backbone", "source"]].astype(str).drop_duplicates("backbone").itertuples(index=False):
        entry = find_registered(name, data_root) if name in known else None
        theirs = SOURCES.get(paper_source(source) or "")
        lines.append(
            {
                "backbone": name,
                "parameters": float(entry.facts["parameters"]) if entry else np.nan,
                "images": theirs.images if theirs else np.nan,
                "domain": theirs.domain if theirs else "",
            }
        )
    about = pd.DataFrame(lines, columns=["backbone", *ABOUT])
    if file is None:
        return about
    try:
        said = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise DataError(f"--backbones {file} is no CSV file ({error})") from None
    unknown = [c for c in said if c not in ("backbone", *ABOUT)]
    if "backbone" not in said or unknown:
        raise DataError(
            f"--backbones {file}: expected the columns backbone and any of {', '.join(ABOUT)}, found {', '.join(said)}"
        )
    for name in said["backbone"]:
        if name not in set(about["backbone"]):
            raise DataError(f"--backbones {file}: no row is of '{name}'.{nearest(str(name), about['backbone'])}")
    for column in ("parameters", "images"):
        if column in said and not pd.to_numeric(said[column], errors="coerce").gt(0).all():
            raise DataError(f"--backbones {file}: {column} must be numbers above 0")
    about = about.set_index("backbone")
    about.update(said.set_index("backbone"))
    return about.reset_index()


def relations_by_domain(
    rows: pd.DataFrame, about: pd.DataFrame, domains: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """(backbone, target) -> "natural to X-ray": domains of targets as given, or those of the paper's targets of this name.

    `DataError` for a backbone or target whose domain nobody says.
    """
    of_backbone = dict(zip(about["backbone"], about["domain"], strict=True))
    found = {}
    for backbone, target in rows[["backbone", "target"]].astype(str).drop_duplicates().itertuples(index=False):
        theirs = TARGETS.get(paper_target(target) or "")
        domain = domains.get(target) or (theirs.domain if theirs else "")
        if not domain:
            raise DataError(f"the domain of target '{target}' is not known: --domain {target}=…, or --proximity")
        if not of_backbone[backbone]:
            raise DataError(
                f"the domain of the source of '{backbone}' is not known: name it in --backbones, or --proximity"
            )
        found[backbone, target] = f"{of_backbone[backbone]} to {domain}"
    return found


def relations_by_proximity(rows: pd.DataFrame, table: pd.DataFrame, measure: str) -> dict[tuple[str, str], str]:
    """(backbone, target) -> "near" or "far": below or above the median of a measure of `fastxfer proximity`, of several
    references their mean rank.

    `UsageError` for an unknown measure, `DataError` for a pair of source and target that was not measured.
    """
    distance = distances(table, measure)
    middle = distance.median()
    found = {}
    for backbone, source, target in (
        rows[["backbone", "source", "target"]].astype(str).drop_duplicates().itertuples(index=False)
    ):
        if (source, target) not in distance.index:
            raise DataError(
                f"the proximities do not say how near '{source}' is to '{target}': fastxfer proximity {source} {target}"
            )
        found[backbone, target] = NEAR if distance[source, target] <= middle else FAR
    return found


def runs_of(
    rows: pd.DataFrame, about: pd.DataFrame, relations: Mapping[tuple[str, str], str], *, probe: str, metric: str
) -> pd.DataFrame:
    """Our rows on test as runs (RUNS and FACTS): those of a probe, of all ways, in a metric.

    Of several settings of a backbone at a target and number of shots the first counts. `DataError` where nothing is left,
    or a size is not known.
    """
    named: Sequence[str] = sorted(set(rows["probe"].astype(str)))
    some = rows[(rows["split"] == "test") & (rows["probe"] == probe) & (rows["metric"] == metric)]
    some = some[some["value"].notna() & ~some["params"].astype(str).str.contains("stopped=", regex=False)]
    if some.empty:
        raise DataError(
            f"the results hold no test rows of probe '{probe}' in {metric}; their probes are {', '.join(named) or 'none'}."
            f"{nearest(probe, named)}"
        )
    text = ("source", "backbone", "target", "ways", "shots", "params")
    some = some.astype(dict.fromkeys(text, str)).merge(about[["backbone", "parameters", "images"]], on="backbone")
    unknown = sorted(set(some.loc[some["parameters"].isna() | some["images"].isna(), "backbone"]))
    if unknown:
        raise DataError(
            f"parameters or source images of {', '.join(unknown)} are not known: --backbones FILE.csv with the columns "
            "backbone,parameters,images"
        )
    first = some.groupby(["target", "shots", "backbone"])["params"].transform("min")
    ways = some.groupby(["target", "shots"])["ways"].transform("max")  # "all" where there is it
    some = some[(some["params"] == first) & (some["ways"] == ways)]
    return some.assign(
        model=some["backbone"],
        unit=some["seed"].astype(str) + "/" + some["episode"].astype(str),
        relation=[relations[pair] for pair in zip(some["backbone"], some["target"], strict=True)],
    )[[*RUNS, *FACTS]].reset_index(drop=True)
