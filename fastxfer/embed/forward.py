"""A backbone on a device, ready for batches of one size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastxfer.backbones import PRECISIONS, Backbone
from fastxfer.backbones.lean import TOLERANCE, lean
from fastxfer.errors import DataError, UsageError, first_line
from fastxfer.progress import say
from fastxfer.ranks import local_rank

# On a CPU a forward pass does about this much: small networks want several images at once, large ones are as fast with one,
# whose activations stay in the cache from layer to layer.
_CPU_FLOPS = 4e9
_CPU_MOST = 64
_GPU_BATCH = 256
# Ways of `--compile`, and torch.compile's name for them: "graphs" replays a batch's kernels as one CUDA graph.
COMPILED = {"plain": "default", "graphs": "reduce-overhead"}


class Forward:
    """uint8 pixels (b, c, h, w) -> embeddings (b, dim) float32, `batch` images at a time.

    compiled: by torch.compile, beyond what is done anyway: one of COMPILED, or "" for not at all

    Of a backbone that shares its network with others, the embeddings of all of them, beside each other.

    Safe to call from several threads at once on a CPU, where each call computes in its own thread.
    """

    def __init__(self, backbone: Backbone, device: torch.device, batch: int, compiled: str = "") -> None:
        self.backbone = backbone
        self.device = device
        self.batch = batch
        self._at_once = batch  # less than a batch after the GPU's memory ran out
        self._dtype = PRECISIONS[backbone.precision]
        self._network: Any = (backbone.shared or backbone.network).to(device).to(memory_format=torch.channels_last)
        if not backbone.is_users_code and self._dtype == torch.float32:
            with _exact(backbone.precision):
                self._network, _ = lean(self._network, backbone.trial, batch)
        if compiled:
            self._compile(COMPILED[compiled])

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings of whole batches; DataError if one image is more than the device's memory holds."""
        while True:
            try:
                with torch.inference_mode(), _exact(self.backbone.precision):
                    return np.concatenate(
                        [self._once(pixels[i : i + self._at_once]) for i in range(0, len(pixels), self._at_once)]
                    )
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise DataError(
                        f"{self.backbone.name}: one image of {self.backbone.preprocessing.input_size} is more than the "
                        f"device's memory holds: a smaller --input-size, or --device cpu"
                    ) from None
                self._at_once = -(-self._at_once // 2)
                torch.cuda.empty_cache()
                say(f"the device's memory ran out: {self._at_once} images at once from here on")

    def _compile(self, mode: str) -> None:
        """Let torch.compile make one program of the network, for batches of this size, now and not in the first batch."""
        plain = self._network
        self._network = torch.compile(plain, mode=mode)
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (self.batch, *self.backbone.preprocessing.input_size), dtype=np.uint8)
        started = time.perf_counter()
        try:
            got = self(pixels)
        except DataError:
            raise
        except Exception as error:  # whatever its compilers raise
            raise UsageError(
                f"--compile: torch could not compile {self.backbone.name} ({first_line(error)}); "
                f"it needs a C++ compiler such as g++. Without --compile everything works"
            ) from error
        say(f"{self.backbone.name}: compiled in {time.perf_counter() - started:.0f} s")
        if self._dtype == torch.float32:
            compiled, self._network = self._network, plain
            expected = self(pixels)
            self._network = compiled
            off = float(np.abs(got - expected).max()) / (float(np.abs(expected).max()) or 1.0)
            if not off <= TOLERANCE:
                raise UsageError(
                    f"--compile: embeddings of {self.backbone.name} would differ by {off:.1e} of the largest"
                )

    def _once(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = self._network(self._images(torch.from_numpy(pixels)))
        width = self.backbone.trial.output.shape[1]
        if out.shape != (len(pixels), width):
            raise DataError(f"{self.backbone.name}: the network gave {tuple(out.shape[1:])} an image, expected {width}")
        return np.asarray(out.float().cpu().numpy())

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.backbone.preprocessing.normalise(pixels.to(self.device))
        return images.to(self._dtype, memory_format=torch.channels_last)


def default_batch(backbone: Backbone, device: torch.device) -> int:
    """Images a forward pass, a power of two."""
    if device.type != "cpu":
        return _GPU_BATCH
    images = min(_CPU_FLOPS / max(backbone.trial.flops, 1.0), _CPU_MOST)
    return int(1 << max(0, int(images).bit_length() - 1))


def device_of(name: str) -> torch.device:
    """The device of a `--device`; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible to PyTorch; use --device cpu, or auto")
    return device


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[None]:
    """On a CPU, let torch compute in the thread that calls it: images side by side need no threads inside."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exact(precision: str) -> Iterator[None]:
    """No TF32 where float32 was asked for (torch's default for convolutions is TF32), and repeatable algorithms."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
