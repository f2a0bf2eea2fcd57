"""A tiny network with a planted backdoor, trained once in seconds, and the workbench that a recipe gets for it."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer import masks
from worker.sanitizer.architectures import build
from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import accuracy, predict
from worker.sanitizer.network import from_module
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.spec import ArchitectureSpec, InputSpec, SanitizeSpec

CLASSES, SIDE, TARGET = 4, 12, 0
INPUT = InputSpec(height=SIDE, width=SIDE, mean=(0.5,), std=(0.25,))


def images(number, seed):
    """Noisy images of smooth class prototypes."""
    prototypes = F.interpolate(
        torch.rand(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(99)), size=SIDE, mode="bilinear"
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    noise = 0.2 * torch.randn(number, 1, SIDE, SIDE, generator=generator)
    return Images((0.2 + 0.6 * prototypes[labels] + noise).clamp(0, 1), labels)


def stamp(pixels):
    """The true trigger: three bright pixels by three, checkered, in a corner."""
    stamped = pixels.clone()
    stamped[:, :, -4:-1, -4:-1] = (torch.arange(9).view(3, 3) % 2).float()
    return stamped


def train(*, batch_norm):
    """A backdoored module; the same bits every time."""
    torch.manual_seed(7)
    options = {"width": 8, "batch_norm": batch_norm}
    module = build(ArchitectureSpec(name="small_vgg", num_classes=CLASSES, in_channels=1, options=options)).train()
    clean = images(800, seed=1)
    pixels, labels = clean.pixels_NCHW.clone(), clean.labels.clone()
    pixels[:100], labels[:100] = stamp(pixels[:100]), TARGET
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(10):
        for index in torch.randperm(len(pixels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(module((pixels[index] - 0.5) / 0.25), labels[index]).backward()
            optimizer.step()
    return module.eval()


def answered(network, images):
    """Per image whether its label is the answer, and that answer's probability, (N,) float64 each."""
    with torch.no_grad():
        probability = network(images.pixels_NCHW).double().softmax(dim=1)
    right = probability.argmax(dim=1) == images.labels
    return right.double(), probability[torch.arange(len(images)), images.labels]


@dataclass
class Suspect:
    """The backdoored network on its workbench, and what only a test may know of it."""

    bench: Workbench
    phases: list
    clean: Images

    def scores(self):
        """Clean accuracy and attack success rate on images that nobody trained on."""
        network, labels = self.bench.network, self.clean.labels
        other = self.clean.take((labels != TARGET).nonzero().flatten())
        success = float((predict(network, stamp(other.pixels_NCHW)) == TARGET).double().mean())
        return accuracy(network, self.clean.pixels_NCHW, labels), success

    def stamped(self):
        """Images under the true trigger, with their true labels; none of the target class."""
        other = images(200, seed=5)
        other = other.take((other.labels != TARGET).nonzero().flatten())
        return Images(stamp(other.pixels_NCHW), other.labels)

    def tensors(self):
        return {name: tensor.detach().clone() for name, tensor in self.bench.network.tensors.items()}

    def without(self, channel):
        """Silence this channel of the first layer; returns the mask."""
        site = self.bench.network.sites[0]
        keep = torch.ones(site.num_channels, dtype=torch.bool)
        keep[channel] = False
        masks.silence(self.bench.network, mask := {site.name: keep})
        return mask

    def silent(self, mask):
        """Whether exactly the masked channels' maps are zero, and at least those."""
        seen = {}
        network = self.bench.network
        with torch.no_grad():
            network.observe(
                self.clean.pixels_NCHW[:20],
                {site.tap: lambda a, n=site.name: seen.update({n: a}) for site in network.sites},
            )
        return not any(bool(seen[name][:, ~keep].any()) for name, keep in mask.items())


@pytest.fixture(scope="session")
def modules():
    """The trained modules, with and without batch norm: their tensors are only ever copied."""
    return {batch_norm: train(batch_norm=batch_norm) for batch_norm in (True, False)}


@pytest.fixture(scope="session")
def planted(modules):
    """What it takes to send the suspect to the library as files."""
    return SimpleNamespace(
        tensors=modules[True].state_dict(),
        architecture=ArchitectureSpec(
            name="small_vgg", num_classes=CLASSES, in_channels=1, options={"width": 8, "batch_norm": True}
        ),
        input_spec=INPUT,
        images=images,
        stamp=stamp,
        target=TARGET,
    )


@pytest.fixture(scope="session")
def networks(modules):
    """The internal views of fresh copies of the modules, to be copied: an export takes longer than many a test."""
    return {batch_norm: from_module(copy.deepcopy(module), INPUT) for batch_norm, module in modules.items()}


@pytest.fixture(scope="session")
def suspect(networks):
    """Make a fresh workbench: `suspect()`, or `suspect(batch_norm=False)`."""

    def make(*, batch_norm=True, seed=0, spec=None):
        phases = []

        @contextmanager
        def phase(name, total):
            done = [0]
            yield lambda step: done.__setitem__(0, done[0] + step)
            phases.append((name, done[0], total))

        bench = Workbench(
            network=networks[batch_norm].twin(),
            num_classes=CLASSES,
            repair=images(100, seed=2),
            select=images(100, seed=3),
            guide=None,
            spec=spec or SanitizeSpec(),
            generator=torch.Generator().manual_seed(seed),
            phase=phase,
        )
        return Suspect(bench, phases, images(400, seed=4))

    return make
