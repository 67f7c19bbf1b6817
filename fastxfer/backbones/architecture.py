"""An architecture by name -> a network: timm's, torchvision's, torchxrayvision's, a package's or a user's own. And the guess where
none is named."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from fastxfer.backbones import xray
from fastxfer.backbones.checkpoint import Checkpoint, file_stem
from fastxfer.backbones.xray import XRV
from fastxfer.errors import DataError, UsageError, first_line, nearest
from fastxfer.plugins import Catalogue

TORCHVISION = "torchvision:"
_USER_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>[A-Za-z_]\w*))?")
_BIT_BLOCKS = {6: 50, 23: 101, 36: 152}  # blocks of the third stage -> depth
_PROBE_CLASSES = 1009  # a number of classes by which a head is recognised


@dataclass
class Built:
    """A network as its author names its parts (so that weights fit), and how it is used.

    network: without head if `num_classes` was None, else with one of that many classes (`get_classifier()` returns it)
    named:   the part of it whose tensors are named as the author's checkpoints name them
    heads:   prefixes of the classifier's names, which a checkpoint may have, lack, or have in another width
    defaults: preprocessing, as far as the architecture knows it
    words:   what identifies the architecture, wherever its file lies
    """

    network: nn.Module
    named: nn.Module
    architecture: str
    heads: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)


def _whose(name: str) -> str:
    if timm.is_model(name):
        return "timm"
    return "torchvision" if name in torchvision.models.list_models(module=torchvision.models) else ""


def _wrong(name: str, thing: object) -> str:
    return "" if inspect.isfunction(thing) else f"it is {thing!r}, expected a function that returns a torch module"


# What packages bring: functions (**arch_args) -> network without head, as in a user's own file.
ARCHITECTURES: Catalogue[Callable[..., nn.Module]] = Catalogue("backbones", {}, _wrong, _whose)


def is_code(architecture: str) -> bool:
    """Whether an architecture is a user's or a package's own code, about whose inside nothing may be assumed."""
    return ".py" in architecture or architecture in ARCHITECTURES


def build(arch: str, arch_args: Mapping[str, Any], num_classes: int | None) -> Built:
    """Make the network of an architecture name, randomly initialised, without head if `num_classes` is None.

    Raises UsageError for an unknown name or argument, DataError if a user's file fails.
    """
    if match := _USER_FILE.fullmatch(arch):
        return _build_user(Path(match["file"]), match["function"] or "build", arch_args, num_classes)
    if arch.startswith(XRV):
        return _build_xray(arch.removeprefix(XRV), arch_args, num_classes)
    if arch.startswith(TORCHVISION):
        return _build_torchvision(arch.removeprefix(TORCHVISION), arch_args, num_classes)
    if arch in ARCHITECTURES:
        return _build_brought(arch, arch_args, num_classes)
    if timm.is_model(arch):
        return _build_timm(arch, arch_args, num_classes)
    if arch in torchvision.models.list_models(module=torchvision.models):
        return _build_torchvision(arch, arch_args, num_classes)
    raise UsageError(unknown_name(arch, "architecture"))


def unknown_name(name: str, what: str) -> str:
    known = [*ARCHITECTURES, *timm.list_models(), *torchvision.models.list_models(module=torchvision.models)]
    return f"unknown {what} '{name}': neither timm nor torchvision has it.{nearest(name.split('.')[0], dict.fromkeys(known))}"


def _call(make: Any, what: str, arch_args: Mapping[str, Any], **fixed: Any) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "weights will be initialised …": they are loaded right after
            network: nn.Module = make(**fixed, **arch_args)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, NotImplementedError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in arch_args.items()) or "none"
        raise UsageError(f"{what} cannot be made with --arch-arg {given}: {type(error).__name__}: {error}") from None
    return network


def _build_timm(arch: str, arch_args: Mapping[str, Any], num_classes: int | None, pretrained: bool = False) -> Built:
    network = _call(
        timm.create_model,
        f"timm's {arch}",
        arch_args,
        model_name=arch,
        num_classes=0 if num_classes is None else num_classes,
        pretrained=pretrained,
    )
    return _built_timm(network, arch)


def _built_timm(network: nn.Module, arch: str) -> Built:
    cfg: dict[str, Any] = dict(network.pretrained_cfg or {})  # type: ignore[arg-type]
    name = arch.split(".")[0]
    if name.endswith("_bit") and "." not in arch and not arch.startswith("hf-hub:"):
        # Pre-trained at 224; timm's untagged default is the one fine-tuned on ImageNet at 448 or 480.
        cfg = timm.get_pretrained_cfg(f"{name}.goog_in21k", allow_unregistered=True).to_dict() or cfg  # type: ignore[union-attr]
    heads = cfg.get("classifier") or ("head", "fc", "classifier")
    return Built(
        network=network,
        named=network,
        architecture=arch,
        heads=(heads,) if isinstance(heads, str) else tuple(heads),
        defaults=timm.data.resolve_data_config(pretrained_cfg=cfg, model=network),
        words={"architecture": name},
    )


def fetch_timm(name: str, arch_args: Mapping[str, Any], num_classes: int | None) -> Built:
    """A timm model with its weights from the Hugging Face hub (or its cache)."""
    if not name.startswith("hf-hub:") and not timm.models.is_model_pretrained(name):
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        hint = f" with weights there are: {', '.join(tags[:8])}" if tags else ""
        raise UsageError(f"timm has no pre-trained weights for '{name}';{hint} or give a file and --arch {name}")
    try:
        network = timm.create_model(name, pretrained=True, num_classes=num_classes or 0, **arch_args)
    except (TypeError, AssertionError) as error:
        raise UsageError(f"timm's {name} cannot be made with these --arch-arg: {error}") from None
    except Exception as error:  # the hub's client raises what its HTTP library raises
        raise DataError(
            f"the weights of timm's '{name}' could not be fetched ({first_line(error)}). Without a network: fetch the file "
            f"elsewhere and give it with --ckpt FILE --arch {name}"
        ) from None
    return _built_timm(network, name)


# -- torchvision -------------------------------------------------------------------------------------------------------


class _Headed(nn.Module):
    """A network whose classifier can be asked for, as timm's can."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = network
        self._head = head

    def get_classifier(self) -> nn.Module:
        return self.network.get_submodule(self._head)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(images)
        return out


def _build_torchvision(name: str, arch_args: Mapping[str, Any], num_classes: int | None, fetch: bool = False) -> Built:
    if name not in torchvision.models.list_models(module=torchvision.models):
        known = torchvision.models.list_models(module=torchvision.models)
        raise UsageError(f"unknown architecture '{TORCHVISION}{name}'.{nearest(name, known)}")
    weights = list(torchvision.models.get_model_weights(name))
    make = torchvision.models.get_model
    what = f"torchvision's {name}"
    classes = _PROBE_CLASSES if num_classes is None else num_classes
    if fetch:
        chosen = torchvision.models.get_model_weights(name)["DEFAULT"]
        try:
            network = make(name, weights=chosen, **arch_args)
        except Exception as error:
            raise DataError(f"the weights of {what} could not be fetched ({error}); fetch the file elsewhere") from None
        classes = 1000
    else:
        chosen = weights[0]
        network = _call(make, what, arch_args, name=name, weights=None, num_classes=classes)
    *auxiliary, head = _find_heads(network, classes) or [""]
    if not head:
        raise UsageError(f"{what} has no classifier that fastxfer recognises")
    heads = (*(name for name in auxiliary if name.lower().startswith("aux")), head)
    if num_classes is None:
        parent, _, child = head.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, nn.Identity())
    crop = chosen.transforms()
    side, resized = crop.crop_size[0], crop.resize_size[0]
    share = side / resized
    defaults = {
        "input_size": (3, side, side),
        "mean": tuple(crop.mean),
        "std": tuple(crop.std),
        "interpolation": crop.interpolation.value,
        "crop_pct": share if int(side / share) == resized else side / (resized + 0.001),
    }
    wrapped = network if num_classes is None else _Headed(network, head)
    return Built(wrapped, network, f"{TORCHVISION}{name}", heads, defaults, {"architecture": f"{TORCHVISION}{name}"})


def fetch_torchvision(name: str, arch_args: Mapping[str, Any]) -> Built:
    """A torchvision model, without head, with torchvision's default weights."""
    return _build_torchvision(name.removeprefix(TORCHVISION), arch_args, None, fetch=True)


def _find_heads(network: nn.Module, classes: int) -> list[str]:
    """Names of the layers that have as many outputs as there are classes: the classifier is the last of them."""
    found = []
    for name, module in network.named_modules():
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d) and outputs == classes:
            found.append(name)
    return found


# -- torchxrayvision ---------------------------------------------------------------------------------------------------


def _build_xray(name: str, arch_args: Mapping[str, Any], num_classes: int | None) -> Built:
    if arch_args:
        raise UsageError(f"--arch-arg: {XRV}{name} takes none")
    network, head = xray.make(name, num_classes or xray.labels(name))
    body = network
    if num_classes is not None:
        body = _Headed(network, head)
    elif head == "classifier":
        body = xray.DenseFeatures(network)
    else:
        setattr(network, head, nn.Identity())
    words = {"architecture": f"{XRV}{name}"}
    return Built(body, network, f"{XRV}{name}", (head,), xray.preprocessing(name), words)


# -- code of a user, or of a package -------------------------------------------------------------------------------------------------


class BodyAndHead(nn.Module):
    """A linear layer on embeddings of `dim`; `get_classifier()` returns it, as in timm."""

    def __init__(self, body: nn.Module, dim: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(dim, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images))
        return out


def _build_user(file: Path, function: str, arch_args: Mapping[str, Any], num_classes: int | None) -> Built:
    if not file.is_file():
        raise DataError(f"--arch {file}: no such file")
    code = file.read_bytes()
    name = f"fastxfer_user_{hashlib.sha256(str(file.resolve()).encode() + code).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles in it look themselves up there
    sys.path.insert(0, str(file.resolve().parent))  # its neighbours can be imported
    what = f"{file}:{function}"
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(what, error) from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    make = getattr(module, function, None)
    if not callable(make):
        functions = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == name]
        raise UsageError(f"--arch {what}: no such function there.{nearest(function, functions)}")
    return _built_of_code(make, what, {"architecture": f"{file.name}:{function}"}, code, arch_args, num_classes)


def _build_brought(name: str, arch_args: Mapping[str, Any], num_classes: int | None) -> Built:
    make = ARCHITECTURES[name]
    (plugin,) = ARCHITECTURES.brought(name)
    words = {"architecture": name, "package": plugin.package.split()[0]}
    return _built_of_code(make, name, words, Path(inspect.getfile(make)).read_bytes(), arch_args, num_classes)


def _built_of_code(
    make: Callable[..., Any],
    what: str,
    words: dict[str, Any],
    code: bytes,
    arch_args: Mapping[str, Any],
    num_classes: int | None,
) -> Built:
    """The network that a function of one's own makes; the content of its file is part of its identity."""
    try:
        network = make(**arch_args)
    except Exception as error:
        raise _failed(what, error) from error
    if not isinstance(network, nn.Module):
        raise DataError(f"--arch {what} returned {type(network).__name__}, expected a torch module")
    defaults = {
        k: getattr(network, k, None) for k in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    }
    defaults = {k: v for k, v in defaults.items() if isinstance(v, int | float | str | list | tuple)}
    built = Built(network, network, what, (), defaults, {**words, "code_sha256": hashlib.sha256(code).hexdigest()})
    if num_classes is not None:
        size = defaults.get("input_size")
        if not isinstance(size, list | tuple) or len(size) != 3:
            raise UsageError(f"{what}: the module needs an attribute input_size = (channels, height, width)")
        with torch.inference_mode():
            dim = network.eval()(torch.zeros(1, *size)).shape[-1]
        built.network = BodyAndHead(network, dim, num_classes)
    return built


def _failed(what: str, error: Exception) -> DataError:
    return DataError(f"--arch {what} failed: {type(error).__name__}: {error}")


# -- guessing ----------------------------------------------------------------------------------------------------------


def guess(checkpoint: Checkpoint) -> tuple[str, dict[str, Any], str]:
    """Architecture and arguments of a file that was given without --arch, and how they were found.

    Raises UsageError saying what to give if neither the file, its shapes nor its name tell.
    """
    meta = checkpoint.meta
    if isinstance(meta.get("architecture"), str):
        if _USER_FILE.fullmatch(meta["architecture"]):
            raise UsageError(
                f"{checkpoint.path} says that its architecture is code ({meta['architecture']}), which runs only when you "
                f"name it: --arch FILE.py:function"
            )
        args = meta.get("arch_args")
        return (
            meta["architecture"],
            dict(args) if isinstance(args, Mapping) else {},
            f"{meta.get('told_by', 'the file')} says so",
        )
    bit = _guess_bit(checkpoint.state)
    if bit:
        return bit, {}, "from the shapes"
    stem = file_stem(checkpoint.path)
    for known, prefix in (
        (timm.list_models(), ""),
        (torchvision.models.list_models(module=torchvision.models), TORCHVISION),
    ):
        fits = [n for n in known if re.match(rf"{re.escape(n)}(?![A-Za-z0-9])", stem)]
        if fits:
            tagged = stem if not prefix and timm.is_model(stem) else max(fits, key=len)
            return prefix + tagged, {}, "from the file's name"
    inside = [n for n in timm.list_models() if re.search(rf"(?<![A-Za-z0-9]){re.escape(n)}(?![A-Za-z0-9])", stem)]
    hint = f"perhaps --arch {max(inside, key=len)}, which its name holds; else " if inside else ""
    raise UsageError(
        f"which architecture is {checkpoint.path}? Neither the file nor its shapes nor its name say: give {hint}--arch NAME "
        f"(timm's or torchvision's names, xrv:NAME), or --arch FILE.py:build for a network of your own"
    )


def _guess_bit(state: Mapping[str, Tensor]) -> str | None:
    stem = state.get("stem.conv.weight")
    if stem is None or stem.ndim != 4 or stem.shape[0] % 64 or "stages.0.blocks.0.norm1.weight" not in state:
        return None
    blocks = {m[1] for name in state if (m := re.match(r"stages\.2\.blocks\.(\d+)\.", name))}
    name = f"resnetv2_{_BIT_BLOCKS.get(len(blocks), 0)}x{stem.shape[0] // 64}_bit"
    return name if timm.is_model(name) else None
