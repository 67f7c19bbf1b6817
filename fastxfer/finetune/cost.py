"""What a fine-tuning costs: seconds, images, floating-point operations, and energy where the device tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

RAPL = Path("/sys/class/powercap")


@dataclass
class Cost:
    """Sums over a run, its interrupted parts included.

    seconds:       of training alone, decoding and evaluation apart
    images:        forward and backward
    images_scored: forward only, in evaluation
    flops:         of both; a backward pass counts as two forward passes. NaN where they cannot be counted
    joules:        of the device while it trained and evaluated; NaN where it does not tell
    """

    seconds: float = 0.0
    images: int = 0
    images_scored: int = 0
    flops: float = 0.0
    joules: float = 0.0

    def rows(self) -> dict[str, float]:
        """metric -> value, of what is known."""
        values = {f.name: float(getattr(self, f.name)) for f in fields(self)}
        return {name: value for name, value in values.items() if value == value}


def forward_flops(network: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Floating-point operations of one image forward (a multiply-add is two), counted without computing; NaN if that fails."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: torch.empty_like(value, device="meta") for name, value in tensors}
    training = network.training
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            functional_call(network.eval(), shapes, (torch.empty(1, *input_size, device="meta"),))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return float("nan")  # tensors that are neither parameters nor buffers, or shapes that depend on values
    finally:
        network.train(training)
    return float(counter.get_total_flops())


class Meter:
    """Adds the seconds and the energy of `with meter(): …` blocks to a cost."""

    def __init__(self, cost: Cost, device: torch.device) -> None:
        self.cost = cost
        self._joules = energy_counter(device)

    @contextmanager
    def __call__(self, seconds: bool) -> Iterator[None]:
        """seconds: whether the block's time counts, too"""
        started, before = time.perf_counter(), self._joules()
        yield
        if seconds:
            self.cost.seconds += time.perf_counter() - started
        self.cost.joules += self._joules() - before


def energy_counter(device: torch.device) -> Callable[[], float]:
    """A function that gives the joules which the device has used since some time; NaN if it does not tell.

    NVML for a GPU (package nvidia-ml-py), RAPL for the CPU packages of a Linux machine, whoever else uses them.
    """
    try:
        return _nvml(device) if device.type == "cuda" else _rapl()
    except (ImportError, OSError, ValueError, RuntimeError):
        return lambda: float("nan")


def _nvml(device: torch.device) -> Callable[[], float]:
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def _rapl() -> Callable[[], float]:
    counters = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in RAPL.glob("*-rapl:?")]
    if not counters:
        raise OSError("no RAPL")
    last = [int(path.read_text()) for path, _ in counters]
    total = 0

    def joules() -> float:
        nonlocal total
        for i, (path, wraps_at) in enumerate(counters):
            now = int(path.read_text())
            total += (now - last[i]) % (wraps_at + 1)
            last[i] = now
        return total / 1e6

    return joules
