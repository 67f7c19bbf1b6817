"""What a store holds of what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.progress import say
from fastxfer.store import EmbeddingStore
from fastxfer.targets.findings import leaking_images


def without_leaks(
    store: EmbeddingStore, data_root: str | Path, by: str, targets: Sequence[str] | None = None
) -> EmbeddingStore:
    """The store without the test images that training has seen, as `targets check --save` found them.

    by: "copy", equal to or a near duplicate of an image of train or val; "patient": those that show a patient of train or
    val, too. `DataError` for a target (of those named, else of all) that was not checked, has changed since, or, by patient,
    knows none.
    """
    named = targets or store.targets()
    return store.leaving_out({n: leaking_images(data_root, n, store.fingerprint(n), by) for n in named}, by)


def source_of(store: EmbeddingStore, backbone: str, target: str) -> str:
    """What a backbone was trained on, as its embeddings say; "unknown" where nobody said."""
    return str(store.attributes(backbone, target).get("source") or "unknown")


def backbones_of(
    store: EmbeddingStore, targets: Sequence[str] | None = None, backbones: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """target -> backbones to run: of those named (all, if none are), whatever the store holds complete embeddings of.

    `UsageError` for a name that the store does not know (nearest offered), `DataError` for what was named but is
    incomplete.
    """
    entries = store.entries()
    known_targets, known_backbones = ({getattr(e, what) for e in entries} for what in ("target", "backbone"))
    for kind, named, known in (("target", targets, known_targets), ("backbone", backbones, known_backbones)):
        for name in named or ():
            if name not in known:
                raise UsageError(
                    f"the store '{store.path}' holds no embeddings of {kind} '{name}'.{nearest(name, known)} "
                    "`fastxfer store ls` lists what is there."
                )
    plan: dict[str, list[str]] = {}
    for entry in sorted(entries, key=lambda e: (e.target, e.backbone)):
        if (targets and entry.target not in targets) or (backbones and entry.backbone not in backbones):
            continue
        if not entry.complete:
            message = (
                f"embeddings of '{entry.target}' by '{entry.backbone}' are incomplete ({entry.n_present} of "
                f"{entry.n_images} images): run the same `fastxfer embed` again to finish them"
            )
            if backbones and targets:
                raise DataError(message)
            say(f"left out: {message}")
            continue
        plan.setdefault(entry.target, []).append(entry.backbone)
    for name in targets or ():
        if name not in plan:
            raise DataError(f"the store holds no complete embeddings of target '{name}' by the backbones asked for")
    if not plan:
        what = "complete embeddings of what was asked for" if entries else "embeddings yet: run `fastxfer embed` first"
        raise DataError(f"the store '{store.path}' holds no {what}")
    return plan
