"""Published families of timm with random weights: their sites keep what they promise."""

import importlib
import importlib.util

import pytest
import torch

# Name, side, options that make it small, and the kinds of sites that it must have.
FAMILIES = [
    ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 2}, {"conv", "head", "linear"}),
    ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "depth": 2}, {"conv", "head", "linear"}),
    ("eva02_tiny_patch14_224", 28, {"img_size": 28, "depth": 2}, {"conv", "head", "linear"}),
    ("beit_base_patch16_224", 32, {"img_size": 32, "depth": 1, "embed_dim": 96, "num_heads": 3}, {"head", "linear"}),
    (
        "swin_tiny_patch4_window7_224",
        56,
        {"img_size": 56, "depths": (2, 1), "num_heads": (2, 4), "embed_dim": 32},
        {"head", "linear"},
    ),
    ("maxvit_pico_rw_256", 64, {"img_size": 64, "depths": (1, 1, 1, 1)}, {"conv", "head", "linear"}),
    ("mixer_s32_224", 64, {"img_size": 64}, {"linear"}),
    ("convnext_tiny", 32, {"depths": (1, 1, 1, 1)}, {"conv", "linear"}),
    ("resnet18", 32, {}, {"conv"}),
    ("resnet50_gn", 32, {"layers": (1, 1, 1, 1)}, {"conv"}),
    ("resnetv2_50", 32, {"layers": (1, 1, 1, 1)}, {"conv", "norm"}),
    ("resnetv2_50x1_bit", 32, {}, {"conv", "norm"}),
    ("densenet121", 32, {"block_config": (2, 2, 2, 2)}, {"conv", "norm"}),
    ("mobilenetv3_small_100", 32, {}, {"conv"}),
    ("efficientnet_b0", 32, {}, {"conv"}),
    ("regnety_004", 32, {}, {"conv"}),
    ("nfnet_f0", 32, {}, {"conv"}),
]
SAMPLE = 6


@pytest.fixture(scope="module")
def timm():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError):  # Its torchvision is a build for another torch.
        pytest.skip("timm does not fit the installed torch")


@pytest.mark.parametrize(("name", "side", "options", "kinds"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_sites_of_a_family_keep_their_promises(name, side, options, kinds, timm, view, keeps_its_promises):
    torch.manual_seed(0)
    network = view(timm.create_model(name, num_classes=5, **options), side)
    found = {site.kind for site in network.sites}
    assert kinds <= found
    chosen = torch.linspace(0, len(network.sites) - 1, min(SAMPLE, len(network.sites))).round().int().unique().tolist()
    firsts = [next(site for site in network.sites if site.kind == kind) for kind in sorted(found)]
    keeps_its_promises(network, [network.sites[position] for position in chosen] + firsts, side)
    assert network.last_conv() in network.sites
