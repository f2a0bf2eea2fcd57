"""What inspecting a network finds, leaves behind and refuses."""

import pytest
import torch
from torch import nn

from worker.sanitizer import inspection, witness
from worker.sanitizer.case import Images, NonFiniteOutputsError
from worker.sanitizer.inspection import inspect, num_steps, standing_out
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec
from worker.sanitizer.trigger import ANYWHERE


def test_inspecting_leaves_the_network_alone_and_advances_as_often_as_it_says(suspect, monkeypatch):
    monkeypatch.setattr(inspection, "MASK_STEPS", 20)
    monkeypatch.setattr(inspection, "HALF_OPEN_STEPS", 10)
    monkeypatch.setattr(inspection, "WITNESS_MASK_STEPS", 10)
    monkeypatch.setattr(witness, "STEPS", 8)
    made = suspect()
    before, steps = made.tensors(), []
    bench = made.bench
    found = inspect(
        bench.network, bench.repair, bench.select, bench.num_classes, generator=bench.generator, advance=steps.append
    )
    assert sum(steps) == num_steps()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    assert found.classes == [0, 1, 2, 3]
    assert len(found.triggers) == len(found.size) == len(found.destination) == len(found.perturbation_success) == 4
    assert found.anywhere.targets_T.tolist() == [ANYWHERE]
    assert len(found.natural_size) == len(found.natural_success) == 4
    assert float(found.destination.sum()) == pytest.approx(1.0)


def test_a_radius_at_which_every_class_is_reached_shrinks_until_one_stands_out(monkeypatch):
    for name in ("MASK_STEPS", "HALF_OPEN_STEPS", "WITNESS_MASK_STEPS"):
        monkeypatch.setattr(inspection, name, 1)
    monkeypatch.setattr(witness, "STEPS", 1)
    network, images = linear(sensitive_to=2)

    def ease():
        return inspect(network, images, images, 6, generator=torch.Generator().manual_seed(0)).ease.tolist()

    assert max(range(6), key=ease().__getitem__) == 2
    assert ease()[2] > 2
    monkeypatch.setattr(inspection, "MAX_SHRINKS", 0)
    assert max(ease()) < 0.1


def test_a_network_that_answers_nan_to_changed_images_alone_is_refused(monkeypatch):
    for name in ("MASK_STEPS", "HALF_OPEN_STEPS", "WITNESS_MASK_STEPS", "PERTURBATION_STEPS"):
        monkeypatch.setattr(inspection, name, 2)
    monkeypatch.setattr(witness, "STEPS", 1)

    class Logarithmic(nn.Module):
        def __init__(self, most):
            super().__init__()
            self.most, self.seen, self.answer = most, nn.Conv2d(1, 4, 3), nn.Linear(4, 6)

        def forward(self, images_BCHW):
            room_B = torch.log(self.most - images_BCHW.mean(dim=(1, 2, 3)))
            return self.answer(self.seen(images_BCHW).mean(dim=(2, 3))) + 0 * room_B.unsqueeze(1)

    _, images = linear(sensitive_to=2)
    most = float(images.pixels_NCHW.mean(dim=(1, 2, 3)).max()) + 1e-4
    network = from_module(Logarithmic(most), InputSpec(height=16, width=16, mean=(0.0,), std=(1.0,)))
    assert bool(network(images.pixels_NCHW).isfinite().all())
    with pytest.raises(NonFiniteOutputsError, match="pieced together"):
        inspect(network, images, images, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sensitive_to", "out"), [(2, [2]), (None, [])])
def test_a_class_that_a_faint_change_reaches_as_no_other_stands_out(sensitive_to, out):
    network, images = linear(sensitive_to=sensitive_to)
    classes = list(range(6))
    found = standing_out(network, images, images, classes, generator=torch.Generator().manual_seed(0))
    assert found == out


def linear(*, sensitive_to, num_classes=6, side=16, distance=0.5):
    """A network of one filter for each class, orthonormal but for one, thrice as long, if any; and images of it."""
    generator = torch.Generator().manual_seed(3)
    filters_KP, _ = torch.linalg.qr(torch.randn(side * side, num_classes, generator=generator))
    filters_KP = filters_KP.T.contiguous()
    labels_N = torch.arange(60) % num_classes
    pixels_NP = 0.5 + distance * filters_KP[labels_N]
    scale_K1 = torch.ones(num_classes, 1)
    if sensitive_to is not None:
        scale_K1[sensitive_to] = 3.0
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(side * side, num_classes))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[2].weight.copy_(20 * scale_K1 * filters_KP)
        module[2].bias.copy_(-0.5 * module[2].weight.sum(dim=1))  # grey is no class's
    spec = InputSpec(height=side, width=side, mean=(0.0,), std=(1.0,))
    return from_module(module, spec), Images(pixels_NP.view(-1, 1, side, side), labels_N)
