"""What a pass over a target's images makes of them: embeddings by a backbone, or pixels to be kept."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from fastxfer import __version__
from fastxfer.backbones import Backbone, Preprocessing
from fastxfer.embed.forward import Forward
from fastxfer.store import EmbeddingStore, Team, Writer
from fastxfer.targets.table import Target

CONTENT = "content"
DIGEST_BYTES = 16


class Job(ABC):
    """What is made of each image, and where it goes.

    name, dim, dtype:  of the array in `store`;  batch: images at a time
    source:            what it is made of: pixels of a geometry (`Preprocessing.geometry_key`), or CONTENT
    maker, columns:    jobs of one maker (an object's id) are made at once, each is some columns of what comes out
    out, missing:      of the target that was opened last;  seconds: spent on it
    """

    name: str
    dim: int
    dtype: str
    batch: int
    source: str
    maker: int
    columns: slice
    store: EmbeddingStore
    attributes: dict[str, Any]
    out: Writer
    missing: list[range]
    seconds: float

    @abstractmethod
    def make(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 (batch, c, h, w) -> (batch, columns of all jobs of this maker)."""


def writer(job: Job, target: Target, block_rows: int | None, team: Team | None) -> AbstractContextManager[Writer]:
    """Hold the job's array of a target for writing, alone or with a team."""
    return job.store.writer(
        job.name,
        target.name,
        dim=job.dim,
        dtype=job.dtype,
        attributes=job.attributes,
        block_rows=block_rows,
        team=team,
    )


def begin(job: Job, out: Writer) -> None:
    """Begin a target, whose rows go to `out`."""
    job.out, job.missing, job.seconds = out, out.missing, 0.0


class EmbedJob(Job):
    """Embeddings by a backbone."""

    def __init__(
        self,
        backbone: Backbone,
        store: EmbeddingStore,
        batch: int,
        dtype: str,
        device: torch.device,
        compiled: str = "",
    ) -> None:
        self.backbone, self.device, self.compiled = backbone, device, compiled
        self.name, self.dim, self.dtype = backbone.name, backbone.dim, dtype
        self.batch, self.store = batch, store
        self.preprocessing, self.source = backbone.preprocessing, backbone.preprocessing.geometry_key
        self.maker, self.columns = id(backbone.shared or backbone), backbone.columns
        self.attributes = {
            **backbone.provenance(),
            "parameters": backbone.parameters,
            "flops": backbone.trial.flops,
            "dtype": dtype,
            "code_version": __version__,
            "torch_version": torch.__version__,
            "timm_version": timm.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": 1 if device.type == "cpu" else torch.get_num_threads(),
            "batch_size": batch,
            **({"compiled": compiled} if compiled else {}),
        }
        self._forward: Forward | None = None

    def prepare(self, jobs: Iterable[EmbedJob]) -> None:
        """Get ready for `make`, which comes from several threads; jobs of one maker share what they need."""
        ready = (job._forward for job in jobs if job.maker == self.maker and job._forward)
        self._forward = next(ready, None) or Forward(self.backbone, self.device, self.batch, self.compiled)

    def make(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        assert self._forward is not None
        return self._forward(pixels)


class PixelJob(Job):
    """The pixels themselves, decoded and resized, for backbones to come: `--cache disk`."""

    def __init__(self, preprocessing: Preprocessing, store: EmbeddingStore, batch: int) -> None:
        shape = preprocessing.input_size
        self.name = pixels_name(preprocessing)
        self.dim, self.dtype = int(np.prod(shape)), "uint8"
        self.batch, self.store = batch, store
        self.preprocessing, self.source = preprocessing, preprocessing.geometry_key
        self.maker, self.columns = id(self), slice(None)
        self.attributes = {"identity": f"pixels {preprocessing.geometry_key}", "input_size": list(shape)}

    def make(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        return pixels.reshape(len(pixels), -1)


class ContentJob(Job):
    """A digest of each image's bytes, by which its embeddings are found again."""

    def __init__(self, store: EmbeddingStore, batch: int) -> None:
        self.name, self.source = CONTENT, CONTENT
        self.dim, self.dtype = DIGEST_BYTES, "uint8"
        self.batch, self.store = batch, store
        self.maker, self.columns = id(self), slice(None)
        self.attributes = {"identity": f"BLAKE2b, {DIGEST_BYTES} bytes, of an image's bytes"}

    def make(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        return pixels


def pixels_name(preprocessing: Preprocessing) -> str:
    """Name of the array that keeps the pixels of this geometry."""
    c, h, w = preprocessing.input_size
    return f"{c}x{h}x{w}-{hashlib.sha256(preprocessing.geometry_key.encode()).hexdigest()[:12]}"
