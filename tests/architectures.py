"""Four well-known networks, written down from their papers, with seeded random weights.

ResNet-18 and ResNet-50 (He et al. 2016, stride in the 3 x 3 convolution of a bottleneck), VGG-16
(Simonyan and Zisserman 2015, configuration D), DenseNet-121 (Huang et al. 2017). `maps` of each
runs it step by step and returns what stands before each change of stride, so that an importer
can be asked whether it found the same places.
"""

from __future__ import annotations

import torch
from torch import nn


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network with weights under which every layer still says something."""
    random = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=random)

    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(draw(layer.weight) * (2 / fan_in) ** 0.5)
                if layer.bias is not None:
                    layer.bias.copy_(0.1 * draw(layer.bias))
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(1 + 0.1 * draw(layer.weight))
                layer.bias.copy_(0.1 * draw(layer.bias))
                layer.running_mean.copy_(0.1 * draw(layer.running_mean))
                layer.running_var.copy_(1 + 0.2 * draw(layer.running_var).abs())
    return network.eval()


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    growth = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = shortcut(inside, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut."""

    growth = 4

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut = shortcut(inside, 4 * width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def shortcut(inside: int, outside: int, stride: int) -> nn.Module:
    if stride == 1 and inside == outside:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class ResNet(nn.Module):
    """Residual network of four stages."""

    def __init__(self, block: type[Basic | Bottleneck], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        inside = 64
        for number, depth in enumerate(depths, 1):
            blocks = []
            for k in range(depth):
                width = 64 * 2 ** (number - 1)
                blocks.append(block(inside, width, 2 if number > 1 and k == 0 else 1))
                inside = width * block.growth
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.head = nn.Linear(inside, 1000)

    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {"stride2": self.stem(x)}
        x = self.pool(found["stride2"])
        for number, tap in enumerate(("stride4", "stride8", "stride16", "final"), 1):
            x = found[tap] = self.get_submodule(f"layer{number}")(x)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(x)["final"].mean((2, 3)))


class VGG(nn.Module):
    """Thirteen 3 x 3 convolutions in five stages; the classifier's width is the caller's."""

    def __init__(self, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for n_layers, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(n_layers):
                layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU(inplace=True)]
                inside = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Sequential(
            nn.Linear(512 * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, 1000),
        )

    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        stride = 1
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found[f"stride{stride}"] = x.clone()
                stride *= 2
            x = layer(x)
        found["final"] = x
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class Dense(nn.Module):
    """A layer of a dense block: what it makes is put beside what it was given."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.ReLU(inplace=False),
            nn.Conv2d(inside, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """Four dense blocks with transitions between them."""

    def __init__(self, depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stem_pool = nn.MaxPool2d(3, 2, 1)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for number, depth in enumerate(depths):
            self.blocks.append(
                nn.Sequential(*(Dense(width + k * growth, growth) for k in range(depth)))
            )
            width += depth * growth
            if number < len(depths) - 1:
                self.transitions.append(
                    nn.Sequential(
                        nn.BatchNorm2d(width),
                        nn.ReLU(inplace=False),
                        nn.Conv2d(width, width // 2, 1, bias=False),
                    )
                )
                width //= 2
        self.pool = nn.AvgPool2d(2, 2)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 1000)

    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {"stride2": self.stem(x)}
        x = self.stem_pool(found["stride2"])
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number < len(self.transitions):
                x = found[f"stride{2 ** (number + 2)}"] = self.transitions[number](x)
                x = self.pool(x)
        found["final"] = torch.relu(self.norm(x))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(x)["final"].mean((2, 3)))


def resnet18() -> nn.Module:
    return ResNet(Basic, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3))


def vgg16() -> nn.Module:
    """The convolutions at full size; the classifier, which is cut off, is small."""
    return VGG(hidden=16)


def densenet121() -> nn.Module:
    return DenseNet()
