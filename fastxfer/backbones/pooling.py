"""Where in a network embeddings are taken, and a network that takes them at several points in one pass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastxfer.errors import UsageError

POOLINGS = ("post", "before", "cls", "avg", "both")
_WORD = re.compile(rf"({'|'.join(POOLINGS)})(-[1-9]\d*)?")


@dataclass(frozen=True)
class Point:
    """A point in a network; its word ("avg", "cls-2") is what stores and identities know it by.

    pool:   "post" = what the classifier sees; "before" = BiT's body averaged before its last GroupNorm + ReLU;
            "cls" = the class token; "avg" = mean over patches or pixels, without class and register tokens;
            "both" = cls and avg beside each other, (2 dim)
    layer:  counted from the last (-1): blocks of a transformer, stages of a CNN; None = the end
    """

    pool: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.pool + ("" if self.layer is None else str(self.layer))


def find_point(word: str, network: nn.Module, architecture: str) -> Point:
    """The point that a word means in this network. UsageError if there is no such word, or no such point.

    A layer after "post" is pooled as the network pools its last: class token, or mean.
    """
    match = _WORD.fullmatch(word)
    if match is None:
        raise UsageError(
            f"--pool {word}: one of {', '.join(POOLINGS)}, or with a --layer counted from the last (-1, -2 …)"
        )
    pool, layer = match[1], None if match[2] is None else int(match[2])
    if pool == "post" and layer is None:
        return Point(pool)
    if pool == "before" and (layer is not None or type(network).__name__ != "ResNetV2"):
        raise UsageError(
            f"--pool before is for BiT (timm's resnetv2_*), without --layer: {architecture} has no such point"
        )
    if not _is_timm_like(network):
        raise UsageError(
            f"--pool {word}: {architecture} gives its embeddings as a whole, so only --pool post is known; "
            f"timm's networks (forward_features) can be pooled in other ways"
        )
    if pool == "post":
        pool = "cls" if getattr(network, "global_pool", "") == "token" else "avg"
    if pool in ("cls", "both"):
        if not _ends_in_tokens(network) or getattr(network, "cls_token", None) is None:
            raise UsageError(f"--pool {pool}: {architecture} has no class token; --pool avg, or post")
        if layer not in (None, -1) and not _has_tokens(network):
            raise UsageError(f"--pool {pool}{layer}: {architecture} gives its class token at its end only")
    if layer == -1 and _ends_in_tokens(network):
        layer = None  # the last block, normed
    elif layer is None and pool == "avg" and not _ends_in_tokens(network):
        layer = -1  # the last stage
    if layer is not None:
        _check_layer(layer, network, architecture)
    return Point(pool, layer)


def pooled(network: nn.Module, points: Sequence[Point]) -> nn.Module:
    """A network that gives the embeddings of all points beside each other, (b, sum of their dims)."""
    return Pooled(network, points) if _is_timm_like(network) else network


def _is_timm_like(network: nn.Module) -> bool:
    return hasattr(network, "forward_features") and hasattr(network, "forward_head")


def _ends_in_tokens(network: nn.Module) -> bool:
    """Whether its features are tokens (b, n, dim), class and register tokens first."""
    count = getattr(network, "num_prefix_tokens", None)
    return count is not None and getattr(network, "output_fmt", "NLC") == "NLC"


def _has_tokens(network: Any) -> bool:
    """Whether its layers, too, can be had as tokens, apart from class and register tokens."""
    forward = getattr(network, "forward_intermediates", None)
    return forward is not None and "return_prefix_tokens" in inspect.signature(forward).parameters


def _check_layer(layer: int, network: Any, architecture: str) -> None:
    known = len(getattr(network, "feature_info", ())) if hasattr(network, "forward_intermediates") else 0
    if -layer > known:
        there = f"has {known} layers, -1 (the last) to -{known}" if known else "does not give away its layers"
        raise UsageError(f"--layer {layer}: {architecture} {there}")


class Pooled(nn.Module):
    """A timm network up to its points, computed once for all of them; what no point needs is left out.

    Layers of transformers go through the last norm, as DINO's and timm's own do; stages of CNNs are taken as they are.
    """

    def __init__(self, network: nn.Module, points: Sequence[Point]) -> None:
        super().__init__()
        self.network = network
        self.points = tuple(points)
        self.tokens = _has_tokens(network)
        known = len(getattr(network, "feature_info", ()))
        # By timm's number; "before" is the last stage as it is.
        self.layer_of = {p: -1 if p.pool == "before" else p.layer for p in points}
        self.layer_of = {p: None if layer is None else known + layer for p, layer in self.layer_of.items()}
        self.layers = sorted({layer for layer in self.layer_of.values() if layer is not None})
        self.needs_end = None in self.layer_of.values()
        self.beside = Beside()

    def forward(self, images: Tensor) -> Tensor:
        """Float images (b, c, h, w) -> (b, sum of dims)."""
        network: Any = self.network
        end, taken = None, []
        if self.layers:
            how = {"output_fmt": "NLC", "norm": True} if self.tokens else {}
            if self.tokens and network.num_prefix_tokens:
                how["return_prefix_tokens"] = True
            taken = network.forward_intermediates(
                images, indices=self.layers, intermediates_only=not self.needs_end, stop_early=not self.needs_end, **how
            )
            if self.needs_end:
                end, taken = taken
        else:
            end = network.forward_features(images)
        parts = []
        for point in self.points:
            layer = self.layer_of[point]
            parts.append(
                self._end(point, end) if layer is None else self._layer(point, taken[self.layers.index(layer)])
            )
        out: Tensor = parts[0] if len(parts) == 1 else self.beside(*parts)
        return out

    def _end(self, point: Point, end: Any) -> Any:
        network: Any = self.network
        if point.pool == "post":
            return network.forward_head(end, pre_logits=True)
        prefix = network.num_prefix_tokens
        return self._of_tokens(point, end[:, :prefix], end[:, prefix:])

    def _layer(self, point: Point, taken: Any) -> Any:
        if not self.tokens:
            return taken.mean((2, 3))
        patches, prefix = taken if isinstance(taken, tuple) else (taken, None)
        return self._of_tokens(point, prefix, patches)

    def _of_tokens(self, point: Point, prefix: Any, patches: Any) -> Any:
        network: Any = self.network
        norm = getattr(network, "fc_norm", None) or nn.Identity()  # of networks that norm what they have pooled
        parts = [norm(prefix[:, 0])] if point.pool in ("cls", "both") else []
        if point.pool in ("avg", "both"):
            parts.append(norm(patches.mean(1)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Beside(nn.Module):
    """Embeddings of several points -> one tensor, beside each other. A module, so that what it is given can be seen."""

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)


class Columns(nn.Module):
    """Some columns of what a network gives."""

    def __init__(self, network: nn.Module, columns: slice) -> None:
        super().__init__()
        self.network, self.columns = network, columns

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(images)[:, self.columns]
        return out
