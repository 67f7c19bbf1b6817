"""What L-BFGS remembers: steps, the changes of the gradient that came with them, and how they multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


class History:
    """The last `capacity` pairs of weights (d + 1, columns), of each group of columns on its own.

    They lie in two arrays, so that a direction costs each of them twice two products by BLAS, not two passes a pair:
    what the two loops of Nocedal (1980) do one pair after another is the solution of two triangular systems (Byrd,
    Nocedal & Schnabel 1994), of sides as short as the history. Their matrix, of each step times each change, is kept.
    """

    def __init__(self, d: int, columns: int, groups: int, capacity: int) -> None:
        self.shape, self.groups, self.capacity = (d, columns), groups, capacity
        size = d * columns // groups
        self.steps = np.empty((groups, capacity, size))
        self.changes = np.empty((groups, capacity, size))
        self.products = np.zeros((capacity, capacity, groups))  # step i · change j
        self.slots: list[int] = []  # from the oldest to the newest
        self.l2 = 0.0

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, step: Floats, change: Floats, steepest: Floats) -> None:
        """A pair; a group whose step is 0 has arrived, and learns nothing from it.

        Nor does one whose pair is rounding: where the Hessian has no eigenvalue above `steepest` (groups,), no change is
        longer for its product with the step. Such a pair would say that nothing is to gain where much is.
        """
        slot = len(self.slots) if len(self.slots) < self.capacity else self.slots.pop(0)
        self.slots.append(slot)
        s, y = self._flat(step), self._flat(change)
        self.steps[:, slot], self.changes[:, slot] = s, y
        rounding = ~(np.einsum("gi,gi->g", y, y) <= steepest * np.einsum("gi,gi->g", s, y))
        self.steps[rounding, slot] = self.changes[rounding, slot] = 0.0
        self._multiply(slot)

    def last_change(self) -> Floats:
        return self._back(self.changes[:, self.slots[-1]])

    def last_product(self) -> Floats:
        """(groups,) step times change of the newest pair."""
        return self.products[self.slots[-1], self.slots[-1]]

    def move_to(self, l2: float) -> None:
        """The changes that the same steps would have brought at this penalty; the last row, the bias, has none."""
        if self.slots and l2 != self.l2:
            added = np.full(self.shape, l2 - self.l2)
            added[-1] = 0.0
            flat = self._flat(added)
            for slot in self.slots:
                self.changes[:, slot] += flat * self.steps[:, slot]
            for slot in self.slots:
                self._multiply(slot)
        self.l2 = l2

    def descent(self, inverse: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        """The function that takes a gradient g to −H g, where `inverse` is the first guess of H."""
        if not self.slots:
            return lambda g: inverse(-g)
        n = max(self.slots) + 1
        steps, changes = self.steps[:, :n], self.changes[:, :n]
        diagonal = self.products[np.arange(n), np.arange(n)]
        rho = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)

        def descend(g: Floats) -> Floats:
            right = _times(steps, self._flat(-g))
            alpha = np.zeros_like(right)
            for i in reversed(self.slots):
                alpha[i] = rho[i] * (right[i] - (self.products[i, :n] * alpha).sum(axis=0))
            turned = inverse(-g - self._back(_sum(changes, alpha)))
            right = _times(changes, self._flat(turned))
            gamma = np.zeros_like(right)
            for i in self.slots:
                beta = rho[i] * (right[i] + (self.products[:n, i] * gamma).sum(axis=0))
                gamma[i] = np.where(rho[i] > 0, alpha[i] - beta, 0.0)
            return turned + self._back(_sum(steps, gamma))

        return descend

    def _multiply(self, slot: int) -> None:
        """The products of which pair `slot` has a part; of the others', none changes."""
        n = max(self.slots) + 1
        self.products[:n, slot] = _times(self.steps[:, :n], self.changes[:, slot])
        self.products[slot, :n] = _times(self.changes[:, :n], self.steps[:, slot])

    def _flat(self, v: Floats) -> Floats:
        """(groups, size)"""
        return v.reshape(1, -1) if self.groups == 1 else np.ascontiguousarray(v.T)

    def _back(self, flat: Floats) -> Floats:
        return flat.reshape(self.shape) if self.groups == 1 else flat.T


def _times(vectors: Floats, v: Floats) -> Floats:
    """(groups, n, size) and (groups, size): their inner products (n, groups)."""
    return np.ascontiguousarray((vectors @ v[:, :, None])[:, :, 0].T)


def _sum(vectors: Floats, weights: Floats) -> Floats:
    """(groups, size) of n vectors of each group with weights (n, groups)."""
    return (weights.T[:, None, :] @ vectors)[:, 0]
