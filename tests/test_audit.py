"""An audit's entries are redone by scikit-learn from the exported embeddings, as the file itself says how."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target
from sklearn.linear_model import LogisticRegression

from fastxfer.cli import main


def fastxfer(*words):
    done = CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")
    assert done.exit_code == 0, done.stderr
    return done


def float32(x):
    return x.astype(np.float32).astype(np.float64)


def transformed(x, names, split, support):
    """The note in the file, followed to the letter."""
    for name in names:
        if name == "centre":
            x = x - x[split == "train"].mean(axis=0)
        elif name == "l2":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        elif name == "power":
            x = np.sign(x) * np.sqrt(np.abs(x))
        else:
            assert name == "standardise"
            x = (x - x[support].mean(axis=0)) / (x[support].std(axis=0) + 1e-5)
        x = float32(x)
    return x


def redo(audit, export, problem):
    """Each entry's objective and predictions, by scikit-learn."""
    x, split = export["embeddings"].astype(float), export["split"]
    names = audit["transform"].tolist()
    for i in range(len(audit["l2"])):
        support, query, y, weight = (
            audit[name][i] for name in ("support", "query", "support_labels", "support_weight")
        )
        problem(i, support, query, y)
        features = transformed(x, names, split, support)
        m, l2 = len(y), audit["l2"][i]
        model = LogisticRegression(C=1 / (m * l2), tol=1e-12, max_iter=100_000)
        model.fit(features[support], y, sample_weight=weight)
        loss = -np.log(model.predict_proba(features[support])[np.arange(m), y])
        objective = (weight * loss).mean() + l2 / 2 * (model.coef_**2).sum()
        assert audit["objective"][i] == pytest.approx(objective, rel=3e-6)
        scores = audit["scores"][i]
        margins = np.sort(scores, axis=1)
        clear = margins[:, -1] - margins[:, -2] > 0.003
        assert clear.mean() > 0.6
        assert np.array_equal(scores.argmax(axis=1)[clear], model.predict(features[query])[clear])


@pytest.mark.parametrize(
    "options",
    [
        ("--transform", "centre", "l2", "--l2", "0.5", "0.02"),
        ("--transform", "power", "l2", "centre", "--class-weight", "balanced", "--imbalance", "1"),
        ("--transform", "l2", "standardise", "--l2-by", "cv", "--l2", "1", "0.1", "0.01"),
    ],
)
def test_with_transforms_weights_and_choices(tmp_path, options):
    store = tmp_path / "store"
    blobs_store(store, blobs_target(n_val=5), backbones={"one": 2.0})
    words = ("--store", store, "--shots", 4, "--ways", 3, "--episodes", 20, "--probe", "logistic", *options)
    done = fastxfer("fewshot", *words, "--audit", 3, "--audit-out", tmp_path / "a.npz", "--json")
    entries = json.loads(done.stdout)["audit"]["entries"]
    assert entries == 3 * (2 if "0.5" in options else 1)
    fastxfer("store", "export", "one", "blobs", "--out", tmp_path / "x.npz", "--store", store)
    with np.load(tmp_path / "a.npz") as audit, np.load(tmp_path / "x.npz") as export:
        assert "standard deviation (of the population) + 1e-5" in str(audit["note"])
        assert all("transform=" + "+".join(audit["transform"]) in str(p) for p in audit["params"])
        weighted = "--class-weight" in options
        assert (audit["support_weight"] != 1).any() == weighted

        def problem(i, support, query, y):
            assert np.array_equal(export["labels"][support], audit["classes"][i][y])
            assert np.array_equal(export["labels"][query], audit["classes"][i][audit["query_labels"][i]])

        redo(audit, export, problem)


@pytest.mark.parametrize(
    "options",
    [("--queries", "5"), ("--ways", "all", "--queries", "all"), ("--query-prior", "natural", "--queries", "6")],
)
def test_per_label(tmp_path, options):
    store = tmp_path / "store"
    target = blobs_target(n_classes=4, multi_label=True)
    blobs_store(store, target, backbones={"one": 2.0})
    words = ("--store", store, "--shots", 3, "--episodes", 10, "--probe", "logistic", "--labels", "per-label", *options)
    fastxfer("fewshot", *words, "--transform", "l2", "--l2", 0.3, "--audit", 2, "--audit-out", tmp_path / "a.npz")
    fastxfer("store", "export", "one", "blobs", "--out", tmp_path / "x.npz", "--store", store)
    with np.load(tmp_path / "a.npz") as audit, np.load(tmp_path / "x.npz") as export:
        labels = export["labels"]
        assert audit["classes"].shape == (8, 1)
        assert sorted(audit["classes"][:4, 0].tolist()) == [0, 1, 2, 3]

        def problem(i, support, query, y):
            (label,) = audit["classes"][i]
            assert y.tolist() == [1, 1, 1, 0, 0, 0]
            assert np.array_equal(labels[support, label], y)
            np.testing.assert_array_equal(labels[query, label], audit["query_labels"][i])

        redo(audit, export, problem)
