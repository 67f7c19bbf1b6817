"""Believable rows, a plan, a store: what the report is made of in its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.report import read_curves, read_tables, write_report
from fastxfer.results import complete
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target

BACKBONES = {"effnet-lite0": "ImageNet-1k", "bit-small": "digits 0-4", "bit-untrained": "nothing"}
TARGETS = {"digits-5-9": 5, "textures": 3, "lfw": 2, "dtd10": 10}
# What each backbone reaches with all labels, per target.
CEILING = {
    "digits-5-9": {"effnet-lite0": 0.962, "bit-small": 0.984, "bit-untrained": 0.881},
    "textures": {"effnet-lite0": 0.958, "bit-small": 0.902, "bit-untrained": 0.744},
    "lfw": {"effnet-lite0": 0.935, "bit-small": 0.920, "bit-untrained": 0.781},
    "dtd10": {"effnet-lite0": 0.850, "bit-small": 0.342, "bit-untrained": 0.214},
}
PROBE_BONUS = {"logistic": 0.0, "ridge": -0.004, "prototype": -0.012, "knn": -0.03}


def make_rows(episodes: int = 200, rename: dict[str, str] | None = None) -> pd.DataFrame:
    """Believable rows: few-shot episodes, full probes, fine-tunings. `rename` replaces names by others."""
    rng = np.random.default_rng(7)
    frames = []
    for target, classes in TARGETS.items():
        n_test = {"lfw": 60, "textures": 300}.get(target, 400)
        ways = min(5, classes)
        for backbone, source in BACKBONES.items():
            top, chance = CEILING[target][backbone], 1 / ways
            common = {"source": source, "backbone": backbone, "target": target, "seed": 0}
            near = 0.25 if (backbone, target) == ("bit-small", "digits-5-9") else 0.0
            for shots in (1, 2, 5, 10):
                mean = chance + (min(top + 0.02, 0.99) - chance) * (1 - 0.55 * np.exp(-near) * shots**-0.75)
                if target == "lfw" and backbone != "bit-untrained":
                    mean = 0.90 - 0.32 * shots**-0.8
                draws = mean + 0.06 * shots**-0.3 * rng.standard_normal(episodes)
                for probe, bonus in PROBE_BONUS.items():
                    values = np.clip(draws + bonus + 0.004 * rng.standard_normal(episodes), 0, 1)
                    l2 = 1 / (ways * shots)
                    params = {"knn": "k=20", "prototype": ""}.get(probe, f"l2={l2:g}")
                    fits = (probe, backbone) != ("logistic", "bit-untrained")
                    frames.append(
                        pd.DataFrame(
                            {
                                **common, "ways": str(ways), "shots": str(shots), "episode": np.arange(episodes),
                                "probe": probe, "params": params, "split": "test", "metric": "accuracy",
                                "value": np.round(values * 15 * ways) / (15 * ways), "n_queries": 15 * ways,
                                "converged": (np.arange(episodes) % 199 != 7) | fits,
                                "episodes_hash": f"{target}-{ways}-{shots}-0123456789abcdef",
                            }
                        )
                    )  # fmt: skip
            tuned = (backbone, target) in {("effnet-lite0", "dtd10"), ("bit-small", "digits-5-9")}
            full = [("logistic", "l2=0.001;chosen=val", 0.0), ("knn", "k=10;chosen=val", -0.04)]
            if tuned:
                full.append(
                    (
                        "finetune",
                        "preset=bit;steps=60;batch=64;crop=128",
                        0.021 if target == "dtd10" else -0.006,
                    )
                )
            for probe, params, bonus in full:
                for split, n in (("val", n_test // 2), ("test", n_test)):
                    for metric, lift in (("accuracy", 0.0), ("balanced_accuracy", -0.004), ("auc", 0.01)):
                        value = float(np.clip(top + bonus + lift + rng.normal(0, 0.006), 0, 1))
                        half = 1.96 * np.sqrt(max(value * (1 - value), 1e-4) / n)
                        row = {
                            **common, "ways": "all", "shots": "full", "episode": -1, "probe": probe, "params": params,
                            "split": split, "metric": metric, "value": value, "low": max(value - half, 0),
                            "high": min(value + half, 1), "n_queries": n,
                        }  # fmt: skip
                        frames.append(pd.DataFrame([row]))
            if tuned:
                seconds = {
                    **row,
                    "split": "train",
                    "metric": "seconds",
                    "value": 312.5 if target == "dtd10" else 148.0,
                }
                frames.append(pd.DataFrame([{**seconds, "low": np.nan, "high": np.nan, "n_queries": 0}]))
    rows = complete(pd.concat([complete(f) for f in frames], ignore_index=True))
    for column in ("backbone", "target", "source"):
        rows[column] = rows[column].replace(rename or {})
    return rows


def make_plan(rename: dict[str, str] | None = None) -> dict[str, Any]:
    def entry(backbone: str, target: str, value: float, reason: str) -> dict[str, Any]:
        expected = {"metric": "balanced_accuracy", "value": value, "low": value - 0.03, "high": value + 0.03}
        names = rename or {}
        return {
            "backbone": names.get(backbone, backbone), "target": names.get(target, target), "shots": "full",
            "source": BACKBONES[backbone], "reason": reason, "expected": expected,
            "checkpoint": "/home/jane/secret-folder/weights.pt", "architecture": "resnetv2_50x1_bit", "arch_args": {},
        }  # fmt: skip

    return {
        "version": 1,
        "store": "/home/jane/secret-folder/store",
        "budget": {"runs": 2},
        "policy": "top-1 per target",
        "entries": [
            entry("effnet-lite0", "dtd10", 0.843, "best of 3 backbones on validation"),
            entry("bit-small", "digits-5-9", 0.981, "best of 3 backbones on validation"),
        ],
        "rejected": [
            entry("bit-untrained", "dtd10", 0.21, "63.3 points behind the best, beyond its own interval"),
            entry("effnet-lite0", "digits-5-9", 0.96, "2.1 points behind the best; left out: the budget of 2 is spent"),
        ],
    }  # fmt: skip


# A learning curve as `finetune --curves` writes it.
CURVE = "step,lr,loss,split,accuracy,auc\n0,0,2.3,,,\n1,0.1,2.1,val,0.25,0.6\n2,0.1,1.9,,,\n3,0.01,1.5,val,0.5,0.75\n"
RUNS = [
    {
        "date": "2026-01-05T10:00:00+00:00", "stage": "fewshot", "seconds": 41.5, "versions": {"numpy": "2.4"},
        "command": "fastxfer fewshot --episodes 1000 --store /home/jane/secret-folder/store",
    },
]  # fmt: skip


def make_store(path: Path, class_name: str = "class") -> Path:
    """A real store with small embeddings of the same backbones and targets."""
    store = EmbeddingStore.open(path, mode="a")
    rng = np.random.default_rng(0)
    for name, classes in TARGETS.items():
        n = 12 * classes
        labels = np.arange(n) % classes
        target = Target(
            name=name,
            image_id=np.array([f"patient-4711/{i:05d}.png" for i in range(n)]),
            class_names=tuple(f"{class_name} {c}" for c in range(classes)),
            labels=labels.astype(np.int64),
            split=np.array(["train", "val", "test"])[(np.arange(n) // classes) % 3],
            patient=np.array([f"JaneDoe{i // 2}" for i in range(n)]) if name == "lfw" else None,
            notes=(
                "no split found: made one, seed 0, patients apart (JaneDoe3 has 2 images, /home/jane/lfw/labels.csv)",
            )
            if name == "lfw"
            else (),
        )
        store.add_target(target)
        for i, (backbone, source) in enumerate(BACKBONES.items()):
            attributes = {
                "identity": f"{i}dentity{i:056d}", "weights_sha256": f"{i}abc{i:060d}", "source": source,
                "architecture": "tf_efficientnet_lite0" if i == 0 else "resnetv2_50x1_bit", "pooling": "mean",
                "checkpoint": "/home/jane/secret-folder/weights.pt", "code_version": "0.1.0",
            }  # fmt: skip
            with store.writer(backbone, name, dim=4, dtype="float32", attributes=attributes) as writer:
                for block in list(writer.missing):
                    writer.write(block, rng.standard_normal((len(block), 4)).astype(np.float32), seconds=2.5 + i)
    return path


def few_rows(values: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Rows of one 5-shot cell a backbone, from the values of its episodes."""
    frames = [
        pd.DataFrame({"backbone": backbone, "episode": np.arange(len(v)), "value": v}) for backbone, v in values.items()
    ]
    common = {
        "source": "s", "target": "t", "ways": "5", "shots": "5", "seed": 0, "probe": "logistic", "params": "l2=1",
        "split": "test", "metric": "accuracy", "episodes_hash": "h",
    }  # fmt: skip
    return complete(pd.concat(frames).assign(**(common | columns)))


def apart(rows: pd.DataFrame) -> pd.DataFrame:
    """The same of backbones that saw other episodes each, so that there are no pairs."""
    return rows.assign(episodes_hash=rows["backbone"])


def text_of(page: Path) -> str:
    """What a reader sees of the answer and target by target, without tags."""
    html = page.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(?:answer|targets)".*?</section>', html, re.DOTALL)
    assert len(sections) == 2
    return re.sub(r"<[^>]+>", "", "".join(sections)).replace("\u00a0", " ")


def make_gains(relation: str = "near") -> pd.DataFrame:
    """As `fastxfer scale --figure` writes them."""
    shots = ["1", "5", "full", "few, all"]
    lines = [
        {"kind": kind, "relation": relation, "shots": s, "value": value, "low": value - 1, "high": value + 1}
        for kind in ("size", "data")
        for s, value in zip(shots, (3.0, 2.0, 0.5, 2.5), strict=True)
    ]
    return pd.DataFrame(lines).assign(se=0.5, df=5, n_targets=4, n_cells=20)


def make_claims(text: str = "Larger networks transfer better") -> pd.DataFrame:
    """As `fastxfer scale --paper --out` writes them."""
    claim = {"key": "1", "text": text, "verdict": "supported", "value": 5.1, "low": 3.0, "high": 7.2, "over": "seeds"}
    return pd.DataFrame([claim, {**claim, "key": "2", "verdict": "undecided", "low": np.nan, "high": np.nan}])


# Names that would run, load or hide something if they were not text.
NASTY = "<script>window.pwned=1</script>%{x}&amp;\"'"
RENAME = {
    "effnet-lite0": NASTY,
    "bit-small": "<img src=x onerror=window.pwned=1>",
    "dtd10": "</script><script>window.pwned=1</script>",
    "lfw": "<a href='javascript:window.pwned=1'>lfw</a>",
    "ImageNet-1k": "<style>*{display:none}</style>",
}


def nasty_report(folder: Path) -> Path:
    """A report in which all that users name or write tries to be HTML."""
    store = make_store(folder / "store", class_name=NASTY)
    plan = make_plan(RENAME)
    plan["entries"][0]["reason"] = plan["rejected"][0]["reason"] = plan["policy"] = NASTY
    plan["chosen"] = {NASTY: {"backbone": NASTY, "finetuned": 0.5}}
    rows = make_rows(20, RENAME)
    pairs = (
        rows[["source", "target"]]
        .drop_duplicates()
        .assign(reference=NASTY, measure=NASTY, value=0.5, low=0.4, high=0.6)
    )
    pairs.to_csv(folder / "near.csv", index=False)
    make_gains(relation=NASTY).to_csv(folder / "gains.csv", index=False)
    make_claims(text=NASTY).to_csv(folder / "claims.csv", index=False)
    (folder / "curves").mkdir()
    (folder / "curves" / "<img src=x onerror=window.pwned=1>.csv").write_text(CURVE)
    return write_report(
        store,
        rows,
        folder,
        plan=plan,
        command=f"fastxfer {NASTY}",
        title=NASTY,
        study=NASTY,
        curves=read_curves(folder / "curves"),
        tables=read_tables([folder / f"{name}.csv" for name in ("near", "gains", "claims")]),
    )
