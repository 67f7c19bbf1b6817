"""Weight files of every kind -> tensors by name, and what the file says of itself. No code in a file is ever run."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import tomllib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastxfer.errors import DataError, first_line, nearest
from fastxfer.files import WEIGHTS, parsed

_NUMBERS = (int, float, list), "a number, or one a channel"
_WORDS_BESIDE: dict[str, tuple[Any, str]] = {
    "arch": (str, "words"),
    "arch_args": (dict, "a table"),
    "source": (str, "words"),
    "input_size": (list, "[channels, height, width]"),
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "interpolation": (str, "words"),
    "crop_pct": ((int, float), "a number"),
    "crop_mode": (str, "words"),
}
SUFFIXES = WEIGHTS
_PREFIXES = ("module.", "_orig_mod.")
# What training scripts keep beside the weights and what holds no code: timm's arguments, NumPy's best accuracy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    *(type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]


@dataclass
class Checkpoint:
    """`state`: tensors by name, in the file's order; `meta`: what the file says of itself, possibly nothing."""

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, .pt, .pth, .pth.tar or BiT .npz file; see `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: str | Path, classes: Sequence[Any] = ()) -> Checkpoint:
    """Read a weight file of any supported kind, on the CPU, in the precision it is stored in.

    classes: which a file may name besides, and so may hold a module of instead of its tensors

    A state dict is found at the top or under model / state_dict; "module." in front of names is dropped. BiT's names
    (Google's .npz, and the PyTorch file of its authors) become timm's.
    `NAME.toml` beside `NAME.pt` adds to what the file says of itself, and has the last word.
    Raises DataError if the file is missing, damaged, of no known kind, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(missing_file(str(path)))
    if path.suffix == ".safetensors":
        found = _read_safetensors(path)
    elif path.suffix == ".npz":
        found = Checkpoint(path, _read_npz(path))
    else:
        found = _read_torch(path, classes)
    if not found.state:
        raise DataError(f"checkpoint {path} holds no tensors")
    found.state = timm_names_of_bit(found.state)
    beside = path.with_name("config.json")  # timm's files on the Hugging Face hub come with one
    if "architecture" not in found.meta and beside.is_file():
        found.meta = {**_read_config(beside), **found.meta}
    words = path.with_name(file_stem(path) + ".toml")
    if words.is_file():
        found.meta = {**found.meta, **_read_words(words)}
    return found


def file_stem(path: Path) -> str:
    """File name without .pt, .pth.tar and the like."""
    name = path.name
    for suffix in (".pth.tar", ".pt.tar", *SUFFIXES):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return path.stem


def missing_file(name: str) -> str:
    return (
        f"checkpoint '{name}' is not there. It would come from: `fastxfer pretrain … --out {name}`, a download "
        f"(.safetensors, .pt, .pth, .pth.tar or a BiT .npz), or instead of a file, a timm name such as "
        f"resnet50.a1_in1k, which is fetched from the Hugging Face hub"
    )


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            meta = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"checkpoint {path} is no whole .safetensors file ({error}): fetch or write it again") from None
    meta.pop("format", None)
    for key, value in meta.items():  # safetensors keeps words only; ours are JSON in them
        try:
            meta[key] = parsed(json.loads, value)
        except ValueError:
            continue
    return Checkpoint(path, _strip(state), meta)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"checkpoint {path} is no whole .npz of plain arrays ({error})") from None


def _read_torch(path: Path, classes: Sequence[Any]) -> Checkpoint:
    with warnings.catch_warnings(), torch.serialization.safe_globals([*_HARMLESS, *classes]):
        warnings.simplefilter("ignore")  # torch's remarks on old formats
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise DataError(_why_refused(path, error)) from None
        except Exception as error:  # torch's reader of damaged bytes raises whatever it trips over, struct.error too
            raise DataError(
                f"checkpoint {path} is no whole PyTorch file ({first_line(error)}): fetch or write it again"
            ) from None
    meta: dict[str, Any] = {}
    if isinstance(content, nn.Module):
        for part in content.modules():  # pickled by a torch older than this attribute
            part.__dict__.setdefault("_non_persistent_buffers_set", set())
        content = content.state_dict()
    if isinstance(content, Mapping):
        if isinstance(content.get("meta"), Mapping):
            meta = dict(content["meta"])
        elif isinstance(content.get("arch"), str):  # torchvision's and timm's training scripts
            meta = {"architecture": content["arch"]}
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
    if not isinstance(content, Mapping):
        raise DataError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict (tensors by name)")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(str(k) for k in list(content)[:6])
        raise DataError(
            f"checkpoint {path} holds no tensors at the top or under model / state_dict (it has: {keys or 'nothing'})"
        )
    return Checkpoint(path, _strip(state), meta)


def _why_refused(path: Path, error: Exception) -> str:
    said = str(error)
    found = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)\S*)\s*:?\s*(?:GLOBAL\s+)?`?([\w.]+)", said)
    if found is None and "nsupported" not in said:
        return f"checkpoint {path} is no whole PyTorch file ({first_line(error)[:200]}): fetch or write it again"
    what = f" ({found[1]})" if found else ""
    return (
        f"checkpoint {path} is refused: besides weights it holds Python code{what}, which loading it would run. "
        f"Ask its author for a .safetensors or a plain state dict: torch.save(model.state_dict(), …)"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parsed(json.loads, path.read_text(encoding="utf-8"))
        preprocessing = config.get("pretrained_cfg") or {}
        return {**preprocessing, "architecture": config["architecture"], "arch_args": config.get("model_args") or {}}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}  # another library's config.json


def _read_words(path: Path) -> dict[str, Any]:
    """What a person wrote beside the weights (TOML): arch, arch_args, source and words of `Preprocessing`."""
    try:
        words = parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no whole TOML file ({error})") from None
    for key, value in words.items():
        if key not in _WORDS_BESIDE:
            known = f"{nearest(key, _WORDS_BESIDE)} Known are {', '.join(_WORDS_BESIDE)}"
            raise DataError(f"{path}: '{key}' is not known here.{known}")
        if not isinstance(value, _WORDS_BESIDE[key][0]):
            raise DataError(f"{path}: {key} = {value!r}, expected {_WORDS_BESIDE[key][1]}")
    if ".py" in words.get("arch", ""):
        raise DataError(f"{path}: arch '{words['arch']}' is code, which runs only when you name it yourself: --arch")
    if "arch" in words:
        words["architecture"] = words.pop("arch")
        words.setdefault("arch_args", {})
        words["told_by"] = path.name
    return words


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        while state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


# -- BiT: Google's names -> timm's (resnetv2). Kernels of the .npz are (height, width, in, out). -----------------------

_NPZ_RULES = (
    (r"root_block/standardized_conv2d/kernel", "stem.conv.weight"),
    (r"group_norm/(gamma|beta)", r"norm.\1"),
    (r"head/conv2d/(kernel|bias)", r"head.fc.\1"),
    (r"block(\d+)/unit(\d+)/([abc])/standardized_conv2d/kernel", r"stages.<\1>.blocks.<\2>.conv\3.weight"),
    (r"block(\d+)/unit(\d+)/([abc])/group_norm/(gamma|beta)", r"stages.<\1>.blocks.<\2>.norm\3.\4"),
    (r"block(\d+)/unit(\d+)/a/proj/standardized_conv2d/kernel", r"stages.<\1>.blocks.<\2>.downsample.conv.weight"),
)
_TORCH_RULES = (
    (r"root\.conv\.weight", "stem.conv.weight"),
    (r"head\.gn\.(weight|bias)", r"norm.\1"),
    (r"head\.conv\.(weight|bias)", r"head.fc.\1"),
    (r"body\.block(\d+)\.unit(\d+)\.gn([123])\.(weight|bias)", r"stages.<\1>.blocks.<\2>.norm\3.\4"),
    (r"body\.block(\d+)\.unit(\d+)\.conv([123])\.weight", r"stages.<\1>.blocks.<\2>.conv\3.weight"),
    (r"body\.block(\d+)\.unit(\d+)\.downsample\.weight", r"stages.<\1>.blocks.<\2>.downsample.conv.weight"),
)
_WORDS = {"gamma": "weight", "beta": "bias", "kernel": "weight", "conva": "conv1", "convb": "conv2", "convc": "conv3"}
_WORDS |= {"norma": "norm1", "normb": "norm2", "normc": "norm3"}


def timm_names_of_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BiT's tensors under timm's names and in its layout, from either of Google's; others as they are."""
    if any(name.endswith("root_block/standardized_conv2d/kernel") for name in state):
        rules, prefix, hwio = _NPZ_RULES, r"(?:resnet/)?", True
    elif "root.conv.weight" in state and "head.gn.weight" in state:
        rules, prefix, hwio = _TORCH_RULES, "", False
    else:
        return state
    renamed = {}
    for name, value in state.items():
        renamed[_rename(name, rules, prefix)] = value.permute(3, 2, 0, 1) if hwio and value.ndim == 4 else value
    return renamed


def _rename(name: str, rules: tuple[tuple[str, str], ...], prefix: str) -> str:
    for pattern, template in rules:
        if match := re.fullmatch(prefix + pattern, name):
            words = match.expand(template).split(".")
            words = [str(int(w[1:-1]) - 1) if w.startswith("<") else _WORDS.get(w, w) for w in words]
            return ".".join(words)
    return name
