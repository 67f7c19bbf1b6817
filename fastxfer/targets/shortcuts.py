"""How well what an image is not about predicts its label: file format, size, aspect, brightness, border.

Where two sources make two classes (COVIDx), a file's format or size *is* the label, and a backbone need not look at
lungs. The labels are predicted from such traits alone, by extremely randomised trees (Geurts et al. 2006) in five-fold
cross-validation, patients kept whole, and the mean one-vs-rest AUC is compared with chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.targets.leaks import whose
from fastxfer.targets.looks import TRAITS, Looks
from fastxfer.targets.table import Target

FAR, FAR_ALONE, SIGMAS = 0.75, 0.9, 3.0
"""A warning is raised where the mean AUC exceeds `FAR`, or that of one label `FAR_ALONE`, by `SIGMAS` standard errors."""

_MOST_IMAGES, _MOST_LABELS, _FEWEST, _FOLDS, _TREES, _SEED = 5000, 20, 5, 5, 30, 0


def find_shortcuts(target: Target, looks: Looks) -> dict[str, Any]:
    """Predict the labels of a target from the traits of its images, ready for JSON.

    auc:      {"format" | "bytes" | "size" | "aspect" | "brightness" | "border" | "all": {"auc", "error", "labels"}}:
              mean AUC over labels with its standard error, and each label's; {} where no label can be judged
    flagged:  [{"trait", "label" (None: their mean), "auc", "error"}], what is far above chance: the mean where
              auc − 3 errors > 0.75, else single labels where it is > 0.9
    n_images: decodable images that took part (at most 5,000, drawn at random); of labels the 20 most frequent

    Few images make a large error, so that they are flagged only where the prediction is nearly perfect. The error is
    that of Hanley & McNeil (1982), with patients as units where they are known; a label with fewer than five units on
    either side is not judged.
    """
    rng = np.random.default_rng(_SEED)
    rows = np.flatnonzero(np.isfinite(looks.traits).all(axis=1))
    if len(rows) > _MOST_IMAGES:
        rows = np.sort(rng.choice(rows, _MOST_IMAGES, replace=False))
    patient = whose(target, "patient")
    units = np.arange(target.n_images) if patient is None else patient
    units = np.where(units < 0, units.max(initial=0) + 1 + np.arange(target.n_images), units)[rows]
    truth, names = _judged(target, rows, units)
    if not names:
        return {"target": target.name, "n_images": len(rows), "auc": {}, "flagged": []}
    fold = rng.permutation(units.max() + 1)[units] % _FOLDS
    found = {trait: _predict(x, truth, names, units, fold) for trait, x in _inputs(looks, rows).items()}
    flagged = [
        {"trait": trait, "label": label, "auc": value["auc"], "error": value["error"]}
        for trait, result in found.items()
        for label, value in ([(None, result)] if _is_far(result, FAR) else result["labels"].items())
        if label is None or _is_far(value, FAR_ALONE)
    ]
    return {"target": target.name, "n_images": len(rows), "auc": found, "flagged": flagged}


def _is_far(value: dict[str, Any], limit: float) -> bool:
    return bool(value["auc"] - SIGMAS * value["error"] > limit)


def _judged(target: Target, rows: NDArray[np.int64], units: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[str]]:
    """(n, labels) 1, 0 or NaN, and names of the labels that enough units have and enough have not."""
    if target.multi_label:
        truth = target.labels[rows].astype(np.float32)
    else:
        truth = (target.labels[rows, None] == np.arange(len(target.class_names))).astype(np.float32)
    enough = [min(_n_units(units, truth[:, c], side) for side in (0, 1)) >= _FEWEST for c in range(truth.shape[1])]
    frequent = np.argsort(-np.nansum(truth, axis=0), kind="stable")
    chosen = np.sort([c for c in frequent if enough[c]][:_MOST_LABELS]).astype(int)
    return truth[:, chosen], [target.class_names[c] for c in chosen]


def _n_units(units: NDArray[np.int64], truth: NDArray[np.float32], side: int) -> int:
    return len(np.unique(units[truth == side]))


def _inputs(looks: Looks, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """trait -> (n, numbers) what the trees are given."""
    formats = np.array(looks.format)[rows]
    inputs = {"format": (formats[:, None] == np.unique(formats)).astype(np.float32)}
    start = 0
    for trait, numbers in TRAITS.items():
        inputs[trait] = looks.traits[rows, start : start + len(numbers)]
        start += len(numbers)
    return inputs | {"all": np.concatenate(list(inputs.values()), axis=1)}


def _predict(
    x: NDArray[np.float32],
    truth: NDArray[np.float32],
    names: list[str],
    units: NDArray[np.int64],
    fold: NDArray[np.int64],
) -> dict[str, Any]:
    if (x == x[0]).all():  # nothing to tell images apart by
        scores = np.zeros_like(truth)
    else:
        scores = _cross_validated(x, truth, fold)
    labels = {name: _auc(scores[:, c], truth[:, c], units) for c, name in enumerate(names)}
    errors = np.array([value["error"] for value in labels.values()])
    return {
        "auc": float(np.mean([value["auc"] for value in labels.values()])),
        # Labels share images, so their errors are taken as one error, not as independent ones.
        "error": float(errors.mean()),
        "labels": labels,
    }


def _cross_validated(x: NDArray[np.float32], truth: NDArray[np.float32], fold: NDArray[np.int64]) -> NDArray[Any]:
    from sklearn.ensemble import ExtraTreesRegressor

    scores = np.zeros(truth.shape, np.float64)
    for f in np.unique(fold):
        train = fold != f
        # One forest for all labels; what is unknown counts as negative for fitting, and not at all for the AUC.
        trees = ExtraTreesRegressor(_TREES, min_samples_leaf=5, random_state=_SEED)
        trees.fit(x[train], np.nan_to_num(truth[train]))
        scores[~train] = trees.predict(x[~train]).reshape(-1, truth.shape[1])
    return scores


def _auc(scores: NDArray[Any], truth: NDArray[np.float32], units: NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(truth)
    auc = float(roc_auc_score(truth[known], scores[known]))
    n, m = _n_units(units, truth, 1), _n_units(units, truth, 0)
    # Kept away from 1, where the formula knows no error however few there are.
    a = min(max(auc, 1 - auc), 1 - 1 / (2 * min(n, m)))
    variance = a * (1 - a) + (n - 1) * (a / (2 - a) - a * a) + (m - 1) * (2 * a * a / (1 + a) - a * a)
    return {"auc": auc, "error": float(np.sqrt(variance / (n * m)))}
