"""A checkpoint or a name -> a backbone: network without head, its preprocessing, its width and its identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from fastxfer.backbones import architecture as architectures
from fastxfer.backbones import xray
from fastxfer.backbones.architecture import TORCHVISION, Built
from fastxfer.backbones.checkpoint import (
    SUFFIXES,
    Checkpoint,
    file_stem,
    missing_file,
    read_checkpoint,
    read_state_dict,
)
from fastxfer.backbones.lean import Trial, try_out
from fastxfer.backbones.matching import fit_weights
from fastxfer.backbones.pooling import Columns, Pooled, find_point, pooled
from fastxfer.backbones.preprocessing import Preprocessing, merge
from fastxfer.backbones.xray import XRV
from fastxfer.errors import DataError, UsageError, first_line
from fastxfer.progress import say

__all__ = [
    "SUFFIXES",
    "Backbone",
    "Checkpoint",
    "Preprocessing",
    "load_backbone",
    "load_backbones",
    "load_network",
    "read_checkpoint",
    "read_state_dict",
]

PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# File names that say nothing; the folder's name does.
_NAMELESS = {"model", "checkpoint", "pytorch_model", "last", "best", "model_best", "weights", "ckpt"}


@dataclass
class Backbone:
    """A network without head, ready to embed.

    network:        module in evaluation mode; forward(float images (b, c, h, w)) -> (b, dim), what the classifier sees
    pooling:        the point that is, `pooling.Point`: "post", "before", "cls", "avg", "both", "avg-2" …
    weights_sha256: of the body's tensors by name, in float32: independent of the file around them
    identity:       SHA-256 of weights, architecture, arguments, pooling, preprocessing (and precision, if not float32)
    checkpoint:     path or name as given;  source: what it was trained on, or "unknown"
    precision:      what the forward pass computes in
    trial:          what one forward pass in float32 showed, of `shared` if there is one
    shared:         a network whose one pass gives this backbone's embeddings and those of others of the same checkpoint
                    (other points) beside each other;  columns: those of this one
    """

    name: str
    architecture: str
    arch_args: dict[str, Any]
    network: nn.Module
    dim: int
    preprocessing: Preprocessing
    pooling: str
    weights_sha256: str
    identity: str
    checkpoint: str
    source: str
    trial: Trial = field(repr=False)
    precision: str = "float32"
    notes: list[str] = field(default_factory=list)
    shared: nn.Module | None = field(default=None, repr=False)
    columns: slice = field(default_factory=lambda: slice(None), repr=False)

    @property
    def is_users_code(self) -> bool:
        """Whether its architecture is code that is not ours, about whose inside nothing may be assumed."""
        return architectures.is_code(self.architecture)

    @property
    def parameters(self) -> int:
        """How many numbers the network has learnt, its head left out."""
        return sum(p.numel() for p in self.network.parameters())

    def provenance(self) -> dict[str, Any]:
        """What the store keeps beside the embeddings."""
        return {
            "identity": self.identity,
            "weights_sha256": self.weights_sha256,
            "architecture": self.architecture,
            "arch_args": self.arch_args,
            "preprocessing": self.preprocessing.as_dict(),
            "pooling": self.pooling,
            "precision": self.precision,
            "checkpoint": self.checkpoint,
            "source": self.source,
        }


def load_backbone(
    ckpt: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    name: str | None = None,
    source: str | None = None,
    pool: str = "post",
    precision: str = "float32",
    preprocessing: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load a backbone from a weight file, or by a timm, torchvision or ``xrv:`` name (fetched from their hubs).

    arch, arch_args: timm name, ``torchvision:NAME``, ``xrv:NAME`` or ``FILE.py:function``, and its keyword arguments; guessed, and
                   said aloud, if the file, its shapes or its name tell
    preprocessing: words of `Preprocessing` that override those of the file, the module or the architecture

    pool:          a word of `pooling.Point`: where the embeddings are taken

    Raises DataError if the file is missing, damaged, holds code, or does not fit the body (first mismatches named);
    UsageError for unknown names and arguments that don't go together.
    """
    return load_backbones(
        ckpt,
        arch=arch,
        arch_args=arch_args,
        name=name,
        source=source,
        pools=(pool,),
        precision=precision,
        preprocessing=preprocessing,
    )[0]


def load_backbones(
    ckpt: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    name: str | None = None,
    source: str | None = None,
    pools: Sequence[str] = ("post",),
    precision: str = "float32",
    preprocessing: Mapping[str, Any] | None = None,
    known_as: str | None = None,
) -> list[Backbone]:
    """Load a checkpoint once, as a backbone for each of several points; `embed` computes them in one pass.

    Of several, all but "post" are called `name` and their point. `known_as` stands in for the file's name where names are
    made of it. Otherwise as `load_backbone`.
    """
    ckpt = str(ckpt)
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: one of {', '.join(PRECISIONS)}")
    built, meta, args, notes = _assemble(ckpt, arch, arch_args, None)
    network = built.network
    points = list(dict.fromkeys(find_point(word, network, built.architecture) for word in pools))
    network.eval().requires_grad_(False)
    words = merge(preprocessing, meta, built.defaults)
    absent = [w for w in ("input_size", "mean", "std") if w not in words]
    if absent:
        options = {"input_size": "--input-size 3,224,224", "mean": "--mean 0.5", "std": "--std 0.5"}
        raise UsageError(
            f"{built.architecture} does not say its {', '.join(absent)}: give {' '.join(options[a] for a in absent)}, "
            f"or set attributes of these names on the module"
        )
    chosen = Preprocessing(**words)
    weights = _hash_weights(network)
    body = pooled(network, points).eval()
    trial, widths = _try_out(body, chosen, built.architecture)
    for note in notes:
        say(f"{ckpt}: {note}")
    body.to(PRECISIONS[precision])
    found, start = [], 0
    for point, width in zip(points, widths, strict=True):
        columns = slice(start, start := start + width)
        identity = {
            **built.words,
            "arch_args": args,
            "pooling": str(point),
            "preprocessing": chosen.as_dict(),
            "weights": weights,
        }
        if precision != "float32":
            identity["precision"] = precision
        found.append(
            Backbone(
                name=_name(name, known_as or _stem(ckpt), str(point), precision, alone=len(points) == 1),
                architecture=built.architecture,
                arch_args=args,
                network=body if len(points) == 1 else Columns(body, columns),
                dim=width,
                trial=trial,
                preprocessing=chosen,
                pooling=str(point),
                weights_sha256=weights,
                identity=hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest(),
                checkpoint=ckpt,
                source=source or _source(ckpt, meta),
                precision=precision,
                notes=notes,
                shared=None if len(points) == 1 else body,
                columns=slice(None) if len(points) == 1 else columns,
            )
        )
    return found


def load_network(
    ckpt: str | Path, arch: str | None, arch_args: Mapping[str, Any] | None, num_classes: int
) -> nn.Module:
    """The whole network with a fresh head of `num_classes` and the checkpoint's body, in float32: for fine-tuning.

    `get_classifier()` of the result is its head, as in timm. Errors as in `load_backbone`.
    """
    built = _assemble(str(ckpt), arch, arch_args, num_classes)[0]
    head: Any = built.network.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Conv2d) and built.architecture.startswith(TORCHVISION):
        # SqueezeNet's, before a ReLU and the pooling: from zero it would never learn.
        body = _assemble(str(ckpt), arch, arch_args, None)[0].network
        return architectures.BodyAndHead(body, head.in_channels, num_classes)
    return built.network


def _assemble(
    ckpt: str, arch: str | None, arch_args: Mapping[str, Any] | None, num_classes: int | None
) -> tuple[Built, dict[str, Any], dict[str, Any], list[str]]:
    """(network with weights, the file's own words, architecture arguments, notes for people)."""
    args = dict(arch_args or {})
    path = Path(ckpt)
    if path.is_dir() and (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    if ckpt.startswith(XRV):
        if arch not in (None, ckpt):
            raise UsageError(f"--ckpt {ckpt} is a name, so it is its own architecture: leave --arch {arch} out")
        path, arch = xray.fetch(ckpt.removeprefix(XRV)), ckpt
    if path.is_file():
        checkpoint = read_checkpoint(path, xray.pickled_classes() if arch and arch.startswith(XRV) else ())
        notes = list(checkpoint.notes)
        if arch is None:
            arch, guessed, how = architectures.guess(checkpoint)
            args = {**guessed, **args}
            notes.append(f"architecture {arch}{' ' + str(args) if args else ''} ({how})")
        built = architectures.build(arch, args, num_classes)
        if built.architecture != arch and not arch.endswith(".py"):
            notes.append(f"architecture {built.architecture} (timm has no {arch})")
        _load_into(built, checkpoint, notes)
        return built, checkpoint.meta, args, notes
    if path.is_dir():
        raise DataError(f"checkpoint '{ckpt}' is a folder without model.safetensors: name the weight file in it")
    if ckpt.endswith(SUFFIXES) or (("/" in ckpt or "\\" in ckpt) and not ckpt.startswith("hf-hub:")):
        raise DataError(missing_file(ckpt))
    if arch is not None and _bare(arch) != _bare(ckpt):
        raise UsageError(
            f"--ckpt {ckpt} is a name, so it is its own architecture: leave --arch {arch} out, or give a file"
        )
    if ckpt.startswith("hf-hub:") or timm.is_model(ckpt):
        return architectures.fetch_timm(ckpt, args, num_classes), {}, args, []
    if ckpt.removeprefix(TORCHVISION) in torchvision.models.list_models(module=torchvision.models):
        if num_classes is not None:
            body = architectures.fetch_torchvision(ckpt, args)
            built = architectures.build(body.architecture, args, num_classes)
            _load_into(built, Checkpoint(path, body.network.state_dict()), [])
            return built, {}, args, []
        return (
            architectures.fetch_torchvision(ckpt, args),
            {},
            args,
            [f"{ckpt} is torchvision's, with its default weights"],
        )
    if ckpt in architectures.ARCHITECTURES:
        raise UsageError(f"{ckpt} is an architecture without weights: give their file, --ckpt FILE --arch {ckpt}")
    raise UsageError(
        architectures.unknown_name(ckpt.removeprefix(TORCHVISION), "checkpoint name")
        + " If a file was meant: there is none of that name here."
    )


def _bare(name: str) -> str:
    return name.removeprefix(TORCHVISION).split(".")[0]


def _load_into(built: Built, checkpoint: Checkpoint, notes: list[str]) -> None:
    what = f"checkpoint {checkpoint.path} does not fit {built.architecture}"
    ordered = checkpoint.path.suffix != ".safetensors"  # those are sorted by name
    fit = fit_weights(checkpoint.state, built.named, built.heads, what, ordered=ordered)
    built.named.load_state_dict(fit.state, strict=False)  # `fit` has the whole body; a head stays as it was made
    if not all(bool(torch.isfinite(v).all()) for v in fit.state.values() if v.is_floating_point()):
        raise DataError(f"checkpoint {checkpoint.path} holds NaN or infinite weights")
    notes.extend(fit.notes)


def _hash_weights(network: nn.Module) -> str:
    h = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            h.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            h.update(value.detach().cpu().contiguous().numpy().data)
    return h.hexdigest()


def _try_out(body: nn.Module, preprocessing: Preprocessing, what: str) -> tuple[Trial, list[int]]:
    """One image through the network: the widths that come out are the only answer that holds for every network."""
    widths: list[int] = []
    hook = None
    if isinstance(body, Pooled):
        hook = body.beside.register_forward_hook(lambda _, parts, out: widths.extend(p.shape[1] for p in parts))
    try:
        trial = try_out(body, preprocessing.input_size, preprocessing.mean[0], preprocessing.std[0])
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as error:
        size = ",".join(str(s) for s in preprocessing.input_size)
        raise UsageError(
            f"{what} does not run on input of {size}: {first_line(error)}. Another --input-size, or an --arch-arg?"
        ) from None
    finally:
        if hook is not None:
            hook.remove()
    out: Any = trial.output
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 1:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise DataError(
            f"{what}: forward gives {shape} for one image, expected (1, dim): pool it to one vector an image"
        )
    return trial, widths or [int(out.shape[1])]


def _name(given: str | None, stem: str, point: str, precision: str, *, alone: bool) -> str:
    """`given` if it names one backbone, else it, or the stem, with what tells this one from others."""
    if given and alone:
        return given
    low = "" if given or precision == "float32" else f"-{precision}"
    return (given or stem) + ("" if point == "post" else f"-{point}") + low


def _stem(ckpt: str) -> str:
    """What a checkpoint is called."""
    path = Path(ckpt)
    stem = file_stem(path) if ckpt.endswith(SUFFIXES) else path.name
    if stem in _NAMELESS:
        stem = path.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", stem).strip("-.")[:100] or "backbone"


def _source(ckpt: str, meta: Mapping[str, Any]) -> str:
    if meta.get("source"):
        return str(meta["source"])
    if ckpt.startswith(XRV):
        return xray.source(ckpt.removeprefix(XRV))
    words = str(meta.get("tag") or ckpt)
    trained = re.findall(r"(?<![a-z0-9])in(1k|12k|21k|22k)(?![a-z0-9])", words.replace("_", "."))
    return "+".join(f"imagenet{t}" for t in trained) or "unknown"
