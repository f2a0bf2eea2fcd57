"""Residual networks for images of 28 to 64 pixels.

Written from "Deep Residual Learning for Image Recognition" (He et al. 2016, arXiv 1512.03385) and "Identity Mappings
in Deep Residual Networks" (He et al. 2016, arXiv 1603.05027). Attribute names give the state-dict keys that
researchers' checkpoints of the 3x3-stem variants have (conv1, bn1, layerN.M.conv1, shortcut.0, linear).

Shape legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def preact_resnet18(*, num_classes: int, in_channels: int) -> nn.Module:
    """Pre-activation ResNet-18 with a 3x3 stem: 11,171,146 parameters for 10 classes and 3 channels."""
    return _ResidualNet(
        _PreActivationBlock,
        in_channels=in_channels,
        num_classes=num_classes,
        widths=(64, 128, 256, 512),
        blocks=2,
        norm_after_stem=False,
    )


def resnet18_32(*, num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no pooling after it: 11,173,962 parameters for 10 classes and 3 channels."""
    return _ResidualNet(
        _BasicBlock, in_channels=in_channels, num_classes=num_classes, widths=(64, 128, 256, 512), blocks=2
    )


def small_resnet(*, num_classes: int, in_channels: int, width: int, blocks: int, stem_stride: int) -> nn.Module:
    """Three stages of `blocks` basic blocks, `width`, 2 `width` and 4 `width` channels; a CPU trains it in a minute."""
    return _ResidualNet(
        _BasicBlock,
        in_channels=in_channels,
        num_classes=num_classes,
        widths=(width, 2 * width, 4 * width),
        blocks=blocks,
        stem_stride=stem_stride,
    )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, added to the shortcut before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(_projection(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        self.relu2 = nn.ReLU()

    def forward(self, input_NCHW: Tensor) -> Tensor:
        inner_NCHW = self.relu1(self.bn1(self.conv1(input_NCHW)))
        inner_NCHW = self.bn2(self.conv2(inner_NCHW))
        output_NCHW: Tensor = self.relu2(inner_NCHW + self.shortcut(input_NCHW))
        return output_NCHW


class _PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each 3x3 convolution; a projection starts from the activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.shortcut = nn.Sequential(_projection(in_channels, out_channels, stride))

    def forward(self, input_NCHW: Tensor) -> Tensor:
        active_NCHW = self.relu1(self.bn1(input_NCHW))
        shortcut_NCHW = self.shortcut(active_NCHW) if self.projects else input_NCHW
        inner_NCHW = self.conv2(self.relu2(self.bn2(self.conv1(active_NCHW))))
        output_NCHW: Tensor = inner_NCHW + shortcut_NCHW
        return output_NCHW


class _ResidualNet(nn.Module):
    """A 3x3 stem, stages of blocks (each later stage halves the side), global average pooling, one linear layer."""

    def __init__(
        self,
        block: type[_BasicBlock | _PreActivationBlock],
        *,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        blocks: int,
        stem_stride: int = 1,
        norm_after_stem: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, widths[0], stem_stride)
        # Pre-activation blocks normalise their own input, so their stem has no norm of its own.
        self.norm_after_stem = norm_after_stem
        if norm_after_stem:
            self.bn1 = nn.BatchNorm2d(widths[0])
            self.relu = nn.ReLU()
        self.stage_names = tuple(f"layer{index}" for index in range(1, len(widths) + 1))
        current = widths[0]
        for index, (name, width) in enumerate(zip(self.stage_names, widths, strict=True)):
            first = block(current, width, 1 if index == 0 else 2)
            rest = [block(width, width, 1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            current = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(current, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        hidden_NCHW = self.conv1(images_NCHW)
        if self.norm_after_stem:
            hidden_NCHW = self.relu(self.bn1(hidden_NCHW))
        for name in self.stage_names:
            hidden_NCHW = getattr(self, name)(hidden_NCHW)
        logits_NK: Tensor = self.linear(torch.flatten(self.avgpool(hidden_NCHW), 1))
        return logits_NK


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
