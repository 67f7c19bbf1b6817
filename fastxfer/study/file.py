"""A study's file: read whole, every problem told at once with its key; what it asks for, as the library's own objects."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from fastxfer.budgets import parse_budget
from fastxfer.errors import DataError, FastxferError, UsageError, nearest
from fastxfer.files import WEIGHTS, parsed
from fastxfer.hyperrule import AUGMENTATIONS, HEADS
from fastxfer.hyperrule import PRESETS as RULES
from fastxfer.presets import episodes_for, full_probe_for, probes_for
from fastxfer.probes import Probe, check_metrics
from fastxfer.protocol import Protocol
from fastxfer.results import results_path
from fastxfer.store import check_name
from fastxfer.study.choose import check_policy
from fastxfer.study.keys import BackboneKeys, ProbeKeys, StudyKeys
from fastxfer.study.reading import Reader
from fastxfer.until import Until, parse_until

STAGES = ("embed", "fewshot", "probe", "knn", "select", "finetune", "report")
_SETTINGS = (
    "preset", "steps", "batch_size", "image_size", "base_lr", "hflip", "oversample", "head", "head_l2", "augment",
    "eval_every", "frozen_norm",
)  # fmt: skip
# What the table of a probe may say, by stage.
_OF_PROBE = {
    "fewshot": ("l2", "k", "transform", "l2_by", "folds", "criterion", "class_weight", "vote"),
    "probe": ("l2", "transform", "class_weight"),
    "knn": ("k", "transform", "vote", "temperature", "index"),
}
_TABLE = r"\.(csv|npz|parquet|arrow|feather|tar)$"


@dataclass(frozen=True)
class Study:
    """A study as its file tells it, paths resolved; `file` is where it was read from."""

    file: Path
    keys: StudyKeys

    @property
    def name(self) -> str:
        return self.keys.name

    @property
    def results(self) -> Path:
        return Path(self.keys.results or results_path(self.keys.store))

    @property
    def data_root(self) -> Path:
        return Path(self.keys.data_root)

    @property
    def backbones(self) -> list[str]:
        return [b.name for b in self.keys.backbone]

    @property
    def targets(self) -> list[str]:
        return [t.name for t in self.keys.targets]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(backbone, target) of all, target by target."""
        return [(b, t) for t in self.targets for b in self.backbones]

    @property
    def stages(self) -> list[str]:
        """What is to be done, in this order."""
        return [s for s in STAGES if getattr(self.keys, s) is not None]

    def protocols(self) -> list[Protocol]:
        """The few-shot protocols, one a number of ways and a seed; none without [fewshot]."""
        k = self.keys.fewshot
        if k is None:
            return []
        usual = episodes_for([probe.name for probe in k.probes])
        return [
            Protocol(
                ways=ways,
                shots=tuple(dict.fromkeys(k.shots)) or usual["shots"],
                queries=usual["queries"] if k.queries is None and not k.ways else k.queries,
                query_split=k.split,
                episodes=usual["episodes"] if k.episodes is None else k.episodes,
                seed=seed,
                metrics=k.metrics,
                drop_scarce=k.drop_scarce,
                labels=k.labels,
                query_prior=k.query_prior,
                imbalance=k.imbalance,
                fewer_queries=k.fewer_queries,
                per_class=k.per_class,
            )
            for ways in (dict.fromkeys(k.ways) if k.ways else [usual["ways"]])
            for seed in dict.fromkeys(k.seeds)
        ]

    @property
    def until(self) -> float | None:
        """The half-width to which means are to be known, where few-shot episodes stop by themselves."""
        k = self.keys.fewshot
        return parse_until(k.until) if k and k.until is not None else None

    def fewshot_probes(self) -> list[Probe]:
        """The probes of the protocols."""
        k = self.keys.fewshot
        each = [probes_for("fewshot", [keys.name], **_options(keys, "fewshot")) for keys in (k.probes if k else ())]
        return list(dict.fromkeys(probe for some in each for probe in some))

    def full_probes(self, stage: str) -> list[tuple[Probe, int]]:
        """The probes of stage "probe" or "knn", each with each seed."""
        k = getattr(self.keys, stage)
        if k is None:
            return []
        probes = k.probes or (ProbeKeys("logistic" if stage == "probe" else "knn"),)
        made = dict.fromkeys(full_probe_for(stage, one.name, **_options(one, stage)) for one in probes)
        return [(probe, seed) for probe in made for seed in dict.fromkeys(k.seeds)]

    def finetune_protocol(self, seed: int) -> Protocol | None:
        """The episodes to fine-tune on; None for the whole train split."""
        f = self.keys.finetune
        if f is None or not f.shots:
            return None
        shots = tuple(dict.fromkeys(f.shots))
        return Protocol(ways=f.ways, shots=shots, queries=f.queries, episodes=f.episodes, seed=seed)

    def overrides(self) -> dict[str, Any]:
        """What [finetune] says of the settings of a run: arguments of `fastxfer.hyperrule.settle`."""
        f = self.keys.finetune
        return {name: getattr(f, name) for name in _SETTINGS} if f else {}

    def content(self) -> dict[str, Any]:
        """What the hash is of: all that decides the numbers; neither places, nor the machine, nor what is at its default."""
        content: dict[str, Any] = _content(self.keys)
        return content

    @property
    def hash(self) -> str:
        """Names what is asked for: the same whatever the order of keys and bags, comments, places and machines."""
        return _digest(self.content())

    @property
    def choice_hash(self) -> str:
        """As `hash`, of what the selection depends on."""
        return _digest(
            {k: v for k, v in self.content().items() if k in ("targets", "backbone", "probe", "select", "drop_leaks")}
        )


def read_study(
    path: Path | str, *, store: str | None = None, results: str | None = None, data_root: Path | str | None = None
) -> Study:
    """The study of a file; `store`, `results` and `data_root`, if given, stand in for those of the file.

    `DataError` that lists all problems, each with its key. Whether targets, checkpoints and results fit is `check_world`'s.
    """
    study, problems = parse(Path(path), {"store": store, "results": results, "data_root": data_root})
    raise_problems(Path(path), problems)
    return study


def raise_problems(path: Path, problems: list[str]) -> None:
    """`DataError` with all of them, if there are any."""
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError("\n  ".join([f"study '{path}' has {count}:", *problems]))


def parse(path: Path, places: dict[str, Any] | None = None) -> tuple[Study, list[str]]:
    """The study, as far as it can be read, and all that is wrong with its words; `DataError` for a file that is no TOML."""
    try:
        raw = parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"study '{path}' does not exist: `fastxfer study init {path}` writes an example") from None
    except (ValueError, IsADirectoryError) as error:
        raise DataError(f"study '{path}' is no TOML: {error}") from None
    problems: list[str] = []
    keys = _resolved(Reader(problems).table(StudyKeys, raw, ""), path.absolute().parent)
    for place, value in (places or {}).items():
        if value is not None:
            where = str(value) if "://" in str(value) else str(Path(value).absolute())
            keys = replace(keys, **{place: where})  # type: ignore[arg-type]
    study = Study(path, replace(keys, name=keys.name or path.stem))
    # Of what could not be read it goes without saying that none was given.
    unread = [problem for problem in problems if problem.startswith(("targets", "backbone"))]
    problems += [p for p in _problems(study) if not (p.endswith(": none given") and unread)]
    return study, problems


def _resolved(keys: StudyKeys, folder: Path) -> StudyKeys:
    """With paths that start from the root, and the names that go without saying."""

    def path(text: str | None) -> Any:
        return text if not text or "://" in text else str(folder / text)

    def weights(word: str) -> str:
        if not word or word.startswith(("hf-hub:", "xrv:", "torchvision:")):
            return word
        return str(folder / word) if "/" in word or word.endswith(WEIGHTS) or (folder / word).exists() else word

    def arch(word: str | None) -> str | None:
        file, colon, function = (word or "").rpartition(":")
        return str(folder / file) + colon + function if file.endswith(".py") else word

    targets = [
        replace(t, folder=path(t.folder), root=path(t.root), name=t.name or re.sub(_TABLE, "", Path(t.folder).name))
        for t in keys.targets
    ]
    backbones = [
        replace(b, checkpoint=weights(b.checkpoint), arch=arch(b.arch), name=b.name or _stem(b.checkpoint))
        for b in keys.backbone
    ]
    report = keys.report and replace(keys.report, out=path(keys.report.out))
    places = {name: path(getattr(keys, name)) for name in ("store", "results", "data_root")}
    return replace(keys, targets=tuple(targets), backbone=tuple(backbones), report=report, **places)


def _stem(checkpoint: str) -> str:
    """What a checkpoint is called: a file without its suffixes, a name without its hub."""
    last = re.split(r"[/:]", checkpoint)[-1]
    while last.endswith(WEIGHTS):  # .pth.tar
        last = last.rpartition(".")[0]
    return last


def _options(keys: ProbeKeys, stage: str) -> dict[str, Any]:
    """What a probe's table says beside its name."""
    given = {f.name: v for f in fields(keys) if f.name != "name" and (v := getattr(keys, f.name)) != f.default}
    for name in given:
        if name not in _OF_PROBE[stage]:
            raise UsageError(
                f"probe '{keys.name}': '{name}' is no key of a probe here; expected {', '.join(_OF_PROBE[stage])}"
            )
    return given


# -- what is wrong with the words alone ----------------------------------------------------------------------------------


def _problems(study: Study) -> Iterator[str]:
    k = study.keys
    for what, names in (("targets", study.targets), ("backbone", study.backbones)):
        if not names:
            yield f"{what}: none given"
        for i, name in enumerate(names, start=1):
            if not name:
                yield f"{what}[{i}]: has neither a name nor a {'checkpoint' if what == 'backbone' else 'folder'}"
            elif name in names[: i - 1]:
                yield f"{what}[{i}]: '{name}' is there twice: give one of them another name"
            elif what == "backbone" and (wrong := _said(check_name, name, "backbone")):
                yield f"{what}[{i}].name: {wrong}"
    for i, b in enumerate(k.backbone, start=1):
        yield from (f"backbone[{i}].{wrong}" for wrong in _wrong_in(b, k.sources))
    if k.fewshot is not None and (wrong := _said(_check_fewshot, study)):
        yield f"fewshot: {wrong}"
    for stage in ("probe", "knn"):
        if wrong := _said(study.full_probes, stage):
            yield f"{stage}: {wrong}"
    if k.select is not None:
        if k.probe is None:
            yield "select: chooses by full probes on validation, so it wants a table [probe]"
        yield from (f"select.{wrong}" for wrong in check_policy(k.select))
    if k.finetune is not None:
        if k.select is None:
            yield "finetune: does what was selected, so it wants a table [select]"
        f = k.finetune
        for key, value, known in (
            ("preset", f.preset, RULES), ("augment", f.augment, AUGMENTATIONS), ("head", f.head, HEADS)
        ):  # fmt: skip
            if value is not None and value not in known:
                yield f"finetune.{key} = {value!r}: expected one of {', '.join(known)}.{nearest(value, known)}"
        if f.budget is not None and (wrong := _said(parse_budget, f.budget)):
            yield f"finetune.budget: {wrong}"
        if k.select is not None and k.select.batch is not None:
            if f.budget is not None:
                yield "finetune.budget: a loop of plans (select.batch) has the budget of [select]: leave one of them out"
            if f.shots:
                yield "select.batch: plans again by fine-tunings on whole train splits: leave it out, or finetune.shots"
        if f.shots and (wrong := _said(study.finetune_protocol, 0)):
            yield f"finetune: {wrong}"


def _wrong_in(b: BackboneKeys, sources: tuple[str, ...]) -> Iterator[str]:
    if not re.fullmatch(r"(post|before|cls|avg|both)(-[1-9]\d*)?", b.pool):
        yield f"pool = {b.pool!r}: expected post, before, cls, avg or both, for layer -N with -N behind it, such as avg-2"
    if b.input_size and len(b.input_size) != 3:
        yield f"input_size = {list(b.input_size)}: expected channels, height and width, such as [3, 224, 224]"
    if sources and b.source not in sources:
        said = "says none" if b.source is None else f"says {b.source!r}"
        yield f"source: {said}, and `sources` has {', '.join(sources)}.{nearest(b.source or '', sources)}"
    if not b.checkpoint and any(getattr(b, f.name) != f.default for f in fields(b)[2:] if f.default is not MISSING):
        yield "checkpoint: none given, so the store's embeddings are taken as they are, and nothing else can be said of them"


def _check_fewshot(study: Study) -> None:
    probes = study.fewshot_probes()
    if not probes:
        raise UsageError("no probes given")
    until = study.until
    for protocol in study.protocols():
        check_metrics(probes, protocol.metrics)
        if until is not None:
            Until(until, protocol.metrics)
        for probe in probes:
            for shots in protocol.shots:
                probe.check_spec(shots, protocol.labels == "per-label", protocol.query_split)


def _said(check: Callable[..., Any], *arguments: Any) -> str:
    """What an error of the library says of the arguments, or ""."""
    try:
        check(*arguments)
    except FastxferError as error:
        return str(error)
    return ""


# -- what the hash is of -------------------------------------------------------------------------------------------------


def _content(value: Any, means: Any = None) -> Any:
    means = means or {}
    if is_dataclass(value) and not isinstance(value, type):
        told = {}
        for f in fields(value):
            default = {} if f.default is MISSING else f.default
            one = getattr(value, f.name)
            if f.metadata.get("how") or one is None or one == default:
                continue
            content = _content(one, f.metadata)
            if content != {} or default is None:  # a table that is there asks for its stage
                told[f.name] = content
        return told
    if isinstance(value, tuple):
        items = [_content(v) for v in value]
        return sorted(items, key=lambda v: json.dumps(v, sort_keys=True)) if means.get("bag") else items
    if means.get("path") and not str(value).startswith("hf-hub:"):
        return str(value).rstrip("/").rpartition("/")[2]
    return value


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
