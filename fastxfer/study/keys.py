"""Every key of a study's file, with its kind, its default and a line of help. docs/study-file.md has the same table.

The words are those of the command line's options. What a key's metadata say:

    how    where and how it is done, not what comes of it: no part of the study's hash
    bag    a list whose order means nothing
    path   a file or folder, which the hash knows by its last part
    least  the smallest number it may be
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Number = int | Literal["all"]


def key(default: Any, line: str, **means: Any) -> Any:
    """A key with its default and help; an empty dict as default is made anew each time."""
    told = {"help": line, **means}
    return field(default_factory=dict, metadata=told) if default == {} else field(default=default, metadata=told)


@dataclass(frozen=True)
class TargetKeys:
    """One target. A text is its name, or, with a slash in it, a folder that is named by its last part."""

    name: str = key("", "Its name, as of `targets ls`, or the one to be given to `folder` [default: the folder's].")
    folder: str = key(
        "", "What `targets add` takes, a folder or a table, to be put under this name.", path=True, how=True
    )
    label_column: str = key("label", "As of `targets add`: column of the label.")
    group: str | None = key(None, "As of `targets add`: column of what must not be torn apart.")
    missing_labels: Literal["unknown", "drop", "error"] | None = key(
        None, "As of `targets add`: what a blank label means."
    )
    pattern: str | None = key(None, "As of `targets add`: what the paths of the folder say.")
    root: str | None = key(None, "As of `targets add`: folder that a table's paths start from.", path=True, how=True)
    multi_label: bool | None = key(None, "As of `targets add`: whether 'A|B' means two labels.")
    split_seed: int = key(0, "As of `targets add`: seed of a split made here.", least=0)
    test_fraction: float = key(0.2, "As of `targets add`: share of test in a split made here.")
    val: float | None = key(None, "As of `targets add`: share of the train images that becomes val.")


@dataclass(frozen=True)
class BackboneKeys:
    """One backbone: the options of `embed`."""

    name: str = key("", "Its name in store and results [default: the checkpoint's].")
    checkpoint: str = key(
        "",
        "Weights: a file, a timm or xrv: name, or one of `backbones add`; none: the store has its embeddings.",
        path=True,
    )
    arch: str | None = key(
        None, "timm name, torchvision:NAME, xrv:NAME or FILE.py:function [default: guessed].", path=True
    )
    arch_args: dict[str, Any] = key({}, "Keyword arguments of the architecture.")
    source: str | None = key(None, "What it was trained on [default: what the file says].")
    pool: str = key("post", "Where embeddings are taken: post, before, cls, avg, both; with -N behind it, of layer -N.")
    precision: Literal["float32", "tf32", "float16", "bfloat16"] = key("float32", "The network computes in.")
    input_size: tuple[int, ...] = key(
        (), "Channels, height, width [default: the checkpoint's or architecture's].", least=1
    )
    mean: tuple[float, ...] = key((), "Mean of pixels scaled to 0…1 [likewise].")
    std: tuple[float, ...] = key((), "Standard deviation of pixels [likewise].")
    crop_pct: float | None = key(None, "Share of the resized image that is kept [likewise].")
    crop_mode: Literal["center", "squash", "border"] | None = key(None, "How the image meets the square [likewise].")
    interpolation: str | None = key(None, "bilinear, bicubic … [likewise].")
    fast_jpeg: bool | None = key(None, "Decode large JPEG files at a half, a quarter or an eighth of their size.")


@dataclass(frozen=True)
class EmbedKeys:
    """How images become embeddings."""

    dtype: Literal["float16", "float32"] = key("float16", "Stored as.")
    skip_bad: bool = key(False, "Leave out images that cannot be decoded, instead of stopping.")
    device: str = key("auto", "auto, cpu, cuda, cuda:1 …", how=True)
    batch_size: int | None = key(None, "Images a forward pass.", how=True, least=1)
    workers: int | None = key(None, "Threads that decode and, on a CPU, compute.", how=True, least=1)
    block_rows: int | None = key(None, "Rows written at once.", how=True, least=1)
    cache: Literal["off", "ram", "disk"] = key(
        "off", "Whether decoded pixels are kept for backbones to come.", how=True
    )
    compile: Literal["", "plain", "graphs"] = key(
        "", "torch.compile each network first; graphs = as a CUDA graph.", how=True
    )


@dataclass(frozen=True)
class ProbeKeys:
    """One probe or preset; a text is its name alone."""

    name: str = key("", "A probe or preset of `probes ls`.")
    l2: tuple[float, ...] = key((), "Penalties of logistic and ridge [default: 1/m; a full probe's: 10^-6 … 10^2].")
    k: tuple[int, ...] = key((), "Neighbours of knn [default: 20; a full probe's: 1 5 20 100].", least=1)
    transform: tuple[str, ...] = key(
        (), "What is done to embeddings first, in this order: centre, l2, power, standardise."
    )
    l2_by: Literal["fixed", "holdout", "cv", "val"] = key("fixed", "How one of `l2` is chosen, few-shot.")
    folds: int | None = key(None, "Folds of the support for `l2_by` [default: 5].", least=2)
    criterion: Literal["loss", "accuracy", "balanced_accuracy"] | None = key(
        None, "What `l2_by` makes best [default: loss]."
    )
    class_weight: Literal["balanced"] | None = key(
        None, "balanced: every class weighs the same, however few its images."
    )
    vote: Literal["temperature", "plain", "distance"] | None = key(None, "How neighbours vote.")
    temperature: float | None = key(None, "Of knn on the full split: votes weigh exp(similarity / temperature).")
    index: Literal["flat", "ivf", "hnsw"] = key("flat", "Of knn on the full split: flat is exact.")


@dataclass(frozen=True)
class FewshotKeys:
    """Few-shot episodes on the embeddings: the options of `fewshot`."""

    probes: tuple[ProbeKeys, ...] = key(
        tuple(ProbeKeys(name) for name in ("logistic", "ridge", "prototype", "knn")), "Names, or tables.", bag=True
    )
    ways: tuple[Number, ...] = key(
        (), 'Classes an episode, or "all"; each of several [default: 5 or the preset\'s].', bag=True
    )
    shots: tuple[int, ...] = key((), "Support images a class [default: 1 5, or the preset's].", bag=True, least=1)
    queries: Number | None = key(None, 'Query images a class [default: 15; with ways "all", the whole query split].')
    episodes: int | None = key(None, "Episodes a cell, with `until` at most [default: 1000, or the preset's].", least=1)
    until: str | None = key(
        None, 'As many episodes as it takes until means are known, such as "ci 0.5": to ± 0.5 points.'
    )
    seeds: tuple[int, ...] = key((0,), "Seeds, each a list of episodes of its own.", bag=True, least=0)
    metrics: tuple[str, ...] = key((), "As of `fewshot`: metrics [default: those that suit the episodes].", bag=True)
    split: Literal["test", "val"] = key("test", "Where queries come from.")
    labels: Literal["exactly-one", "per-label"] = key("exactly-one", "What multi-label targets serve with.")
    query_prior: Literal["balanced", "natural"] = key("balanced", "Queries: as many of each class, or as they come.")
    imbalance: float | None = key(None, "Uneven support by Dirichlet proportions of this parameter.")
    fewer_queries: bool = key(False, "Where queries are scarce, as many as the scarcest class has.")
    drop_scarce: bool = key(False, "Leave out classes with too few images instead of failing.")
    per_class: bool = key(False, "Also each class alone.")
    backend: Literal["auto", "cuda", "cpu", "reference"] = key("auto", "What solves the episodes.", how=True)


@dataclass(frozen=True)
class FullKeys:
    """Probes of the full train split: the options of `probe` and of `knn`."""

    probes: tuple[ProbeKeys, ...] = key((), "Names, or tables [default: logistic in [probe], knn in [knn]].", bag=True)
    seeds: tuple[int, ...] = key(
        (0,), "Seeds of the validation part, where a target has no val split.", bag=True, least=0
    )
    per_class: bool = key(False, "Also each class alone.")


@dataclass(frozen=True)
class SelectKeys:
    """What deserves a fine-tuning: the options of `select`."""

    budget: int | str = key(
        2, 'Fine-tunings at most: a number, "20 runs", "2 gpu-hours", or, with `gpu_hour`, "50 usd".'
    )
    gpu_hour: float | None = key(None, "What a GPU-hour costs, in usd or eur.")
    policy: str = key("top", "top, halving, ucb, ei, kg or random.")
    top: int = key(1, "Policy top: backbones a target that are chosen outright.", least=1)
    batch: int | None = key(
        None, "Fine-tunings in one plan; after them another is made, until nothing new is worth one.", least=1
    )
    stop_gain: float = key(0.0, "Points: leave out what is expected to add less to its target's choice.")


@dataclass(frozen=True)
class FinetuneKeys:
    """Fine-tuning of what was selected: the options of `finetune`."""

    preset: str = key("bit", "bit, paper or own.")
    shots: tuple[int, ...] = key(
        (), "On episodes of so many shots [default: the whole train split].", bag=True, least=1
    )
    ways: Number = key("all", "Classes an episode, with `shots`.")
    queries: Number | None = key(None, "Query images a class, with `shots`.")
    episodes: int = key(5, "Episodes a number of shots, with `shots`.", least=1)
    seeds: tuple[int, ...] = key((0,), "Seeds of head, order and augmentation, and of the episodes.", bag=True, least=0)
    steps: int | None = key(None, "Steps; the schedule is scaled to them.", least=1)
    batch_size: int | None = key(None, "Images a step.", least=1)
    image_size: int | None = key(None, "Pixels a side.", least=8)
    base_lr: float | None = key(None, "Learning rate after the warm-up.")
    hflip: float = key(0.5, "Probability of a mirror image.")
    augment: str | None = key(None, "crop, xray or timm [default: the preset's].")
    oversample: bool | None = key(None, "Draw every class equally often [default: the preset's].")
    head: str | None = key(None, "How the head starts: zero, random or probe [default: the preset's].")
    head_l2: float | None = key(None, "Penalty of head probe [default: what the full probe chose].")
    eval_every: int | None = key(
        None, "Steps between two looks at validation, 0 = never [default: the preset's].", least=0
    )
    frozen_norm: bool = key(False, "Batch norm keeps the statistics of pre-training.")
    halving: bool = key(False, "Of the runs on a target, stop the worse half by validation, again and again.")
    budget: str | None = key(None, 'Stop when it is spent, of each process: "2 gpu-hours", "30 minutes".', how=True)
    curves: bool = key(False, "Keep a table of every step, and draw the learning curves in the report.", how=True)
    micro_batch: int | None = key(None, "Images a forward pass.", how=True, least=1)
    checkpoint_every: int = key(
        0, "Steps between two checkpoints of the running one [0: every five minutes].", how=True, least=0
    )
    workers: int = key(0, "Loader processes.", how=True, least=0)
    device: str = key("auto", "auto, cpu, cuda …", how=True)


@dataclass(frozen=True)
class ReportKeys:
    """The page."""

    out: str = key("report", "Folder for index.html.", path=True, how=True)
    title: str = key("Which backbone transfers best?", "The page's heading.", how=True)


@dataclass(frozen=True)
class StudyKeys:
    """The whole file. A stage whose table is there is run; paths start at the file's folder."""

    name: str = key("", "The study's name, which its results folder keeps [default: the file's].", how=True)
    targets: tuple[TargetKeys, ...] = key((), "Names, folders, or tables [[targets]].", bag=True)
    backbone: tuple[BackboneKeys, ...] = key((), "Tables [[backbone]].", bag=True)
    sources: tuple[str, ...] = key((), "If given, every backbone's source must be one of these.", how=True)
    store: str = key("fastxfer-store", "Embedding store (folder or fsspec URL).", path=True, how=True)
    results: str = key("", "Folder of the result rows [default: beside the store].", path=True, how=True)
    data_root: str = key(
        "fastxfer-data", "Folder with the data sets and the register of `targets add`.", path=True, how=True
    )
    drop_leaks: Literal["copy", "patient"] | None = key(None, "Leave out test images that training has seen.")
    embed: EmbedKeys = key(EmbedKeys(), "How images become embeddings.")
    fewshot: FewshotKeys | None = key(None, "Few-shot episodes.")
    probe: FullKeys | None = key(None, "Linear probes on the full train split.")
    knn: FullKeys | None = key(None, "Nearest neighbours on the full train split.")
    select: SelectKeys | None = key(None, "Choose what deserves a fine-tuning; wants [probe].")
    finetune: FinetuneKeys | None = key(None, "Fine-tune what was chosen; wants [select].")
    report: ReportKeys | None = key(None, "Write the report.", how=True)


# Where a table stands in the file -> its keys.
TABLES: dict[str, type] = {
    "": StudyKeys,
    "[[targets]]": TargetKeys,
    "[[backbone]]": BackboneKeys,
    "[embed]": EmbedKeys,
    "[fewshot]": FewshotKeys,
    "probes = [{…}]": ProbeKeys,
    "[probe], [knn]": FullKeys,
    "[select]": SelectKeys,
    "[finetune]": FinetuneKeys,
    "[report]": ReportKeys,
}
