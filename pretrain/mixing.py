"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): what of a batch is mixed with what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor

from fastxfer.batches import Group, borrowed_randomness, key_of
from fastxfer.errors import UsageError
from pretrain.recipe import Recipe


@dataclass(frozen=True)
class Mix:
    """share: of an image in itself; partner: (b,) rows; box: where images are pasted, None where they are blended."""

    share: float
    partner: Tensor
    box: tuple[slice, slice] | None = None


def draw_mix(recipe: Recipe, step: int, n: int, size: int) -> Mix | None:
    """How n images of a step, `size` pixels a side, are mixed; None where the recipe does without.

    One share a step, from Beta(alpha, alpha); neighbours in the stream's random order are partners. So it depends on seed
    and step alone, and on any number of processes is the same where each has whole pairs (`check_pairs`). With both alphas,
    each step is one or the other, as likely (timm's default).
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    rng = np.random.default_rng(key_of("mix", recipe.seed, step))
    pasted = bool(recipe.cutmix) and (not recipe.mixup or rng.random() < 0.5)
    alpha = recipe.cutmix if pasted else recipe.mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.arange(n) ^ 1
    partner[partner >= n] = n - 1
    if not pasted:
        return Mix(share, partner)
    with borrowed_randomness(key_of("box", recipe.seed, step)):
        (top, bottom, left, right), share = cutmix_bbox_and_lam((n, 3, size, size), share)
    return Mix(float(share), partner, (slice(int(top), int(bottom)), slice(int(left), int(right))))


def check_pairs(recipe: Recipe, group: Group) -> None:
    """`UsageError` where a process would have half a pair."""
    if (recipe.mixup or recipe.cutmix) and group.count > 1 and recipe.batch_size % (2 * group.count):
        raise UsageError(
            f"mixup and cutmix need pairs of images: batch_size {recipe.batch_size} is no multiple of twice the "
            f"{group.count} processes"
        )
