"""The architectures that are sent round: the smallest of each family, at a small size of image where it takes one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from worker.sanitizer.architectures import build
from worker.sanitizer.architectures.hugging_face.design import Classifier
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

NUM_CLASSES = 5
SEED = 0
# Neither zero nor one, so that a normalisation that is left out shows.
MEAN, STD = 0.5, 0.25
# A scale or gain below this was made to be learnt, and hides everything behind it.
_AS_GOOD_AS_ZERO = 1e-4


@dataclass(frozen=True, slots=True)
class Architecture:
    """One network.

    Attributes:
        source: The library.
        name: Its name there; what its classes of transformers begin with.
        side: Of the images, in pixels.
        options: Those of our registry; of its configuration for transformers.
        in_channels: Of the images.
    """

    source: str
    name: str
    side: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 3

    @property
    def input_spec(self) -> InputSpec:
        """Size and normalisation."""
        channels = self.in_channels
        return InputSpec(height=self.side, width=self.side, mean=(MEAN,) * channels, std=(STD,) * channels)

    @property
    def by_name(self) -> ArchitectureSpec:
        """What a client sends along with the weights alone, or with a configuration and the weights."""
        if self.source == "transformers":
            return ArchitectureSpec(source="transformers", num_classes=NUM_CLASSES, in_channels=self.in_channels)
        return ArchitectureSpec(
            source=self.source,  # type: ignore[arg-type]
            name=self.name,
            num_classes=NUM_CLASSES,
            in_channels=self.in_channels,
            options=dict(self.options),
        )

    def make(self) -> nn.Module:
        """The network with random weights of the one seed, in evaluation mode."""
        torch.manual_seed(SEED)
        return randomised(self.build())

    def build(self) -> nn.Module:
        """The network as its library builds it, through our registry where that only calls the library."""
        if self.source != "transformers":
            return build(self.by_name)
        library = importlib.import_module("transformers")
        library.utils.logging.disable_progress_bar()
        config = getattr(library, f"{self.name}Config")(num_labels=NUM_CLASSES, **self.options)
        return Classifier(getattr(library, f"{self.name}ForImageClassification")(config)).eval()


def randomised(module: nn.Module) -> nn.Module:
    """The module with statistics, scales and shifts of every norm and bias away from 0 and 1."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            leaf = name.rpartition(".")[2]
            is_parameter = isinstance(tensor, nn.Parameter)
            if leaf in {"running_mean", "running_var"} or (is_parameter and tensor.dim() == 1):
                shift = 0.75 if leaf in {"running_var", "weight"} else -0.25
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + shift)
            elif is_parameter and not tensor.abs().amax() > _AS_GOOD_AS_ZERO:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
    return module.eval()


def without_compiled_operators() -> None:
    """Let torchvision be imported where its compiled operators do not fit the installed torch: no classifier calls one.

    Their names alone have to be known.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


# A library's definitions go when it does.
_KEPT: list[torch.library.Library] = []


def _tv(name: str, side: int = 64, **options: Any) -> Architecture:  # noqa: ANN401 - keyword arguments of any kind
    return Architecture("torchvision", name, side, options)


def _timm(name: str, side: int = 64, **options: Any) -> Architecture:  # noqa: ANN401
    return Architecture("timm", name, side, options)


def _hf(name: str, side: int = 32, **options: Any) -> Architecture:  # noqa: ANN401
    return Architecture("transformers", name, side, options)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 4}
_STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}

ARCHITECTURES: tuple[Architecture, ...] = (
    _tv("alexnet", 224),
    _tv("resnet18"),
    _tv("resnext50_32x4d"),
    _tv("vgg11", 224),
    _tv("vgg11_bn", 224),
    _tv("densenet121"),
    _tv("squeezenet1_1"),
    _tv("mobilenet_v2"),
    _tv("mobilenet_v3_small"),
    _tv("efficientnet_b0"),
    _tv("mnasnet1_0"),
    _tv("shufflenet_v2_x1_0"),
    _tv("regnet_x_400mf"),
    _tv("regnet_y_400mf"),
    _tv("convnext_tiny"),
    _tv("vit_b_32", image_size=64),
    _tv("swin_t"),
    _tv("swin_v2_t"),
    _tv("maxvit_t", 224, image_size=224),
    _tv("googlenet"),
    _tv("inception_v3", 96),
    _timm("resnet18"),
    _timm("seresnet50"),
    _timm("resnet50_gn"),
    _timm("resnetv2_50x1_bit"),
    _timm("res2net50_26w_4s"),
    _timm("densenet121"),
    _timm("mobilenetv2_100"),
    _timm("mobilenetv3_small_100"),
    _timm("efficientnet_b0"),
    _timm("regnety_004"),
    _timm("convnext_atto"),
    _timm("convnextv2_atto"),
    _timm("vit_tiny_patch16_224", image_size=64),
    _timm("deit_tiny_patch16_224", image_size=64),
    _timm("swin_tiny_patch4_window7_224", image_size=64),
    _timm("maxvit_tiny_tf_224", image_size=64),
    _timm("mixer_s32_224", image_size=64),
    _timm("nf_regnet_b0"),
    _timm("eca_nfnet_l0"),
    _timm("beit_base_patch16_224", image_size=64),
    _timm("eva02_tiny_patch14_224", 56, image_size=56),
    _timm("coatnet_pico_rw_224", image_size=64),
    _timm("efficientformer_l1", 224),
    _timm("levit_128s", 224),
    _timm("poolformer_s12"),
    _timm("cait_xxs24_224", image_size=64),
    _timm("pvt_v2_b0"),
    _timm("xcit_nano_12_p16_224", image_size=64),
    _timm("resmlp_12_224", image_size=64),
    _timm("gmlp_s16_224", image_size=64),
    _timm("repvgg_a0"),
    _timm("mobilevit_xxs"),
    _timm("ghostnet_100"),
    _timm("hrnet_w18_small"),
    _timm("mvitv2_tiny", image_size=64),
    _timm("edgenext_xx_small"),
    _timm("cspresnet50"),
    _timm("dla34"),
    _hf("ViT", intermediate_size=64, **_SMALL),
    _hf("DeiT", intermediate_size=64, **_SMALL),
    _hf("Beit", intermediate_size=64, use_relative_position_bias=True, **_SMALL),
    _hf("Dinov2", **_SMALL),
    _hf("Swin", embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, patch_size=2, image_size=32),
    _hf("ConvNext", **_STAGES),
    _hf("ConvNextV2", **_STAGES),
    _hf("ResNet", embedding_size=8, **_STAGES),
    _hf("RegNet", embedding_size=8, groups_width=8, **_STAGES),
    _hf("MobileNetV2", depth_multiplier=0.25, image_size=32),
)
