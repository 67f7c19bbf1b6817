"""A MobileNetV3-small for grey images with folded batch norm, as ../shared/real/README.md tells."""

from torch import Tensor, nn
from torch.nn import functional

# kernel, in, expand, out, hardswish, squeeze-and-excite, stride
BLOCKS = [
    (3, 16, 16, 16, False, True, 2),
    (3, 16, 72, 24, False, False, 2),
    (3, 24, 88, 24, False, False, 1),
    (5, 24, 96, 40, True, True, 2),
    (5, 40, 240, 40, True, True, 1),
    (5, 40, 240, 40, True, True, 1),
    (5, 40, 120, 48, True, True, 1),
    (5, 48, 144, 48, True, True, 1),
    (5, 48, 288, 96, True, True, 2),
    (5, 96, 576, 96, True, True, 1),
    (5, 96, 576, 96, True, True, 1),
]


class SqueezeExcite(nn.ModuleDict):
    def __init__(self, channels: int) -> None:
        # Numbered as in the weights' names; 0, 2, 3 and 5 (mean, ReLU …) have no weights.
        super().__init__({"1": nn.Conv2d(channels, channels // 4, 1), "4": nn.Conv2d(channels // 4, channels, 1)})

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.relu(self["1"](x.mean((2, 3), keepdim=True)))
        return x * functional.hardsigmoid(self["4"](squeezed))


class Block(nn.Module):
    def __init__(self, kernel: int, inside: int, expand: int, out: int, hard: bool, excite: bool, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, expand, 1)
        self.conv2 = nn.Conv2d(expand, expand, kernel, stride, kernel // 2, groups=expand)
        self.conv3 = nn.Conv2d(expand, out, 1)
        self.act = functional.hardswish if hard else functional.relu
        self.se = SqueezeExcite(out) if excite else None
        self.residual = stride == 1
        self.shortcut = nn.Conv2d(inside, out, 1) if self.residual and inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        if self.se is not None:
            out = self.se(out)
        if not self.residual:
            return out
        return out + (x if self.shortcut is None else self.shortcut(x))


class Body(nn.Module):
    input_size = (1, 224, 224)
    mean = 0.485
    std = 0.229

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 2, 1)
        self.bneck = nn.Sequential(*(Block(*words) for words in BLOCKS))
        self.conv2 = nn.Conv2d(96, 576, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bneck(functional.hardswish(self.conv1(images)))
        return functional.hardswish(self.conv2(x)).mean((2, 3))


def build() -> nn.Module:
    return Body()
