"""The paper's claims as statements with a verdict each, computed from its runs: supported, contradicted or undecided.

Numbering as in docs/scale-model.md. Nothing here knows an answer: a statement names cells and what is said of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.paper import paper_results
from fastxfer.paper.facts import NATURAL, SOURCES, TARGETS
from fastxfer.scale.cells import paper_cells, paper_pairs
from fastxfer.scale.mixed import Contrast
from fastxfer.scale.model import DATA, SIZE, ScaleModel, fit_scale

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
LEVEL = 0.95
MARGIN = 1.0  # percentage points, below which a difference is none
SEEDS, TARGETS_TOO = "seeds", "targets and sources"
COLUMNS = (
    "key",
    "text",
    "verdict",
    "verdict_images",
    "value",
    "low",
    "high",
    "smallest",
    "largest",
    "n",
    "over",
    "test",
    "stated",
)

Where = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Statement:
    """What the paper says of some of its cells against others, or of a fitted model's contrast.

    test:   "all above" (every difference is above 0), "best above" (some cell beats all others), "mixed" (some differences
            are above 0, some below), "none" (the mean is within the margin of 0), "above" (one contrast is above 0), "same
            cells" (the cells that a sentence names are those that the data name)
    stated: the paper's numbers, for the reader; no verdict depends on them
    """

    key: str
    text: str
    test: str
    cells: Where = field(default_factory=dict)
    others: Where = field(default_factory=dict)
    on: tuple[str, ...] = ("target", "source", "shots")
    metric: str = "headline"
    stated: str = ""
    contrast: Callable[[ScaleModel], Contrast] | None = None
    named: Callable[[pd.DataFrame], tuple[set[Any], set[Any]]] | None = None


def _of(domain: str) -> tuple[str, ...]:
    return tuple(name for name, facts in TARGETS.items() if facts.domain == domain)


_LARGE, _SMALL = {"model": ("bit152x4",)}, {"model": ("bit50x1",)}
_NATURAL_SOURCES = tuple(name for name, facts in SOURCES.items() if facts.domain == NATURAL)
_XRAY_SOURCES = tuple(name for name, facts in SOURCES.items() if facts.domain != NATURAL)
_MERGED = ("chexpert_mimic", "chexpert_mimic_nih", "chexpert_mimic_nih_padchest")
_FEW, _FULL = ("1", "5", "10"), ("full",)
_PLAIN = tuple(t for t in _of(NATURAL) if t != "pets")


def _size(targets: Sequence[str], sources: Sequence[str], shots: Sequence[str] = ()) -> dict[str, Any]:
    """The larger network against the smaller."""
    where = {"target": targets, "source": sources} | ({"shots": shots} if shots else {})
    return {"cells": {**_LARGE, **where}, "others": {**_SMALL, **where}}


def _data(targets: Sequence[str], shots: Sequence[str] = (), *, turned: bool = False) -> dict[str, Any]:
    """ImageNet-21k against ImageNet-1k, or turned."""
    where = {"target": targets} | ({"shots": shots} if shots else {})
    both: list[Where] = [{"source": ("imagenet21k",), **where}, {"source": ("imagenet1k",), **where}]
    cells, others = reversed(both) if turned else both
    return {"cells": cells, "others": others, "on": ("target", "model", "shots")}


def _best(cells: Sequence[str], others: Sequence[str], shots: str, model: Sequence[str] = ()) -> dict[str, Any]:
    """Sources on PadChest against others, of any size, or of one for `cells`."""
    where = {"target": ("padchest",), "shots": (shots,)}
    first = {"source": cells, **where} | ({"model": model} if model else {})
    return {"cells": first, "others": {"source": others, **where}, "on": ("target", "shots")}


def _four_seeds(cells: pd.DataFrame) -> tuple[set[Any], set[Any]]:
    named = {("pets", "imagenet1k", "bit50x1", k) for k in ("1", "5", "10", "full")}
    named |= {("padchest", "chexpert_mimic", "bit50x1", "10")}
    return named, _cells_where(cells, cells["n_seeds"] < 5)


def _stopped(cells: pd.DataFrame) -> tuple[set[Any], set[Any]]:
    sources = ("nih", "chexpert_mimic_nih_padchest")
    named = {("tuberculosis_full", source, "bit152x4", "1") for source in sources}
    return named, _cells_where(cells, cells["last_step"] < 500)


def _cells_where(cells: pd.DataFrame, mask: pd.Series) -> set[Any]:
    return set(cells.loc[mask, ["target", "source", "model", "shots"]].itertuples(index=False, name=None))


def _gap(model: ScaleModel, shots: list[str]) -> Contrast:
    return model.gap(SIZE, "X-ray to X-ray", "natural to X-ray", shots)


STATEMENTS = (
    Statement("1a", "natural to natural, full shot: R152x4 is above R50x1 on every target, from either source", "all above",
              **_size(_of(NATURAL), _NATURAL_SOURCES, _FULL), stated="+1.3 … +14.5"),
    Statement("1b", "natural to natural, 1 to 500 shots: R152x4 is above R50x1 everywhere", "all above",
              **_size(_of(NATURAL), _NATURAL_SOURCES, (*_FEW, "100", "500")), stated="up to +19.4"),
    Statement("1c", "CIFAR and Flowers, all shots: ImageNet-21k is above ImageNet-1k, at either size", "all above", **_data(_PLAIN)),
    Statement("1d", "Pets, 1 to 10 shots: ImageNet-1k is above ImageNet-21k", "all above", **_data(("pets",), _FEW, turned=True),
              stated="2–3 (R152x4), 3–7 (R50x1)"),
    Statement("1e", "Pets, full shot: ImageNet-21k is above ImageNet-1k", "all above", **_data(("pets",), _FULL)),
    Statement("2a", "X-ray to COVIDx, full shot: R152x4 is above R50x1 from every source", "all above",
              **_size(("covidx_cxr2",), _XRAY_SOURCES, _FULL), stated="+5 … +10"),
    Statement("2b", "the same by AUC, which knows no threshold", "all above",
              **_size(("covidx_cxr2",), _XRAY_SOURCES, _FULL), metric="mean_auc"),
    Statement("2c", "X-ray to Tuberculosis, full shot: R152x4 is above R50x1 from two sources or more", "all above",
              **_size(("tuberculosis_full",), _MERGED, _FULL), stated="+6 … +9"),
    Statement("2d", "the same by AUC", "all above", **_size(("tuberculosis_full",), _MERGED, _FULL), metric="mean_auc"),
    Statement("2e", "CheXpert alone to Tuberculosis, full shot: size brings nothing", "none",
              **_size(("tuberculosis_full",), ("chexpert",), _FULL), stated="−0.8"),
    Statement("2f", "X-ray to PadChest, full shot: R152x4 is above R50x1 from every source", "all above",
              **_size(("padchest",), _XRAY_SOURCES, _FULL), stated="+4 … +9"),
    Statement("3a", "natural to PadChest, full shot: R152x4 is above R50x1", "all above",
              **_size(("padchest",), _NATURAL_SOURCES, _FULL), stated="+2.0, +2.4"),
    Statement("3b", "natural to Tuberculosis and COVIDx, full shot: size helps here and hurts there", "mixed",
              **_size(("tuberculosis_full", "covidx_cxr2"), _NATURAL_SOURCES, _FULL), stated="−2.6 … +1.8"),
    Statement("3c", "natural to X-ray, 1 to 10 shots: size brings nothing on average", "none",
              **_size(_of("X-ray"), _NATURAL_SOURCES, _FEW)),
    Statement("4a", "PadChest, full shot: ImageNet-21k R152x4 is above every X-ray source at either size", "all above",
              **_best(("imagenet21k",), _XRAY_SOURCES, "full", ("bit152x4",)), stated="84.0 against 83.1"),
    Statement("4b", "PadChest, 5 shots: an X-ray source is above every natural one", "best above",
              **_best(_XRAY_SOURCES, _NATURAL_SOURCES, "5"), stated="+4.2"),
    Statement("4c", "PadChest, 10 shots: an X-ray source is above every natural one", "best above",
              **_best(_XRAY_SOURCES, _NATURAL_SOURCES, "10"), stated="+4.7"),
    Statement("4d", "PadChest, 100 shots: an X-ray source is above every natural one", "best above",
              **_best(_XRAY_SOURCES, _NATURAL_SOURCES, "100"), stated="+3.4"),
    Statement("5a", "two cells have most of their runs stopped at step 400", "same cells", named=_stopped),
    Statement("5b", "four Pets cells and one of PadChest have 4 seeds", "same cells", named=_four_seeds),
    Statement("6a", "natural to natural: size helps, full shot", "above", contrast=lambda m: m.gain(SIZE, "natural to natural", ["full"])),
    Statement("6b", "natural to natural: size helps, 1 to 10 shots", "above", contrast=lambda m: m.gain(SIZE, "natural to natural", list(_FEW))),
    Statement("6c", "natural to natural: source data help, full shot", "above", contrast=lambda m: m.gain(DATA, "natural to natural", ["full"])),
    Statement("6d", "X-ray to X-ray: size helps, full shot", "above", contrast=lambda m: m.gain(SIZE, "X-ray to X-ray", ["full"])),
    Statement("6e", "X-ray to X-ray: source data help, full shot", "above", contrast=lambda m: m.gain(DATA, "X-ray to X-ray", ["full"])),
    Statement("6f", "X-ray to X-ray: size helps, 1 to 10 shots", "above", contrast=lambda m: m.gain(SIZE, "X-ray to X-ray", list(_FEW))),
    Statement("6g", "natural to X-ray: size helps, full shot", "above", contrast=lambda m: m.gain(SIZE, "natural to X-ray", ["full"])),
    Statement("6h", "natural to X-ray: size helps, 1 to 10 shots", "above", contrast=lambda m: m.gain(SIZE, "natural to X-ray", list(_FEW))),
    Statement("6i", "on X-ray targets size helps more from X-ray sources than from natural ones, full shot", "above",
              contrast=lambda m: _gap(m, ["full"])),
    Statement("6j", "the same at 1 to 10 shots", "above", contrast=lambda m: _gap(m, list(_FEW))),
)  # fmt: skip


def verdicts(
    statements: Sequence[Statement] = STATEMENTS,
    *,
    model: ScaleModel | None = None,
    level: float = LEVEL,
    margin: float = MARGIN,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A line a statement, in COLUMNS, and the differences that each looks at, for a figure.

    value, low, high, smallest, largest are percentage points (of a contrast: points, or logits, per tenfold size or data).
    value is the difference that decides: of "all above" the smallest, of "best above" the largest that the best has over its
    strongest rival, of "none" the mean. Intervals hold for all differences of a statement together (Bonferroni).
    verdict_images: the verdict with the noise of the choice of test images added, at its largest; "" where it is unknown (AUC).
    over: what the interval is over, `SEEDS` (these targets and their test images) or `TARGETS_TOO` (others like these).
    The differences: key, target, source, model, shots, those of the other cell, value, low, high, low_images, high_images, n.
    """
    lines, figures = [], []
    for statement in statements:
        if statement.named is not None:
            named, found = statement.named(_headline_cells())
            lines.append(_line(statement, SUPPORTED if named == found else CONTRADICTED, n=len(found)))
        elif statement.contrast is not None:
            model = model or fit_scale(paper_cells())
            value, _, _, low, high = statement.contrast(model)
            lines.append(
                _line(
                    statement, above(low, high), value=value, low=low, high=high, n=len(model.cells), over=TARGETS_TOO
                )
            )
        else:
            pairs = paper_pairs(statement.cells, statement.others, on=statement.on, metric=statement.metric)
            line, figure = _of_pairs(statement, pairs, level, margin)
            lines.append(line)
            figures.append(figure)
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    figure = pd.concat(figures, ignore_index=True) if figures else pd.DataFrame()
    return table, figure


def _of_pairs(
    statement: Statement, pairs: pd.DataFrame, level: float, margin: float
) -> tuple[dict[str, Any], pd.DataFrame]:
    together, new_images = (_together(pairs.assign(v=v), level) for v in (pairs["v"], pairs["v"] + pairs["v_images"]))
    verdict, (value, low, high) = _judge(statement.test, together, level, margin)
    # Cells of one target share their images, so the noise of a mean of several does not average out as its seeds' does.
    known = bool(new_images["low"].notna().all()) and (statement.test != "none" or len(pairs) == 1)
    line = _line(
        statement,
        verdict,
        verdict_images=_judge(statement.test, new_images, level, margin)[0] if known else "",
        value=value,
        low=low,
        high=high,
        smallest=float(together["value"].min()),
        largest=float(together["value"].max()),
        n=len(pairs),
        over=SEEDS,
    )
    figure = together.assign(key=statement.key, low_images=new_images["low"], high_images=new_images["high"])
    return line, figure


def above(low: float, high: float) -> str:
    """Of an interval and the statement that what it is of is above 0."""
    return SUPPORTED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def within(low: float, high: float, margin: float) -> str:
    """Of an interval and the statement that what it is of is within a margin of 0."""
    if -margin < low and high < margin:
        return SUPPORTED
    return CONTRADICTED if low > margin or high < -margin else UNDECIDED


def _judge(test: str, pairs: pd.DataFrame, level: float, margin: float) -> tuple[str, tuple[float, float, float]]:
    """The verdict, and value, low, high of the difference that decides."""
    low, high = pairs["low"], pairs["high"]

    def at(row: int) -> tuple[float, float, float]:
        return tuple(float(pairs[c].iloc[row]) for c in ("value", "low", "high"))  # type: ignore[return-value]

    if test == "none":
        mean = _mean(pairs, level)
        return within(*mean[1:], margin), mean
    if test == "mixed":
        up, down = bool((low > 0).any()), bool((high < 0).any())
        same = bool((low > 0).all() or (high < 0).all())
        verdict = SUPPORTED if up and down else CONTRADICTED if same else UNDECIDED
        return verdict, at(int(np.argmin(high)))
    if test == "all above":
        verdict = SUPPORTED if (low > 0).all() else CONTRADICTED if (high < 0).any() else UNDECIDED
        return verdict, at(int(np.argmin(pairs["value"])))
    first = [c for c in ("source", "model") if c in pairs]
    second = [c for c in ("source_other", "model_other") if c in pairs]
    wins = pairs.assign(yes=low > 0).groupby(first)["yes"].all().any()
    lost = pairs.assign(no=high < 0).groupby(second)["no"].all().any()
    # The cell whose closest rival is farthest below it, and that rival.
    best = pairs.loc[pairs.groupby(first)["value"].idxmin()]
    return SUPPORTED if wins else CONTRADICTED if lost else UNDECIDED, at(pairs.index.get_loc(best["value"].idxmax()))


def _together(pairs: pd.DataFrame, level: float) -> pd.DataFrame:
    """Differences in percentage points with intervals that hold for all of them together."""
    chance = (1 - level) / max(len(pairs), 1)
    half: NDArray[np.float64] = stats.t.ppf(1 - chance / 2, pairs["df"]) * np.sqrt(pairs["v"])
    value = pairs["value"]
    return pairs.assign(value=100 * value, low=100 * (value - half), high=100 * (value + half))


def _mean(pairs: pd.DataFrame, level: float) -> tuple[float, float, float]:
    v = pairs["v"].to_numpy()
    se, df = 100 * np.sqrt(v.sum()) / len(v), v.sum() ** 2 / (v**2 / pairs["df"]).sum()
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    value = float(pairs["value"].mean())
    return value, value - half, value + half


def _headline_cells() -> pd.DataFrame:
    cells = paper_results()
    return cells[cells["metric"] == "acc"]


def _line(statement: Statement, verdict: str, **values: Any) -> dict[str, Any]:
    said = {name: getattr(statement, name) for name in ("key", "text", "test", "stated")}
    return {**said, "verdict": verdict, "verdict_images": "", "over": "", **values}
