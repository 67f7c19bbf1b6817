"""Published protocols as data: which probe, at which settings, chosen how, and where that is written.

A preset is a probe with its settings, and for few-shot protocols what their episodes are. Where a protocol leaves its
penalty to validation, no penalty is ever chosen by the images that are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastxfer.errors import UsageError, nearest
from fastxfer.probes import FIELD_GRID, PROBES, KnnProbe, LogisticProbe, Probe, PrototypeProbe, RidgeProbe, make_probe

# lambda = 10^-6 … 10^6, eight a decade.
CLIP_GRID = tuple(10.0 ** (-6 + i / 8) for i in range(97))


@dataclass(frozen=True)
class Preset:
    """A published protocol.

    probe     with its settings
    commands  which commands run it
    line      what it does, in a line
    source    where it is written
    note      where we do otherwise, and why; "" where we do not
    episodes  options of `fewshot` that it comes with: `ways`, `shots`, `queries`, `episodes`
    """

    name: str
    probe: Probe
    commands: tuple[str, ...]
    line: str
    source: str
    note: str = ""
    episodes: dict[str, Any] = field(default_factory=dict)


def _preset(name: str, probe: Probe, *rest: Any, **options: Any) -> Preset:
    return Preset(name, replace(probe, preset=name), *rest, **options)


_ALL = (
    _preset(
        "kornblith",
        LogisticProbe(l2_sum=FIELD_GRID, l2_by="val", criterion="accuracy"),
        ("probe", "fewshot"),
        "logistic regression, 45 values C = 10^-6 … 10^5, best accuracy on validation, then train + validation",
        "Kornblith et al. 2019 (Do better ImageNet models transfer better?), appendix A; SimCLR (Chen et al. 2020), B.8",
    ),
    _preset(
        "dinov2",
        LogisticProbe(l2_sum=FIELD_GRID, l2_by="val", criterion="accuracy", val_share=0.1, tol=1e-12),
        ("probe",),
        "as kornblith; where there is no validation split, a tenth of train serves",
        "DINOv2 (Oquab et al. 2023), dinov2/eval/log_regression.py (tol 1e-12, at most 1,000 iterations)",
        "the tenth is stratified and keeps patients whole, theirs is drawn at random; tol bounds the relative gap of the "
        "objective, and a solution that misses it is flagged rather than stopped",
    ),
    _preset(
        "clip",
        LogisticProbe(l2_sum=CLIP_GRID, l2_by="val", criterion="accuracy"),
        ("probe", "fewshot"),
        "logistic regression, lambda = 10^-6 … 10^6, eight a decade, best accuracy on validation, then train + validation",
        "CLIP (Radford et al. 2021), appendix A.3",
        "all 97 values are tried, which costs little on a path; the paper halves intervals around the peak of seven",
    ),
    _preset(
        "big-vision",
        RidgeProbe(l2_sum=(1024.0,), transform=("standardise",), bias_feature=100.0),
        ("fewshot",),
        "least squares to ±1, features standardised by the support, bias feature 100, l2 = 2^10 on the sum",
        "big_vision (Beyer, Zhai, Kolesnikov), evaluators/fewshot_lsr.py and configs/common_fewshot.py",
        "their 3 seeds are our 3 episodes; a feature that all of a support shares is 0 in queries too (no score changes)",
        {"ways": "all", "shots": (1, 5, 10, 25), "episodes": 3},
    ),
    _preset(
        "dino-knn",
        KnnProbe(k=(10, 20, 100, 200), temperature=0.07),
        ("knn", "fewshot"),
        "cosine neighbours, votes weighted by exp(similarity / 0.07), k = 10, 20, 100, 200",
        "DINO (Caron et al. 2021), eval_knn.py, after Wu et al. 2018",
        "`knn` chooses k on validation; their script prints all four on the images that are reported",
    ),
    _preset(
        "meta-baseline",
        PrototypeProbe(metric="cosine"),
        ("fewshot",),
        "cosine similarity to the class means of the support; 5-way 1 and 5 shots, 15 queries a class",
        "Meta-Baseline (Chen et al. 2021), section 3 (Classifier-Baseline)",
        "",
        {"ways": 5, "shots": (1, 5), "queries": 15},
    ),
    _preset(
        "bit",
        LogisticProbe(),
        ("fewshot",),
        "all-way k-shot: k train images of every class, all test images as queries, 5 draws",
        "BiT (Kolesnikov et al. 2020), few-shot experiments; Cherti & Jitsev 2021 draw episodes in the same way",
        "a logistic probe at C = 1 stands where they fine-tune (for that: `fastxfer finetune`)",
        {"ways": "all", "shots": (1, 5, 10, 25), "episodes": 5},
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def probes_for(command: str, names: Sequence[str], **options: Any) -> list[Probe]:
    """The probes behind names of probes and presets; `options` of `make_probe` are for the plain ones.

    `UsageError` for an unknown name, a preset of another command, or options that no plain probe is there to take.
    """
    found: list[Probe] = []
    for name in dict.fromkeys(names):
        if name in PRESETS:
            preset = PRESETS[name]
            if command not in preset.commands:
                raise UsageError(
                    f"preset '{name}' is for {' and '.join(f'`fastxfer {c}`' for c in preset.commands)}, not for "
                    f"`fastxfer {command}`"
                )
            found.append(preset.probe)
        elif name in PROBES:
            found.append(make_probe(name, **options))
        else:
            known = [*PROBES, *PRESETS]
            raise UsageError(
                f"unknown probe '{name}': choose among {', '.join(PROBES)}, or a preset: {', '.join(PRESETS)}."
                f"{nearest(name, known)}"
            )
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value and value != "fixed"]
    if given and all(name in PRESETS for name in names):
        raise UsageError(f"{', '.join(given)}: a preset brings its own settings. Leave them out, or name a plain probe")
    return found


def episodes_for(names: Sequence[str]) -> dict[str, Any]:
    """The episode options that go with the named probes: those of a preset that is named alone."""
    return PRESETS[names[0]].episodes if len(names) == 1 and names[0] in PRESETS else {}
