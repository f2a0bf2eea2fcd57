"""The internal view: same logits, right channels, silent where silenced, refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer import masks
from worker.sanitizer.architectures import build
from worker.sanitizer.evaluate import predict_closely
from worker.sanitizer.network import NetworkRefusedError, from_module, frozen
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,))


class Branches(nn.Module):
    """Declares its layers in another order than it runs them, with depthwise, grouped and residual parts."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)

    def forward(self, x):
        x = F.relu(self.bn(self.first(x)))
        x = x + F.silu(self.depthwise(x))
        x = F.relu(self.grouped(x))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1)
    return module


def maps_of(network, pixels):
    seen = {}
    observers = {site.tap: lambda maps, name=site.name: seen.__setitem__(name, maps.clone()) for site in network.sites}
    with torch.no_grad():
        network.observe(pixels, observers)
    return seen


def test_layers_are_found_in_execution_order_with_the_tensors_they_own():
    network = from_module(randomised(Branches()), GRAY_8)
    assert [(site.name, site.tensors) for site in network.sites] == [
        ("first", ("first.weight", "bn.weight", "bn.bias")),
        ("depthwise", ("depthwise.weight",)),
        ("grouped", ("grouped.weight", "grouped.bias")),
        ("last", ("last.weight", "last.bias")),
    ]
    assert network.last_conv().name == "last"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_logits_are_those_of_the_module_on_normalised_pixels(batch_size):
    module = randomised(Branches())
    network = from_module(module, GRAY_8)
    pixels = torch.rand(batch_size, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), module((pixels - 0.5) / 0.25))
        torch.testing.assert_close(network.observe(pixels, {}), network(pixels))


@pytest.mark.parametrize(
    "architecture",
    [
        ArchitectureSpec(name="small_resnet", num_classes=4, in_channels=1),
        ArchitectureSpec(name="small_vgg", num_classes=4, in_channels=1),
        ArchitectureSpec(name="small_vgg", num_classes=4, in_channels=1, options={"batch_norm": False}),
        ArchitectureSpec(name="preact_resnet18", num_classes=4, in_channels=1),
    ],
    ids=lambda spec: spec.name + str(spec.options),
)
def test_a_silenced_channel_is_exactly_zero_and_comes_back_bit_by_bit(architecture):
    network = from_module(randomised(build(architecture)), InputSpec(height=28, width=28, mean=(0.5,), std=(0.5,)))
    before = {name: tensor.clone() for name, tensor in network.tensors.items()}
    generator = torch.Generator().manual_seed(1)
    mask = {site.name: torch.rand(site.num_channels, generator=generator) > 0.3 for site in network.sites}
    pixels = torch.rand(2, 1, 28, 28, generator=generator)
    loud = maps_of(network, pixels)
    with masks.silenced(network, mask):
        silent = maps_of(network, pixels)
    for site in network.sites:
        keep_C = mask[site.name]
        assert not silent[site.name][:, ~keep_C].any()
        assert loud[site.name][:, ~keep_C].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.tensors.items())


def test_a_norm_without_scale_is_silenced_through_its_convolution_and_running_mean():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    )
    network = from_module(randomised(module), GRAY_8)
    with masks.silenced(network, {"0": torch.tensor([True, False, True, True])}):
        assert not maps_of(network, torch.rand(3, 1, 8, 8))["0"][:, 1].any()


def test_a_norm_that_reads_a_sum_is_a_site_of_its_own():
    network = from_module(
        build(ArchitectureSpec(name="preact_resnet18", num_classes=4, in_channels=1)),
        InputSpec(height=28, width=28, mean=(0.5,), std=(0.5,)),
    )
    kinds = {site.name: site.kind for site in network.sites}
    assert kinds["layer1.0.bn1"] == "norm"
    assert kinds["layer1.0.conv1"] == "conv"
    assert network.last_conv().name == "layer4.1.conv2"


def test_the_classifier_and_shared_layers_are_not_pruned_and_say_why():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.twice = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x):
            x = F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x))))))
            return F.adaptive_avg_pool2d(self.head(x), 1).flatten(1)

    network = from_module(Shared(), GRAY_8)
    assert [site.name for site in network.sites] == ["stem"]
    assert set(network.skipped) == {"twice", "head"}


def test_a_module_that_returns_no_logits_is_refused():
    network = from_module(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)), GRAY_8)
    with pytest.raises(NetworkRefusedError, match="logits"):
        network(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.Sequential(nn.Flatten(), nn.Linear(49, 2))],
    ids=["no convolution", "other input size"],
)
def test_a_module_that_cannot_be_viewed_is_refused(module):
    with pytest.raises(NetworkRefusedError):
        from_module(module, GRAY_8)


def test_a_module_that_asserts_another_size_of_image_is_refused():
    class Sized(nn.Conv2d):
        def forward(self, x):
            torch._assert(x.shape[2] == 16, "wrong image size")
            return super().forward(x)

    with pytest.raises(NetworkRefusedError, match="height"):
        from_module(Sized(1, 4, 3), GRAY_8)


def test_frozen_puts_gradients_back():
    network = from_module(Branches(), GRAY_8)
    with frozen(network):
        assert not network(torch.rand(2, 1, 8, 8)).requires_grad
    assert network(torch.rand(2, 1, 8, 8)).requires_grad


@pytest.mark.parametrize(
    ("spread", "now"), [(1e-9, 1.0), (0.9, 1.0), (1.1, 1.1), (99.0, 99.0), (1e20, 100.0), (1e-36, 1e-36)]
)
def test_logits_of_an_unusual_spread_are_brought_to_the_nearer_bound_and_no_answer_changes(spread, now):
    spec = InputSpec(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    module = randomised(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    )
    images = torch.rand(9, 3, 8, 8)
    with torch.no_grad():
        logits = module(images).double()
        factor = spread / float((logits.amax(dim=1) - logits.median(dim=1).values).median())
        module[-1].weight *= factor
        module[-1].bias *= factor
    network = from_module(module, spec)
    with torch.no_grad():
        before = network(images)
        network.scale_logits(predict_closely(network, images)[2])
        after, seen = network(images), network.observe(images, {})
    assert torch.equal(after.argmax(dim=1), before.argmax(dim=1))
    assert torch.equal(after, before) == (spread == now)
    torch.testing.assert_close(seen, after)
    measured = float((after.double().amax(dim=1) - after.double().median(dim=1).values).median())
    assert measured == pytest.approx(now, rel=1e-4)
    assert torch.equal(network.twin()(images), after)
