"""Calls of the compiled module on a CUDA device: torch holds the memory and names the stream.

`place` is where torch keeps things; "cuda" is what users get. On "cpu" the same addresses go to the CPU's ops, which is how
callers are tested where no device is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backend import compiled

Array = NDArray[Any]

# Memory for the blocks of threads that work at the same time, and as many blocks as are worth having.
WORK_BYTES = 2 * 2**30
BLOCKS_PER_PROCESSOR = 8
# Images below which a block's share of them is not worth a block.
LEAST_SHARE = 1024


def tensors(place: str, *arrays: Array) -> tuple[Any, ...]:
    """Arrays as torch tensors at a place."""
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(a)).to(place) for a in arrays)


def blocks_at_once(place: str) -> int:
    """How many blocks of threads are worth having on a device."""
    import torch

    return BLOCKS_PER_PROCESSOR * int(torch.cuda.get_device_properties(place).multi_processor_count)


def launch(params: Any, count: int, place: str, *, wide: bool = False, threads: int = 1) -> None:
    """Run an op's params, `count` episodes or items, on torch's current stream; nothing is waited for."""
    import torch

    if place == "cpu":
        params.run(threads)
        return
    size = compiled.cuda_bytes(params, wide)
    blocks = max(1, min(blocks_at_once(place), count, WORK_BYTES // max(size, 1)))
    memory = torch.empty(blocks * size, dtype=torch.uint8, device=place)
    compiled.cuda_run(params, wide, memory.data_ptr(), size, blocks, torch.cuda.current_stream().cuda_stream)


def nearest(images: Any, query: Any, k: int, shares: int = 0) -> tuple[Array, Array]:
    """(q, k) inner products, largest first, and rows of `images`, of equals the lower row first; k at most n.

    images (n, d), query (q, d) float32 tensors at one place. shares: parts of the images that are looked through side by
    side, so that few queries keep a device busy; 0: as many as it takes. Memory beyond both: 12·q·k·shares bytes.
    """
    import torch

    (n, dim), q, place = images.shape, len(query), images.device.type
    if not shares:
        tiles = -(-q // compiled.NeighboursAt.tile)
        shares = max(1, min(blocks_at_once(place) // max(tiles, 1), n // max(LEAST_SHARE, k)))
    products = torch.empty((q, shares * k), dtype=torch.float32, device=place)
    rows = torch.empty((q, shares * k), dtype=torch.int64, device=place)
    params = compiled.NeighboursAt(
        n, q, dim, images.data_ptr(), query.data_ptr(), k, shares, products.data_ptr(), rows.data_ptr()
    )
    launch(params, params.items, place)
    # The lists of the shares follow each other as the images do, so a stable sort leaves the lower row first.
    best, order = torch.sort(products, dim=1, descending=True, stable=True)
    return best[:, :k].cpu().numpy(), rows.gather(1, order[:, :k]).cpu().numpy()
