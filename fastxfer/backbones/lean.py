"""The same network with less to do: what is constant at inference is worked out once.

Standardised weights are standardised once, batch normalisation and the activation after it move into the convolution
before it, and on a CPU weights are laid out once as oneDNN wants them for this input. What comes out is compared with the
network as it was; where it is not the same, or cannot be traced, the network stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d, StdConv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Embeddings may differ by this part of the largest value: rounding, in another order.
TOLERANCE = 1e-4

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame, StdConv2d, StdConv2dSame)
_BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@dataclass(frozen=True)
class Trial:
    """One forward pass of a network as it was built.

    image: (1, c, h, w) noise, scaled like real pixels;  output: what came out
    flops: of all convolutions and linear layers, an image;  shapes: of what each of these was given, by its name
    """

    image: Tensor
    output: Tensor
    shapes: dict[str, tuple[int, ...]]
    flops: float


def try_out(network: nn.Module, size: tuple[int, int, int], mean: float, std: float) -> Trial:
    """Run a network, in evaluation mode and on the CPU, on one image of noise; it raises what the network raises."""
    image = (torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) - mean) / std
    shapes: dict[str, tuple[int, ...]] = {}
    flops = 0.0

    def look(name: str, part: nn.Conv2d | nn.Linear, given: Tensor, out: Tensor) -> None:
        nonlocal flops
        shapes[name] = tuple(given.shape)
        flops += 2.0 * out.numel() * part.weight[0].numel()

    hooks = [
        part.register_forward_hook(lambda m, given, out, name=name: look(name, m, given[0], out))
        for name, part in network.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            return Trial(image, network(image), shapes, flops)
    finally:
        for hook in hooks:
            hook.remove()


def lean(network: nn.Module, trial: Trial, batch: int = 1) -> tuple[nn.Module, str]:
    """A network that gives what `network` gives, for batches of images like the trial's; and why not, or "".

    The network itself is left alone.
    """
    try:
        module = fx.GraphModule(network, _Tracer().trace(network))
        _rewrite(module, {name: (batch, *shape[1:]) for name, shape in trial.shapes.items()})
        with torch.inference_mode():
            got = module(trial.image.to(next(network.parameters()).device)).cpu()
    except Exception as error:  # networks are anybody's code: whatever stops the tracing, the network itself still runs
        return network, f"{type(error).__name__}: {error}".splitlines()[0]
    off = float((got - trial.output).abs().max()) / (float(trial.output.abs().max()) or 1.0)
    if not off <= TOLERANCE:
        return network, f"embeddings would differ by {off:.1e} of the largest"
    return module, ""


class _Tracer(fx.Tracer):
    """Looks into a module only where a convolution is to be found: what stands beside may do as it likes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or not any(isinstance(part, nn.Conv2d) for part in m.modules())


def _rewrite(module: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> None:
    graph = module.graph
    parts = dict(module.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        convolution = parts.get(node.target) if node.op == "call_module" else None
        if type(convolution) not in _CONVOLUTIONS or calls.count(node.target) > 1:
            continue
        assert isinstance(convolution, nn.Conv2d)
        if convolution.padding_mode != "zeros":
            continue
        shape = shapes[str(node.target)]
        lean, last = _Convolution(convolution, *shape[2:]), node
        norm = _only_user(node, parts, _BATCH_NORMS)
        if norm is not None and lean.absorb(parts[str(norm.target)]):
            last, lean.after = norm, getattr(parts[str(norm.target)], "act", None)
        if lean.after is None or isinstance(lean.after, nn.Identity):
            activation = _only_user(last, parts, tuple(_ACTIVATIONS))
            last, lean.after = (activation, parts[str(activation.target)]) if activation is not None else (last, None)
        lean.finish(shape)
        name = str(node.target).replace(".", "_") + "_lean"
        module.add_submodule(name, lean)
        with graph.inserting_after(last):
            new = graph.call_module(name, node.args)
        last.replace_all_uses_with(new)
        for gone in reversed(_between(node, last)):
            graph.erase_node(gone)
    graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()


def _only_user(node: fx.Node, parts: dict[str, nn.Module], kinds: tuple[type, ...]) -> fx.Node | None:
    """The call of a module of one of these kinds that alone uses the node's result."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module" or type(parts[str(users[0].target)]) not in kinds:
        return None
    return users[0]


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    nodes = [first]
    while nodes[-1] is not last:
        nodes.append(next(iter(nodes[-1].users)))
    return nodes


# oneDNN's names and numbers for activations that it applies itself.
_ACTIVATIONS: dict[type, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


class _Convolution(nn.Module):
    """A convolution with what follows it taken in. `sides`: what is padded beforehand (left, right, top, bottom)."""

    def __init__(self, convolution: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        c = convolution
        self.stride, self.dilation, self.groups = c.stride, c.dilation, c.groups
        self.sides, self.padding = _padding(c, height, width)
        self.bias = None if c.bias is None else c.bias.detach()
        self.weight = c.weight.detach()
        if isinstance(c, (StdConv2d, StdConv2dSame)):
            rows = self.weight.reshape(1, c.out_channels, -1)
            self.weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=c.eps).reshape_as(c.weight)
        self.after: nn.Module | None = None
        self.packed: tuple[str, list[float]] | None = None

    def absorb(self, norm: nn.Module) -> bool:
        """Take in the batch normalisation that follows; False if it can't be."""
        n: Any = norm
        if n.running_mean is None or not isinstance(getattr(n, "drop", nn.Identity()), nn.Identity):
            return False
        weight, bias = fuse_conv_bn_weights(
            self.weight, self.bias, n.running_mean, n.running_var, n.eps, n.weight, n.bias
        )
        self.weight, self.bias = weight.detach(), bias.detach()
        return True

    def finish(self, shape: tuple[int, ...]) -> None:
        """Weights as they are fastest for input of `shape`."""
        self.weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
        if (
            self.weight.device.type != "cpu"
            or self.weight.dtype != torch.float32
            or not torch.backends.mkldnn.is_available()
        ):
            return
        self.packed = _ACTIVATIONS.get(type(self.after), ("none", []))
        if type(self.after) in _ACTIVATIONS:
            self.after = None
        size = list(shape)
        if self.sides:
            size[2:] = size[2] + self.sides[2] + self.sides[3], size[3] + self.sides[0] + self.sides[1]
        # What torch's own compiler (Inductor) calls for convolutions on a CPU.
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, self.padding, self.stride, self.dilation, self.groups, size
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.sides:
            x = F.pad(x, self.sides)
        where = (self.stride, self.padding, self.dilation, self.groups)
        if self.packed is None:
            x = F.conv2d(x, self.weight, self.bias, *where)
        else:
            x = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, *self.packed, ""
            )
        return x if self.after is None else self.after(x)


def _padding(c: nn.Conv2d, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """(padded beforehand, padded by the convolution), the latter where both sides are alike."""
    if isinstance(c.padding, str):
        raise ValueError(f"padding '{c.padding}'")
    same = isinstance(c, Conv2dSame) or getattr(c, "same_pad", False)
    if not same:
        return (), (int(c.padding[0]), int(c.padding[1]))
    sides: list[int] = []
    for size, k, stride, dilation in zip(
        (width, height), c.kernel_size[::-1], c.stride[::-1], c.dilation[::-1], strict=True
    ):
        total = get_same_padding(size, k, stride, dilation)
        sides += [total // 2, total - total // 2]
    left, right, top, bottom = sides
    return ((), (top, left)) if (left, top) == (right, bottom) else (tuple(sides), (0, 0))
