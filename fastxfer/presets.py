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

# lambda = 10^-6 … 10^5, 45 values: what SimCLR and its followers call the l2 parameter; smallest first.
KORNBLITH_GRID = tuple(10.0 ** (-6 + i / 4) for i in range(45))
# lambda = 10^-6 … 10^6, eight a decade.
CLIP_GRID = tuple(10.0 ** (-6 + i / 8) for i in range(97))
# What full probes choose from on validation unless told otherwise.
FULL_L2 = tuple(10.0 ** (-6 + i / 2) for i in range(17))
FULL_K = (1, 5, 20, 100)


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
        LogisticProbe(l2_sum=KORNBLITH_GRID, l2_by="val", criterion="accuracy"),
        ("probe", "fewshot"),
        "logistic regression, lambda = 10^-6 … 10^5, 45 values, best accuracy on validation, then train + validation",
        "SimCLR (Chen et al. 2020), appendix B.8, after Kornblith et al. 2019; as code: linusericsson/ssl-transfer, "
        "linear.py (Ericsson et al. 2021)",
        "B.8 says neither sum nor mean of losses, nor what ties do: here, as in that code, scikit-learn's C = 1/lambda "
        "(sum of losses + lambda/2 of the squared weights), of equals the smallest lambda; Kornblith's own linear_eval.py "
        "(2021) also sums the losses, but without the half, and searches 10^-6 … 10^6 as CLIP does. The 2019 appendix "
        "itself was not at hand. Pets, Flowers and others are judged by balanced accuracy, which the rows have, too",
    ),
    _preset(
        "dinov2",
        LogisticProbe(l2_sum=FIELD_GRID, l2_by="val", criterion="accuracy", val_share=0.1, tol=1e-12),
        ("probe",),
        "logistic regression, 45 values C = 10^-6 … 10^5, chosen as in kornblith; without a validation split a tenth of "
        "train serves",
        "facebookresearch/dinov2, dinov2/eval/log_regression.py (Oquab et al. 2023; tol 1e-12, at most 1,000 iterations)",
        "the tenth is stratified and keeps patients whole, theirs is drawn at random; tol bounds the relative gap of the "
        "objective, and a solution that misses it is flagged rather than stopped",
    ),
    _preset(
        "clip",
        LogisticProbe(l2_sum=CLIP_GRID, l2_by="val", criterion="accuracy"),
        ("probe", "fewshot"),
        "logistic regression, lambda = 10^-6 … 10^6, eight a decade, best accuracy on validation, then train + validation",
        "CLIP (Radford et al. 2021), appendix A.3 (read in two public condensations of the paper, not in the paper itself); "
        "openai/CLIP, README.md, has the fit alone",
        "all 97 values are tried, which costs little on a path; the paper halves intervals around the peak of seven. "
        "lambda is taken as scikit-learn's 1/C; the grid is the same both ways",
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
        "facebookresearch/dino, eval_knn.py (Caron et al. 2021), after Wu et al. 2018",
        "`knn` chooses k on validation; their script prints all four on the images that are reported",
    ),
    _preset(
        "meta-baseline",
        PrototypeProbe(metric="cosine"),
        ("fewshot",),
        "cosine similarity to the class means of the support; 5-way 1 and 5 shots, 15 queries a class, 8,000 episodes",
        "yinboc/few-shot-meta-baseline, models/meta_baseline.py and test_few_shot.py (Chen et al. 2021)",
        "their learned temperature multiplies all similarities and changes no prediction; it is left out",
        {"ways": 5, "shots": (1, 5), "queries": 15, "episodes": 8000},
    ),
    _preset(
        "bit",
        LogisticProbe(),
        ("fewshot",),
        "all-way k-shot: k train images of every class, all test images as queries, 5 draws",
        "BiT (Kolesnikov et al. 2020), figures 2 and 6; google-research/big_transfer, bit_pytorch/train.py",
        "a logistic probe at C = 1 stands where they fine-tune (for that: `fastxfer finetune`); they report the median of "
        "the draws, rows are raw; their figures go on to 100 shots",
        {"ways": "all", "shots": (1, 5, 10), "episodes": 5},
    ),
    _preset(
        "paper",
        LogisticProbe(),
        ("fewshot",),
        "all-way k-shot of the paper behind fastxfer: 1, 5, 10, 100 images a class, all test images as queries, 5 draws",
        "Cherti & Jitsev 2021 (arXiv 2106.00116); SLAMPAI/large-scale-pretraining-transfer, finetune.py, mktrainval",
        "a logistic probe at C = 1 stands where they fine-tune the whole network for 500 steps (`fastxfer finetune "
        "--preset paper`): they have no linear probe, so numbers compare in rank, not in height. Classes with fewer than k "
        "images give them what they have, here that is an error or, with --drop-scarce, no class. CIFAR and COVIDx also at "
        "--shots 500",
        {"ways": "all", "shots": (1, 5, 10, 100), "episodes": 5},
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


def full_probe_for(
    command: str, name: str, *, l2: Sequence[float] = (), k: Sequence[int] = (), **options: Any
) -> Probe:
    """The probe that `fastxfer probe` or `knn` runs under a name, by default with the grids FULL_L2 and FULL_K.

    `temperature` (0: a plain vote) and `index` are knn's. Errors as of `probes_for`.
    """
    own = {word: options.pop(word) for word in ("temperature", "index") if word in options}
    plain = name not in PRESETS
    if command == "probe":
        given: dict[str, Any] = {"l2": tuple(l2) or (FULL_L2 if plain else ())}
    else:
        given = {"k": tuple(k) or (FULL_K if plain else ())}
    (chosen,) = probes_for(command, [name], **given, **options)
    if isinstance(chosen, KnnProbe):
        chosen = replace(chosen, index=own.get("index") or chosen.index)
        if (temperature := own.get("temperature")) is not None:
            if options.get("vote") not in (None, "temperature"):
                raise UsageError(
                    f"--temperature goes with --vote temperature, not with --vote {options['vote']}: leave one of them out"
                )
            if not plain:
                raise UsageError("--temperature: a preset brings its own settings. Leave it out, or name a plain probe")
            chosen = replace(chosen, temperature=temperature or None)
    return chosen


def episodes_for(names: Sequence[str]) -> dict[str, Any]:
    """The episode options that go with the named probes: the usual ones, or those of a preset that is named alone."""
    usual = {"ways": None, "shots": (1, 5), "queries": None, "episodes": 1000}
    return usual | (PRESETS[names[0]].episodes if len(names) == 1 and names[0] in PRESETS else {})
