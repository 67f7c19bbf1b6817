"""Some episodes with all that another program needs to redo them: `fastxfer fewshot --audit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.episodes import Episodes
from fastxfer.errors import UsageError
from fastxfer.evaluation import decided, patient_codes, pool_of
from fastxfer.probes import LogisticProbe, Probe
from fastxfer.reference import image_weights
from fastxfer.store import EmbeddingStore

Array = NDArray[Any]

# What the file says of itself.
NOTE = (
    "Rows are those of `fastxfer store export`. Apply `transform` to its embeddings, in order and in float64: centre "
    "subtracts the mean of the rows whose split is train (as the steps before have left them); l2 divides each row by its "
    "length; power is sign(x) sqrt(|x|); standardise is of each entry alone: subtract the mean of its support rows and "
    "divide by their standard deviation (of the population) + 1e-5, and set what is constant on the support to 0. Each "
    "step's result was rounded to float32. An entry's objective is (1/m) sum of support_weight * log loss + (l2/2) |W|^2 "
    "over its m support images, the bias free; for two classes with one weight vector. query_labels are NaN or -1 where "
    "nobody knows. With labels per-label an entry is one label, its classes that one, its support_labels 1 for positive."
)


def audit(
    store: EmbeddingStore, backbone: str, episodes: Episodes, probe: Probe, which: Sequence[int],
    *, backend: str = "auto",
) -> dict[str, Array]:  # fmt: skip
    """Everything that another program needs to redo some episodes of a probe that has an objective (the logistic one).

    `which` are positions in `episodes`. One entry an (episode, l2), per-label an (episode, label, l2): `support` (N, m)
    and `query` (N, q) rows of the exported embeddings, `support_labels` (N, m), `support_weight` (N, m) of each loss,
    `query_labels` (N, q), `l2` (N,), `objective` (N,) at the returned solution, `scores` (N, q, ways), `converged`,
    `episode`, `params` (N,), `classes` (N, ways), per-label (N, 1). And `transform`, the names of what is done to the
    embeddings first, and `note`, which says how all this is to be read. `UsageError` for a probe without an objective.
    """
    if not isinstance(probe, LogisticProbe):
        raise UsageError(f"only the logistic probe has an objective to audit, not '{probe.name}'")
    target = store.target(episodes.target)
    pool = pool_of(store, backbone, target, [episodes], backend, probe)
    probe = decided(probe, pool, target, episodes)
    assert isinstance(probe, LogisticProbe)
    groups = patient_codes(target)
    entries: list[dict[str, Any]] = []
    for position in which:
        one = episodes.window(position, position + 1)
        for classes, support, labels, query, query_labels in _problems(one):
            ways = max(2, len(classes))
            for solution in probe.solve(pool, support[None], labels, query[None], ways, groups=groups):
                assert solution.objective is not None
                entries.append(
                    {
                        "episode": one.first,
                        "classes": classes,
                        "support": support,
                        "support_labels": labels,
                        "support_weight": image_weights(labels, probe.class_weight),
                        "query": query,
                        "query_labels": query_labels,
                        "params": solution.params,
                        "l2": np.ravel(solution.l2)[0],
                        "objective": solution.objective[0],
                        "converged": solution.converged[0],
                        "scores": solution.scores[0],
                    }
                )
    found = {name: np.stack([entry[name] for entry in entries]) for name in entries[0]}
    return found | {"transform": np.array(probe.transform, dtype=str), "note": np.array(NOTE)}


def _problems(one: Episodes) -> list[tuple[Array, Array, Array, Array, Array]]:
    """What is solved for an episode: classes, support rows and labels, query rows and labels; per-label, for each label."""
    if not one.spec.per_label:
        return [
            (one.classes[0], one.support[0], one.support_labels.reshape(-1), one.query[0], one.query_labels.reshape(-1))
        ]
    support = one.support[0].reshape(one.ways, -1)
    labels = np.repeat([1, 0], support.shape[1] // 2)
    truth = one.query_labels.reshape(-1, one.ways)  # (q, ways)
    own = one.spec.queries != "all" and one.spec.query_prior == "balanced"
    each = len(truth) // one.ways
    found = []
    for way in range(one.ways):
        asked = slice(way * each, (way + 1) * each) if own else slice(None)
        found.append((one.classes[0, way : way + 1], support[way], labels, one.query[0][asked], truth[asked, way]))
    return found
