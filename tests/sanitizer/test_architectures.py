from __future__ import annotations

import importlib.util
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from worker.sanitizer.architectures import (
    ArchitectureNotInstalledError,
    InvalidArchitectureOptionError,
    UnknownArchitectureError,
    build,
    names,
    registry,
    timm_names,
)
from worker.sanitizer.case import load_network
from worker.sanitizer.spec import ArchitectureSpec, InputSpec


def spec(name: str, source: str = "builtin", num_classes: int = 10, in_channels: int = 3, **options: object):
    return ArchitectureSpec(
        source=source, name=name, num_classes=num_classes, in_channels=in_channels, options=dict(options)
    )


def num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# The first two are the widely published counts of the CIFAR variants. VGG-19 is torchvision's published
# 143,678,248 for 1000 classes, and the same trunk with one linear layer instead of the three.
@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (spec("resnet18_32"), 11_173_962),
        (spec("preact_resnet18"), 11_171_146),
        (spec("vgg19_bn_32"), 20_040_522),
    ],
)
def test_parameter_counts_are_the_published_ones(asked, count):
    assert num_parameters(build(asked)) == count


def test_vgg19_with_the_three_layer_head_has_the_published_imagenet_count():
    with torch.device("meta"):
        entry = registry._BUILTIN["vgg19_bn_32"]
        network = entry.build(num_classes=1000, in_channels=3, classifier="three_layer")
    assert num_parameters(network) == 143_678_248
    assert "classifier.6.weight" in network.state_dict()


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        (
            "resnet18_32",
            {
                "conv1.weight": (64, 3, 3, 3),
                "bn1.running_mean": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
                "layer2.0.shortcut.1.num_batches_tracked": (),
                "layer4.1.bn2.bias": (512,),
                "linear.weight": (10, 512),
            },
            ["layer1.0.shortcut.0.weight", "conv1.bias"],
        ),
        (
            "preact_resnet18",
            {
                "conv1.weight": (64, 3, 3, 3),
                "layer2.0.bn1.weight": (64,),
                "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
                "layer4.1.conv2.weight": (512, 512, 3, 3),
                "linear.bias": (10,),
            },
            ["bn1.weight", "layer2.0.shortcut.1.weight"],
        ),
        (
            "vgg19_bn_32",
            {
                "features.0.weight": (64, 3, 3, 3),
                "features.1.running_var": (64,),
                "features.49.weight": (512, 512, 3, 3),
                "features.50.bias": (512,),
                "classifier.weight": (10, 512),
            },
            ["features.52.weight"],
        ),
    ],
)
def test_state_dict_keys_are_those_of_published_checkpoints(name, present, absent):
    state = build(spec(name)).state_dict()
    assert {key: tuple(state[key].shape) for key in present} == present
    assert not set(absent) & set(state)


@pytest.mark.parametrize("name", ["resnet18_32", "preact_resnet18"])
def test_the_full_key_count_leaves_no_room_for_a_stray_tensor(name):
    # ResNet-18: 20 convolutions + 20 norms of 5 tensors + 2; pre-activation: 20 convolutions + 16 norms + 2.
    assert len(build(spec(name)).state_dict()) == {"resnet18_32": 122, "preact_resnet18": 102}[name]


@pytest.mark.parametrize("name", names()["builtin"])
@pytest.mark.parametrize(("num_classes", "in_channels", "side"), [(7, 1, 32), (2, 4, 33)])
def test_every_builtin_takes_any_classes_and_channels(name, num_classes, in_channels, side):
    network = build(spec(name, num_classes=num_classes, in_channels=in_channels))
    with torch.inference_mode():
        logits = network(torch.rand(2, in_channels, side, side))
    assert logits.shape == (2, num_classes)
    assert torch.isfinite(logits).all()
    assert not network.training


@pytest.mark.parametrize("name", ["small_resnet", "small_vgg", "resnet18_32", "preact_resnet18"])
def test_every_small_builtin_can_be_traced_symbolically(name):
    torch.fx.symbolic_trace(build(spec(name)))


def test_small_networks_take_28_pixels_and_follow_their_options():
    narrow = build(spec("small_resnet", in_channels=1, width=4, blocks=2, stem_stride=2))
    assert narrow.state_dict()["layer3.1.conv2.weight"].shape == (16, 16, 3, 3)
    assert narrow.conv1.stride == (2, 2)
    assert narrow(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert "layer1.1.conv1.weight" not in build(spec("small_resnet")).state_dict()


def test_a_network_without_batch_norm_is_initialised_for_relu():
    torch.manual_seed(0)
    network = build(spec("small_vgg", width=32, batch_norm=False))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    third = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][2]
    assert third.in_channels != third.out_channels
    expected = (2 / (third.in_channels * 9)) ** 0.5  # He, fan-in
    assert third.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert not third.bias.any()


@pytest.mark.parametrize(
    ("source", "name"), [("builtin", "no_such_net"), ("timm", "hf-hub:someone/something"), ("torchvision", "__doc__")]
)
def test_a_name_outside_the_allow_list_is_refused(source, name):
    with pytest.raises(UnknownArchitectureError) as caught:
        build(spec(name, source=source))
    assert caught.value.code == "unknown_architecture"
    # A sentence for a person, however long the list.
    assert len(str(caught.value)) < 2000


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(UnknownArchitectureError, match="resnet50d,"):
        build(spec("resnet50_d", source="timm"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_resnet", {"depth": 3}),
        ("resnet18_32", {"width": 16}),
        ("small_resnet", {"width": 0}),
        ("small_resnet", {"width": 10**12}),
        ("small_resnet", {"width": 16.0}),
        ("small_resnet", {"width": True}),
        ("small_resnet", {"blocks": 3}),
        ("small_vgg", {"batch_norm": 1}),
        ("vgg19_bn_32", {"classifier": "enormous"}),
        ("vgg19_bn_32", {"classifier": 3}),
    ],
)
def test_an_option_outside_its_type_or_bounds_is_refused(name, options):
    with pytest.raises(InvalidArchitectureOptionError) as caught:
        build(spec(name, **options))
    assert caught.value.code == "invalid_architecture_option"


def test_a_network_above_the_limit_is_refused_before_it_takes_memory(monkeypatch):
    devices = []

    def enormous(*, num_classes, in_channels):
        del in_channels
        # 4 TB in float32: on any real device this allocation would fail at once.
        layer = torch.nn.Linear(10**12 // num_classes, num_classes)
        devices.append(layer.weight.device.type)
        return layer

    monkeypatch.setitem(registry._BUILTIN, "enormous", registry._Entry(enormous))
    with pytest.raises(InvalidArchitectureOptionError, match="at most 2000000000"):
        build(spec("enormous"))
    assert devices == ["meta"]


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_a_library_that_is_absent_is_a_refusal_that_names_the_package(source, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == source]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, source, None)
    with pytest.raises(ArchitectureNotInstalledError, match=source) as caught:
        build(spec("resnet18", source=source))
    assert caught.value.code == "architecture_not_installed"


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_an_installed_library_builds_for_one_channel(source):
    if importlib.util.find_spec(source) is None:
        pytest.skip(f"{source} is not installed")
    network = build(spec("resnet18", source=source, num_classes=5, in_channels=1))
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 64, 64)).shape == (1, 5)


def test_building_the_same_seed_twice_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(spec("small_resnet")).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("source", "name"), [("torchvision", "vit_b_16"), ("timm", "swin_tiny_patch4_window7_224")])
def test_a_network_for_one_size_of_image_has_that_size_as_an_option(source, name, monkeypatch):
    # Options are checked before a library is looked for.
    monkeypatch.setitem(sys.modules, source, None)
    with pytest.raises(InvalidArchitectureOptionError, match="16 to 1024"):
        build(spec(name, source=source, image_size=8))
    with pytest.raises(InvalidArchitectureOptionError, match="has no option"):
        build(spec("resnet18", source=source, image_size=64))


@pytest.mark.parametrize(
    ("source", "name", "side", "options"),
    [
        ("torchvision", "vit_b_32", 64, {"image_size": 64}),
        ("torchvision", "maxvit_t", 224, {}),
        ("torchvision", "swin_t", 64, {}),
        ("torchvision", "regnet_x_400mf", 64, {}),
        ("timm", "deit_tiny_patch16_224", 64, {"image_size": 64}),
        ("timm", "mixer_s32_224", 64, {"image_size": 64}),
        ("timm", "swinv2_tiny_window8_256", 256, {}),
        ("timm", "vit_small_patch14_dinov2", 56, {"image_size": 56}),
        ("torchvision", "googlenet", 64, {"aux_logits": True}),
        ("torchvision", "inception_v3", 96, {"aux_logits": False}),
        ("torchvision", "mnasnet0_5", 64, {}),
    ],
)
def test_an_installed_library_builds_its_transformers_and_mixers(source, name, side, options):
    if importlib.util.find_spec(source) is None:
        pytest.skip(f"{source} is not installed")
    network = build(spec(name, source=source, num_classes=5, in_channels=1, **options))
    with torch.inference_mode():
        assert network(torch.rand(1, 1, side, side)).shape == (1, 5)


def test_a_state_that_lost_the_version_of_its_code_is_loaded(monkeypatch, tmp_path):
    class Versioned(torch.nn.Conv2d):
        """As MNASNet does."""

        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            assert local_metadata["version"] == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def network(*, num_classes, in_channels):
        layers = Versioned(in_channels, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, num_classes)
        return torch.nn.Sequential(*layers)

    monkeypatch.setitem(registry._BUILTIN, "versioned", registry._Entry(network))
    original = network(num_classes=10, in_channels=3)
    save_file(dict(original.state_dict()), tmp_path / "a.safetensors")
    pixels = InputSpec(height=4, width=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    _, found = load_network(tmp_path / "a.safetensors", spec("versioned"), pixels, torch.device("cpu"))
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(found(images), original(images))


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_a_name_is_plain_and_stands_once(source):
    listed = names()[source]
    assert len(set(listed)) == len(listed)
    # Anything before a colon or a slash would be a place to fetch from.
    assert [name for name in listed if not re.fullmatch(r"[a-z0-9_]+", name)] == []


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_an_installed_library_has_every_name_of_the_list(source):
    library = pytest.importorskip(source, exc_type=ImportError)
    has = library.is_model if source == "timm" else set(library.models.list_models()).__contains__
    assert [name for name in names()[source] if not has(name)] == []


def test_the_size_that_a_network_has_in_timm_is_the_default():
    timm = pytest.importorskip("timm", exc_type=ImportError)
    for name, size in timm_names.SIZES.items():
        config = timm.models.get_pretrained_cfg(name)
        assert (config.input_size[1], config.fixed_input_size) == (size, True), name


def test_the_families_that_people_have_are_on_the_list():
    listed = " ".join(names()["torchvision"] + names()["timm"])
    families = ["resnet", "vgg", "densenet", "mobilenet", "efficientnet", "regnet", "convnext"]
    families += ["vit", "deit", "swin", "maxvit", "mixer"]
    assert [family for family in families if family not in listed] == []


def test_a_size_that_its_library_does_not_build_is_a_refusal(monkeypatch):
    def picky(*, num_classes, in_channels, image_size):
        assert image_size % 7 == 0, "windows do not fit"
        return torch.nn.Linear(in_channels, num_classes)

    monkeypatch.setitem(registry._BUILTIN, "picky", registry._Entry(picky, registry._sized(224)))
    assert build(spec("picky", image_size=70)).out_features == 10
    with pytest.raises(InvalidArchitectureOptionError, match="64 pixels"):
        build(spec("picky", image_size=64))
