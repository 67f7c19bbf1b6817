"""Probes on stored embeddings, as rows: few-shot episodes. Full train splits are in `full_splits`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.episodes import Episodes, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.holdings import backbones_of, source_of
from fastxfer.influences import Influences, sampling_of
from fastxfer.metrics import METRICS, PER_CLASS, class_metrics, measure
from fastxfer.probes import Probe, check_metrics
from fastxfer.progress import Advance, progress, say
from fastxfer.protocol import Protocol, params_of
from fastxfer.results import CELL, Cell, ResultStore, complete
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target
from fastxfer.transforms import per_image
from fastxfer.until import Until

Array = NDArray[Any]

# Scores of a window of episodes are held in memory at once; this bounds them (float32: 64 MiB).
WINDOW_SCORES = 16 * 2**20
# Of large episodes fewer make a window, after which progress is told: multiply-adds of some ten seconds of a core.
WINDOW_WORK = 2e11
WINDOWS_KEPT = 8  # after so many windows their rows are written
# With l2_by "val", one l2 a cell is chosen by this many episodes: a number of their own, so that asking for more episodes
# changes no row that is there.
VAL_EPISODES = 100


def evaluate(
    store: EmbeddingStore,
    episodes: Episodes,
    probes: Sequence[Probe],
    *,
    backbones: Sequence[str] | None = None,
    metrics: Sequence[str] = ("accuracy",),
    backend: str = "auto",
) -> pd.DataFrame:
    """Run probes on episodes with the embeddings of each backbone that the store holds for the episodes' target.

    One row a (backbone, probe, setting, metric, episode), in the columns of `fastxfer.results.SCHEMA`. Every backbone
    sees the same episodes, so rows can be compared pairwise.
    """
    check_metrics(probes, metrics)
    target = store.target(episodes.target)
    frames = []
    _check_spec(probes, episodes)
    for backbone in backbones_of(store, [target.name], backbones)[target.name]:
        source = source_of(store, backbone, target.name)
        for probe in sorted(probes, key=_features_of):
            pool = pool_of(store, backbone, target, [episodes], backend, probe)
            chosen = decided(probe, pool, target, episodes)
            frames += list(_episode_rows(pool, source, backbone, chosen, target, episodes, metrics, Influences(target)))
    return pd.concat(frames, ignore_index=True)


@dataclass
class RunSummary:
    """What a run did: new rows, episodes solved, seconds of solving, the targets left out, with reasons, and the cells
    that it asked for, whether their rows are new or were there.

    eased: targets too small for the study, with the reason and the options by which they took part all the same.
    unconverged: rows of solutions short of the tolerance. undefined: rows whose value is NaN. until: what the run went by
    if it was to stop by itself, with what it knows of the cells.
    """

    rows: int = 0
    episodes: int = 0
    seconds: float = 0.0
    skipped: list[dict[str, str]] = field(default_factory=list)
    eased: list[dict[str, str]] = field(default_factory=list)
    unconverged: int = 0
    undefined: int = 0
    cells: set[Cell] = field(default_factory=set)
    until: Until | None = None


def run_protocol(
    store: EmbeddingStore,
    results: ResultStore,
    protocol: Protocol,
    probes: Sequence[Probe],
    *,
    backbones: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    backend: str = "auto",
    until: float | None = None,
    advance: Advance | None = None,
) -> RunSummary:
    """Run a few-shot study on all the store holds (or the named backbones and targets) and append its rows.

    Episodes that the results have already are not solved again; each finished (backbone, target, shots, probe) is on
    disk before the next begins. A target that is too small for the protocol is an error if it was named. Else it takes
    part with `fewer_queries` (unless a number of queries was asked for) or `drop_scarce`, which its rows tell, or, if
    that does not help, is left out; the summary lists both.

    until: a half-width; a (backbone, target, shots, probe) goes on only until the means of all its cells are known so well,
           by a confidence sequence, which is looked at now and then; its rows are those of a run with as many episodes
    advance: is told of every episode, in place of a bar of its own.
    """
    summary = RunSummary()
    plan = backbones_of(store, targets, backbones)
    chosen: list[tuple[Target, Episodes]] = []
    kinds: set[type[DataError | UsageError]] = set()
    for name in plan:
        target = store.target(name)
        try:
            drawn = draw(target, protocol, probes)
        except (DataError, UsageError) as error:
            if targets:
                raise
            options, drawn = _ease(target, protocol, probes)
            reason = {"target": name, "reason": str(error)}
            if drawn:
                say(f"{name} takes part with {options}, since {error}")
                summary.eased.append(reason | {"options": options})
            else:
                say(f"left out: {error}")
                summary.skipped.append(reason)
                kinds.add(type(error))
        chosen += [(target, episodes) for episodes in drawn]
    if not chosen:
        # More ways than any target has classes is a slip of the command line, whatever the data.
        kind = UsageError if kinds == {UsageError} else DataError
        raise kind("none of the store's targets can serve: " + "; ".join(s["reason"] for s in summary.skipped))

    work: list[tuple[str, str, str, Probe, Episodes, tuple[str, ...], dict[Cell, int]]] = []
    for target, episodes in chosen:
        metrics = protocol.metrics_of(episodes.spec)
        check_metrics(probes, metrics)
        for backbone in plan[target.name]:
            source = source_of(store, backbone, target.name)
            for probe in probes:
                cells = cells_of(source, backbone, probe, target, episodes, metrics, protocol.per_class)
                summary.cells.update(cells)
                done = {cell: results.episodes_done(cell, episodes.hash) for cell in cells}
                if min(done.values()) < episodes.n_episodes:
                    rest = episodes.window(min(done.values()), episodes.n_episodes)
                    work.append((backbone, target.name, source, probe, rest, metrics, done))

    if until is not None:
        metrics_asked = sorted({str(cell[-1]) for cell in summary.cells})
        summary.until = Until(until, metrics_asked, results.read([*CELL, "episode", "value"], summary.cells))

    # Backbone by backbone, target by target, features by features, so that one pool serves all its shots and probes. How it makes its inner
    # products depends on the whole study, not on what is left of it, so that a resumed run finds the same bits.
    work.sort(key=lambda item: (*item[:2], _features_of(item[3])))
    studied = {t.name: (t, [e for other, e in chosen if other is t]) for t, _ in chosen}
    made_for: tuple[str, str, tuple[str, ...]] | None = None
    pool: ops.Pool | None = None
    total = sum(item[4].n_episodes for item in work)
    with nullcontext(advance) if advance else progress("solving episodes", total, "episodes") as told:
        for backbone, name, source, probe, episodes, metrics, done in work:
            started = time.perf_counter()
            target, all_episodes = studied[name]
            if summary.until is not None and summary.until.needed(done, protocol.episodes) is not None:
                told(episodes.n_episodes)
                continue
            if pool is None or made_for != (backbone, name, _features_of(probe)):
                pool = None  # the old one goes before the new one comes
                made_for = (backbone, name, _features_of(probe))
                pool = pool_of(store, backbone, target, all_episodes, backend, probe)
            probe, solved = decided(probe, pool, target, episodes), 0
            for window in (
                _pieces(episodes, WINDOWS_KEPT * _window(pool, probe, episodes))
                if summary.until is None
                else summary.until.windows(episodes, done)
            ):
                influences = Influences(target, done)
                parts = _episode_rows(
                    pool, source, backbone, probe, target, window, metrics, influences, told, protocol.per_class
                )
                rows = _not_there(pd.concat(list(parts), ignore_index=True), done)
                summary.seconds += time.perf_counter() - started
                # New ones only: another process may do the same work.
                summary.rows += results.append_new(rows, influences.sums())
                solved += window.n_episodes
                summary.unconverged += int((~rows["converged"]).sum())
                summary.undefined += int(rows["value"].isna().sum())
                if summary.until is not None:
                    summary.until.add(rows)
                started = time.perf_counter()
            summary.episodes += solved
            told(episodes.n_episodes - solved)
    return summary


def draw(target: Target, protocol: Protocol, probes: Sequence[Probe]) -> list[Episodes]:
    """The protocol's episodes of a target, one list a number of shots; an error if target or probes can not serve."""
    drawn = [
        sample_episodes(target, protocol.spec(target, shots), protocol.seed, protocol.episodes)
        for shots in protocol.shots
    ]
    for episodes in drawn:
        _check_spec(probes, episodes)
        if any(probe.chooses_on_val for probe in probes):
            _val_episodes(target, episodes)
    return drawn


def _ease(target: Target, protocol: Protocol, probes: Sequence[Probe]) -> tuple[str, list[Episodes]]:
    """By which options a target that is too small can take part, and its episodes then; none where nothing helps."""
    fewer: dict[str, Any] = {"fewer_queries": True} if protocol.queries is None else {}
    for more in (fewer, fewer | {"drop_scarce": True}):
        eased = replace(protocol, **more)
        if eased != protocol:
            with suppress(DataError, UsageError):
                return " ".join(f"--{name.replace('_', '-')}" for name in more), draw(target, eased, probes)
    return "", []


def _features_of(probe: Probe) -> tuple[str, ...]:
    """What must be alike for two probes to share a pool."""
    return per_image(probe.transform)


def _check_spec(probes: Sequence[Probe], episodes: Episodes) -> None:
    spec = episodes.spec
    for probe in probes:
        probe.check_spec(spec.shots, spec.per_label, spec.query_split)


def patient_codes(target: Target) -> Array | None:
    """(n_images,) whose an image is, in numbers; None where nobody knows."""
    return None if target.patient is None else np.unique(target.patient, return_inverse=True)[1]


def decided(probe: Probe, pool: ops.Pool, target: Target, episodes: Episodes) -> Probe:
    """The probe with its l2 chosen, where that is the validation split's matter: by the same spec with queries from there."""
    if not probe.chooses_on_val:
        return probe
    val = _val_episodes(target, episodes)
    return probe.choose_on(pool, val.support, val.support_labels, val.query, val.query_labels, val.ways)


def _val_episodes(target: Target, episodes: Episodes) -> Episodes:
    """Episodes of the same kind with queries from the validation split; `DataError` where it can not serve."""
    try:
        return sample_episodes(target, replace(episodes.spec, query_split="val"), episodes.seed, VAL_EPISODES)
    except DataError as error:
        raise DataError(f"l2 can not be chosen on validation: {error}") from error


def pool_of(
    store: EmbeddingStore, backbone: str, target: Target, studied: Sequence[Episodes], backend: str, probe: Probe
) -> ops.Pool:
    """The pool for some lists of episodes of a target: one Gram matrix if they pay for it, taken together."""
    support = target.rows("train")
    x = probe.features(store.embeddings(backbone, target.name), support)
    products = sum(
        e.support.size / e.n_fitted * ops.products_of(e.n_fitted, e.n_queries, probe.n_weights(e.n_fitted, e.ways))
        for e in studied
    )
    return ops.Pool(x, support=support, backend=backend, gram=ops.gram_pays(len(support), len(x), products))


def _key(
    source: str, backbone: str, probe: Probe, params: str, target: Target, episodes: Episodes, metric: str
) -> dict[str, Any]:
    spec = episodes.spec
    return {
        "source": source,
        "backbone": backbone,
        "target": target.name,
        "ways": str(spec.ways),
        "shots": str(spec.shots),
        "seed": episodes.seed,
        "probe": probe.name,
        "params": params_of(params, spec, target.dropped),
        "split": spec.query_split,
        "metric": metric,
    }


def cells_of(
    source: str,
    backbone: str,
    probe: Probe,
    target: Target,
    episodes: Episodes,
    metrics: Sequence[str],
    per_class: bool,
) -> list[Cell]:
    """The cells that a probe fills on some episodes of a target, of whatever window."""
    names = [*metrics]
    if per_class:
        classes = [target.class_names[c] for c in episodes.classes[0]]
        names += [f"{m}:{c}" for m in class_metrics(metrics, episodes.spec.per_label) for c in classes]
    return [
        _cell(_key(source, backbone, probe, params, target, episodes, metric))
        for params in probe.settings(episodes.n_fitted)
        for metric in names
    ]


def _cell(key: dict[str, Any]) -> Cell:
    return tuple(key[name] for name in CELL)


def _not_there(rows: pd.DataFrame, done: dict[Cell, int]) -> pd.DataFrame:
    """Rows but those of cells that hold the episode already: a run may ask for one metric more than the last."""
    keep = np.ones(len(rows), bool)
    for cell, positions in rows.groupby(list(CELL), sort=False, observed=True).indices.items():
        keep[positions] = rows["episode"].to_numpy()[positions] >= done[tuple(cell)]
    return rows[keep]


def _window(pool: ops.Pool, probe: Probe, episodes: Episodes) -> int:
    """Episodes that are scored at once, by memory and by work. Not by time, on which no bit of a sum may depend."""
    m, settings = episodes.n_fitted, len(probe.settings(episodes.n_fitted))
    work = m * m * (pool.dim + 10 * episodes.ways * settings)
    return max(1, min(WINDOW_SCORES // (settings * episodes.n_queries * episodes.ways), int(WINDOW_WORK / work)))


def _pieces(episodes: Episodes, size: int) -> Iterator[Episodes]:
    for start in range(0, episodes.n_episodes, size):
        yield episodes.window(start, min(start + size, episodes.n_episodes))


def _episode_rows(
    pool: ops.Pool,
    source: str,
    backbone: str,
    probe: Probe,
    target: Target,
    episodes: Episodes,
    metrics: Sequence[str],
    influences: Influences,
    advance: Callable[[int], None] = lambda n: None,
    per_class: bool = False,
) -> Iterator[pd.DataFrame]:
    """`probe` is `decided`."""
    groups = patient_codes(target)
    sampling = sampling_of(episodes, target)
    for window in _pieces(episodes, _window(pool, probe, episodes)):
        numbers = np.arange(window.first, window.first + window.n_episodes, dtype=np.int32)
        each = class_metrics(metrics, window.spec.per_label) if per_class else ()
        for answer in probe.answer(pool, window, groups):
            measured = []
            for metric in metrics:
                scores = answer.probabilities if METRICS[metric].needs_probabilities else answer.scores
                assert scores is not None  # check_metrics has seen to it
                values, undefined = measure(metric, scores, window.query_labels)
                measured.append((metric, values, undefined))
                cell = _cell(_key(source, backbone, probe, answer.params, target, episodes, metric))
                influences.add(cell, scores, window.query_labels, values, window.query, numbers, sampling)
            for metric in each:
                values = PER_CLASS[metric](answer.scores, window.query_labels)
                classes = [target.class_names[c] for c in window.classes[0]]
                measured += [(f"{metric}:{c}", v, np.isnan(v)) for c, v in zip(classes, values.T, strict=True)]
            for metric, values, undefined in measured:
                yield complete(
                    pd.DataFrame(
                        {
                            **_key(source, backbone, probe, answer.params, target, episodes, metric),
                            "episode": numbers,
                            "value": values,
                            "n_queries": np.int32(window.n_queries),
                            "undefined": undefined,
                            "converged": answer.converged,
                            "l2": answer.l2,
                            "l2_at_edge": answer.at_edge,
                            "episodes_hash": episodes.hash,
                        }
                    )
                )
        advance(window.n_episodes)
