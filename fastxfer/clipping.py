"""Adaptive gradient clipping (Brock et al. 2021), by timm; also of weights that lie in shares on several processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.distributed.tensor import DTensor

AGC_EPS = 1e-3  # a parameter at zero may still move


def clip_adaptively(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Shorten each unit's gradient to `factor` times its weights' norm: rows of matrices, which lie whole in one share of
    FSDP2, and whole vectors, which do not.
    """
    vectors = [p for p in parameters if isinstance(p, DTensor) and p.ndim <= 1]
    apart = {id(p) for p in vectors}
    adaptive_clip_grad([_local(p) for p in parameters if id(p) not in apart], clip_factor=factor, eps=AGC_EPS)
    if vectors:  # each one unit: its norm over all shares, of all vectors at once
        here = [_local(p) for p in vectors]
        gradients = [p.grad for p in here if p.grad is not None]
        squares = torch.stack([v.square().sum() for v in (*here, *gradients)]).detach()
        torch.distributed.all_reduce(squares)
        of_weights, of_gradients = squares.sqrt().view(2, -1)
        scales = of_weights.clamp(min=AGC_EPS) * factor / of_gradients.clamp(min=1e-6)
        for gradient, scale in zip(gradients, scales.clamp(max=1.0), strict=True):
            gradient.mul_(scale)


def _local(p: nn.Parameter) -> nn.Parameter:
    """A parameter whose data and gradient are this process's share of p's, the same memory."""
    if not isinstance(p, DTensor):
        return p
    local = nn.Parameter(p.to_local().detach())
    local.grad = p.grad.to_local() if isinstance(p.grad, DTensor) else None
    return local
