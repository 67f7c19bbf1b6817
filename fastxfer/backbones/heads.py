"""The classification head that a checkpoint came with: what its source's classes are, as a linear map of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastxfer.backbones import _assemble, _hash_weights
from fastxfer.backbones import architecture as architectures
from fastxfer.backbones.checkpoint import Checkpoint, read_checkpoint
from fastxfer.backbones.matching import COUNTER
from fastxfer.backbones.xray import XRV
from fastxfer.errors import DataError


class SourceHead(NamedTuple):
    """logits = x @ weight.T + bias for embeddings x; weight (n_classes, dim), bias (n_classes,), float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """(n, n_classes) softmax of the logits, float32."""
        z = x.astype(np.float32) @ self.weight.T + self.bias
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        return np.asarray(z, np.float32)


def source_head(ckpt: str, attributes: Mapping[str, Any], dim: int) -> SourceHead:
    """The head of the checkpoint that embeddings were made with.

    ckpt:       weight file
    attributes: provenance of the embeddings, (n, dim): architecture, arch_args, pooling, weights_sha256

    `DataError` where it has none, where its body is not the one that embedded, and where the head is not one linear layer
    on just these embeddings, for classes of which an image has one.
    """
    architecture, args = str(attributes.get("architecture", "")), dict(attributes.get("arch_args") or {})
    if not (ckpt and architecture):
        raise DataError(
            "these embeddings do not say which weight file and architecture made them, so there is no head to read"
        )
    if attributes.get("pooling", "post") != "post":
        raise DataError(
            f"embeddings taken at '{attributes['pooling']}' are not what the head of {ckpt} is made for: embed with --pool post"
        )
    if architecture.startswith(XRV):
        raise DataError(
            f"{architecture} says of each finding whether it is there: its head gives no distribution over classes"
        )
    if not Path(ckpt).is_file():
        raise DataError(f"the head of '{ckpt}' can be read from a weight file only, and there is none of this name")
    built, meta, _, _ = _assemble(ckpt, architecture, args, None)
    if _hash_weights(built.network) != attributes["weights_sha256"]:
        raise DataError(f"the weights in {ckpt} are not those that these embeddings were made with: embed again")
    if meta.get("multi_label"):
        raise DataError(
            f"{ckpt} was trained on labels of which an image may have several: its head gives no distribution"
        )
    found = _beyond(read_checkpoint(ckpt), built)
    weights = {name: value for name, value in found.items() if name.endswith("weight")}
    if not found:
        raise DataError(f"{ckpt} has no classification head (it may have been left out when the file was written)")
    if len(weights) != 1 or len(found) > 2:
        raise DataError(f"the head of {ckpt} is more than one linear layer: {', '.join(found)}")
    ((name, weight),) = weights.items()
    bias = found.get(name.removesuffix("weight") + "bias", torch.zeros(len(weight)))
    if weight[0].numel() != dim or bias.shape != (len(weight),):
        raise DataError(f"the head of {ckpt} ({name} {tuple(weight.shape)}) does not fit embeddings of width {dim}")
    head = SourceHead(weight.reshape(len(weight), dim).float().numpy(), bias.float().numpy())
    if not architectures.is_code(architecture):
        _check_linear(head, ckpt, architecture, args, attributes)
    return head


def _beyond(checkpoint: Checkpoint, built: architectures.Built) -> dict[str, Tensor]:
    """Tensors of a file that are not the body's, by their names there."""
    given = {n: v for n, v in checkpoint.state.items() if not n.endswith(COUNTER)}  # which older files lack
    body = {n for n in built.named.state_dict() if not n.endswith(COUNTER)}
    body = {n for n in body if not any(n.startswith(f"{head}.") for head in built.heads)}
    if not body <= set(given):  # the file has other names, in the same order: the body comes first
        return dict(list(given.items())[len(body) :])
    return {n: v for n, v in given.items() if n not in body}


def _check_linear(
    head: SourceHead, ckpt: str, architecture: str, args: dict[str, Any], attributes: Mapping[str, Any]
) -> None:
    """Let the whole network classify one image of noise: its answer must be the head's of what the head is given."""
    network = _assemble(ckpt, architecture, args, len(head.weight))[0].network.eval()
    classifier: Any = network.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        raise DataError(f"the head of {architecture} is {type(classifier).__name__}, not one linear layer")
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    size = attributes.get("preprocessing", {}).get("input_size", (3, 224, 224))
    with torch.inference_mode():
        classifier.weight.copy_(torch.from_numpy(head.weight).view(classifier.weight.shape))
        if classifier.bias is not None:
            classifier.bias.copy_(torch.from_numpy(head.bias))
        said = network(torch.randn(1, *size, generator=torch.Generator().manual_seed(0)))
    hook.remove()
    given = seen[0].flatten(1).numpy()
    fits = given.shape[1] == head.weight.shape[1] and said.shape == (1, len(head.weight))
    if not fits or not np.allclose(given @ head.weight.T + head.bias, said.numpy(), rtol=1e-3, atol=1e-3):
        raise DataError(
            f"the head of {architecture} is not linear in the embeddings: between them there is more than a layer"
        )
