"""The peer that a good torch user would write: all episodes of a batch in one L-BFGS, products batched over episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.episodes import Episodes

ROUND = 10  # iterations between looks at the gap
MOST = 40  # rounds


def solve(x: NDArray[Any], e: Episodes, l2: float, rounds: int, dtype: str) -> Any:
    """Scores (E, q, ways) of the queries after `rounds` rounds of ten iterations."""
    import torch

    weights, bias, step, _ = _problem(x, e, l2, dtype)
    for _ in range(rounds):
        step()
    with torch.no_grad():
        query = torch.from_numpy(x[e.query]).to(weights.dtype)
        return torch.baddbmm(bias[:, None], query, weights.transpose(1, 2))


def rounds_to(
    x: NDArray[Any], e: Episodes, l2: float, best: NDArray[np.float64], gap: float, dtype: str
) -> tuple[int, float]:
    """After how many rounds every episode's objective is within `gap`, relatively, of `best`, and how near it is then.

    In float32 the line search may find no way on before: then the round after which nothing has improved.
    """
    _, _, step, objective = _problem(x, e, l2, dtype)
    nearest, when = np.inf, 0
    for done in range(1, MOST + 1):
        step()
        here = float((objective() / best - 1).max())
        if here < nearest:
            nearest, when = here, done
        if nearest <= gap or done > when + 2:
            break
    return when, nearest


def _problem(
    x: NDArray[Any], e: Episodes, l2: float, dtype: str
) -> tuple[Any, Any, Callable[[], Any], Callable[[], Any]]:
    import torch

    number = getattr(torch, dtype)
    images = torch.from_numpy(x[e.support]).to(number)
    images = images - images.mean(dim=1, keepdim=True)  # as ours: the bias is free, and fewer iterations are needed
    labels = torch.from_numpy(np.broadcast_to(e.support_labels, e.support.shape).astype(np.int64))
    weights = torch.zeros(len(images), e.ways, x.shape[1], dtype=number, requires_grad=True)
    bias = torch.zeros(len(images), e.ways, dtype=number, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights, bias],
        max_iter=ROUND,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def objective() -> Any:
        logits = torch.baddbmm(bias[:, None], images, weights.transpose(1, 2))
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)
        return loss + 0.5 * l2 * weights.square().sum(dim=(1, 2))

    def closure() -> Any:
        optimiser.zero_grad()
        total = objective().sum()
        total.backward()
        return total

    def measured() -> Any:
        with torch.no_grad():
            return objective().double().numpy()

    return weights, bias, lambda: optimiser.step(closure), measured
