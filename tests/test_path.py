"""The logistic probe at each of the field's 45 penalties, C = 10^linspace(-6, 5), against float64 optima of scikit-learn.

Relative objective gap at most 1e-6 in float32 and 1e-9 in float64, on real embeddings of three backbones and on awkward
supports.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.published import FIELD_C
from benchmarks.truth import BACKBONES, GAP, WORK, drawn, gaps_of_episodes, of_textures, textures


def compare(x: NDArray[np.floating], support: NDArray[np.int64], y: NDArray[np.int64], ways: int) -> None:
    for dtype, gap in gaps_of_episodes(x, support, y, ways):
        e, worst = np.unravel_index(gap.argmax(), gap.shape)
        assert gap[e, worst] <= GAP[dtype], f"{dtype}, C = {FIELD_C[worst]:.3g}, episode {e}: {gap[e, worst]:.2e}"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_penalty_on_real_embeddings(backbone: str):
    x, label = of_textures(backbone), textures()[1]
    for ways, shots in WORK:
        compare(x, drawn(label, ways, shots, 2), np.repeat(np.arange(ways), shots), ways)


AWKWARD = {
    "duplicates": lambda x: np.concatenate([x[:10], x[:10]]),
    "collinear": lambda x: np.outer(np.linspace(0.5, 2, len(x)), x[0]),
    "rank-deficient": lambda x: x[:, :3] @ x[:3],
    "scale 1e-4": lambda x: x * 1e-4,
    "scale 1e4": lambda x: x * 1e4,
    "more images than dimensions": lambda x: x[:, :4],
    "one dimension": lambda x: x[:, :1],
    "separable": lambda x: x + 5 * np.eye(20, x.shape[1])[np.arange(20) % 4],
}


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("name", AWKWARD)
def test_every_penalty_on_awkward_supports(name: str, ways: int) -> None:
    x = AWKWARD[name](np.abs(np.random.default_rng(1).normal(size=(20, 37))) + 0.5).astype(np.float32)
    compare(x, np.arange(20)[None], np.arange(20) % ways, ways)
