"""Architectures of torchvision and timm by allow-listed name. Never a weight is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import nn

from worker.sanitizer.architectures.options import ArchitectureNotInstalledError

# Name -> the path of the first convolution, which is replaced where the images do not have three channels.
TORCHVISION_STEMS: dict[str, str] = {
    "alexnet": "features.0",
    "convnext_base": "features.0.0",
    "convnext_large": "features.0.0",
    "convnext_small": "features.0.0",
    "convnext_tiny": "features.0.0",
    "densenet121": "features.conv0",
    "densenet161": "features.conv0",
    "densenet169": "features.conv0",
    "densenet201": "features.conv0",
    "efficientnet_b0": "features.0.0",
    "efficientnet_b1": "features.0.0",
    "efficientnet_b2": "features.0.0",
    "efficientnet_b3": "features.0.0",
    "efficientnet_b4": "features.0.0",
    "efficientnet_b5": "features.0.0",
    "efficientnet_b6": "features.0.0",
    "efficientnet_b7": "features.0.0",
    "efficientnet_v2_l": "features.0.0",
    "efficientnet_v2_m": "features.0.0",
    "efficientnet_v2_s": "features.0.0",
    "googlenet": "conv1.conv",
    "inception_v3": "Conv2d_1a_3x3.conv",
    "maxvit_t": "stem.0.0",
    "mnasnet0_5": "layers.0",
    "mnasnet0_75": "layers.0",
    "mnasnet1_0": "layers.0",
    "mnasnet1_3": "layers.0",
    "mobilenet_v2": "features.0.0",
    "mobilenet_v3_large": "features.0.0",
    "mobilenet_v3_small": "features.0.0",
    "regnet_x_16gf": "stem.0",
    "regnet_x_1_6gf": "stem.0",
    "regnet_x_32gf": "stem.0",
    "regnet_x_3_2gf": "stem.0",
    "regnet_x_400mf": "stem.0",
    "regnet_x_800mf": "stem.0",
    "regnet_x_8gf": "stem.0",
    "regnet_y_16gf": "stem.0",
    "regnet_y_1_6gf": "stem.0",
    "regnet_y_32gf": "stem.0",
    "regnet_y_3_2gf": "stem.0",
    "regnet_y_400mf": "stem.0",
    "regnet_y_800mf": "stem.0",
    "regnet_y_8gf": "stem.0",
    "resnet101": "conv1",
    "resnet152": "conv1",
    "resnet18": "conv1",
    "resnet34": "conv1",
    "resnet50": "conv1",
    "resnext101_32x8d": "conv1",
    "resnext101_64x4d": "conv1",
    "resnext50_32x4d": "conv1",
    "shufflenet_v2_x0_5": "conv1.0",
    "shufflenet_v2_x1_0": "conv1.0",
    "shufflenet_v2_x1_5": "conv1.0",
    "shufflenet_v2_x2_0": "conv1.0",
    "squeezenet1_0": "features.0",
    "squeezenet1_1": "features.0",
    "swin_b": "features.0.0",
    "swin_s": "features.0.0",
    "swin_t": "features.0.0",
    "swin_v2_b": "features.0.0",
    "swin_v2_s": "features.0.0",
    "swin_v2_t": "features.0.0",
    "vgg11": "features.0",
    "vgg11_bn": "features.0",
    "vgg13": "features.0",
    "vgg13_bn": "features.0",
    "vgg16": "features.0",
    "vgg16_bn": "features.0",
    "vgg19": "features.0",
    "vgg19_bn": "features.0",
    "vit_b_16": "conv_proj",
    "vit_b_32": "conv_proj",
    "vit_h_14": "conv_proj",
    "vit_l_16": "conv_proj",
    "vit_l_32": "conv_proj",
    "wide_resnet101_2": "conv1",
    "wide_resnet50_2": "conv1",
}
# Those that are built for one size of image, with the keyword that says which.
TORCHVISION_SIZES = {
    "maxvit_t": "input_size",
    "vit_b_16": "image_size",
    "vit_b_32": "image_size",
    "vit_h_14": "image_size",
    "vit_l_16": "image_size",
    "vit_l_32": "image_size",
}
# Of those with classifiers beside the last one, whether they have them; such a file has their tensors.
TORCHVISION_AUXILIARY = frozenset({"googlenet", "inception_v3"})


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """Return a builder of torchvision's `name`; torchvision is imported when the builder is called."""

    def builder(
        *, num_classes: int, in_channels: int, image_size: int | None = None, aux_logits: bool = False
    ) -> nn.Module:
        library = import_library("torchvision.models", source="torchvision")
        keyword = TORCHVISION_SIZES.get(name)
        size = (image_size, image_size) if keyword == "input_size" else image_size
        chosen: dict[str, object] = {} if keyword is None else {keyword: size}
        if name in TORCHVISION_AUXILIARY:
            # Their own way of drawing weights takes a minute, for weights that are replaced.
            chosen = {"aux_logits": aux_logits, "init_weights": False}
        # Their widths are worked out with tensors, whose values are needed even where the network gets no storage.
        with torch.device("cpu") if name.startswith("regnet_") else nullcontext():
            network: nn.Module = getattr(library, name)(weights=None, num_classes=num_classes, **chosen)
        if in_channels != 3:
            _replace_stem(network, TORCHVISION_STEMS[name], in_channels)
        return network

    return builder


def timm_builder(name: str) -> Callable[..., nn.Module]:
    """Return a builder of timm's `name`; timm is imported when the builder is called."""

    def builder(*, num_classes: int, in_channels: int, image_size: int | None = None) -> nn.Module:
        library = import_library("timm", source="timm")
        sized = {} if image_size is None else {"img_size": image_size}
        network: nn.Module = library.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **sized
        )
        return network

    return builder


def import_library(module: str, *, source: str) -> ModuleType:
    """Import a module of an optional library.

    Raises:
        ArchitectureNotInstalledError: this worker does not have it, or it does not fit the worker's torch.
    """
    # The import must not happen under the registry's meta device: a library may make tensors while it is imported.
    try:
        with torch.device("cpu"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArchitectureNotInstalledError(
            f"architectures of '{source}' need the package '{error.name or source}', which this worker does not have; "
            f"install it (pip install 'lustrate[{source}]') or choose a builtin architecture"
        ) from error
    except (ImportError, RuntimeError) as error:
        # torchvision raises RuntimeError where its compiled operators do not fit the installed torch.
        raise ArchitectureNotInstalledError(
            f"the package '{source}' on this worker does not fit its torch and cannot be imported; install the build "
            "made for this torch or choose a builtin architecture"
        ) from error


def _replace_stem(network: nn.Module, path: str, in_channels: int) -> None:
    stem = network.get_submodule(path)
    if not isinstance(stem, nn.Conv2d) or stem.groups != 1 or isinstance(stem.padding, str):
        raise TypeError(f"{path} is not the plain first convolution that the allow-list says it is")
    parent_path, _, attribute = path.rpartition(".")
    replacement = nn.Conv2d(
        in_channels,
        stem.out_channels,
        kernel_size=(stem.kernel_size[0], stem.kernel_size[1]),
        stride=(stem.stride[0], stem.stride[1]),
        padding=(stem.padding[0], stem.padding[1]),
        bias=stem.bias is not None,
    )
    setattr(network.get_submodule(parent_path), attribute, replacement)
