"""VGG networks for images of 28 to 64 pixels.

Written from "Very Deep Convolutional Networks for Large-Scale Image Recognition" (Simonyan and Zisserman 2015,
arXiv 1409.1556). Attribute names give the state-dict keys that checkpoints of this family have (features.N,
classifier or classifier.N).

Shape legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

_POOL: Literal["pool"] = "pool"
_VGG19 = (64, 64, _POOL, 128, 128, _POOL, *(256,) * 4, _POOL, *(512,) * 4, _POOL, *(512,) * 4, _POOL)
_HEAD_SIDE = 7
_HEAD_WIDTH = 4096


def vgg19_bn_32(*, num_classes: int, in_channels: int, classifier: str) -> nn.Module:
    """VGG-19 with batch norm.

    `classifier` "linear" is the usual head for 32x32 images, one linear layer (20,040,522 parameters for 10 classes and
    3 channels); "three_layer" is the published head of three linear layers on a 7x7 map (keys classifier.0, .3, .6).
    """
    if classifier == "linear":
        head: nn.Module = nn.Linear(512, num_classes)
        return _Vgg(_VGG19, in_channels=in_channels, batch_norm=True, pooled_side=1, head=head)
    head = nn.Sequential(
        nn.Linear(512 * _HEAD_SIDE**2, _HEAD_WIDTH),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(_HEAD_WIDTH, _HEAD_WIDTH),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(_HEAD_WIDTH, num_classes),
    )
    return _Vgg(_VGG19, in_channels=in_channels, batch_norm=True, pooled_side=_HEAD_SIDE, head=head)


def small_vgg(*, num_classes: int, in_channels: int, width: int, batch_norm: bool) -> nn.Module:
    """Four 3x3 convolutions of `width`, 2, 4 and 4 `width` channels, with pooling between; a CPU trains it fast."""
    plan = (width, _POOL, 2 * width, _POOL, 4 * width, 4 * width)
    head = nn.Linear(4 * width, num_classes)
    return _Vgg(plan, in_channels=in_channels, batch_norm=batch_norm, pooled_side=1, head=head)


class _Vgg(nn.Module):
    """Convolutions with ReLU and max pooling, average pooling to a fixed side, then the head."""

    def __init__(
        self,
        plan: Sequence[int | Literal["pool"]],
        *,
        in_channels: int,
        batch_norm: bool,
        pooled_side: int,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers(plan, in_channels, batch_norm=batch_norm))
        self.avgpool = nn.AdaptiveAvgPool2d(pooled_side)
        self.classifier = head
        for module in self.features:
            # Without batch norm the default initialisation starves the later layers; He et al. 2015 (arXiv 1502.01852).
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        pooled_NCHW = self.avgpool(self.features(images_NCHW))
        logits_NK: Tensor = self.classifier(torch.flatten(pooled_NCHW, 1))
        return logits_NK


def _layers(plan: Sequence[int | Literal["pool"]], in_channels: int, *, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    current = in_channels
    for step in plan:
        if step == _POOL:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        layers.append(nn.Conv2d(current, step, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(step))
        layers.append(nn.ReLU())
        current = step
    return layers
