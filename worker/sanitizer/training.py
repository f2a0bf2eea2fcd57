"""Train a network on few images: seeded minibatches, plain and sharpness-aware descent, pruned channels kept silent.

Shapes: N images, B images of a batch, C channels, H height, W width, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer import masks
from worker.sanitizer.case import Images
from worker.sanitizer.network import Network

# Below this the product |w|·g says nothing about a direction, and the network stays where it is.
SMALLEST_NORM = 1e-12

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Stochastic gradient descent with a cosine learning rate.

    Attributes:
        epochs: Passes over the images, fewer where `max_steps` ends them.
        max_steps: Gradient steps at most, so that many images do not cost more time than some hundred.
        batch_size: B.
        learning_rate: At the start; the cosine takes it to zero.
        momentum: Of the steps before.
        weight_decay: ℓ2 penalty.
        label_smoothing: Share of the label spread over all classes.
        max_shift: Pixels by which images are moved at random; 0 leaves them alone.
        sam_radius: The radius of adaptive sharpness-aware minimisation; 0 is plain descent.
    """

    epochs: int
    max_steps: int
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    max_shift: int = 0
    sam_radius: float = 0.0

    def num_steps(self, num_images: int) -> int:
        """How many gradient steps this is for so many images."""
        return min(self.max_steps, self.epochs * math.ceil(num_images / self.batch_size))


def minibatches(
    images: Images, *, batch_size: int, generator: torch.Generator, device: torch.device, max_shift: int = 0
) -> Iterator[Batch]:
    """Pixels and labels in ever new orders, without end: (B, C, H, W) and (B,), on the device.

    Every image comes once before any comes again; the last batch of a pass is shorter where it must be.
    """
    while True:
        order_N = torch.randperm(len(images), generator=generator)
        for index in (order_N[start : start + batch_size] for start in range(0, len(images), batch_size)):
            pixels_BCHW = images.pixels_NCHW[index]
            if max_shift:
                pixels_BCHW = shift(pixels_BCHW, max_shift, generator)
            yield pixels_BCHW.to(device), images.labels[index].to(device)


def shift(pixels_BCHW: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `max_shift` pixels down and across; its edge is repeated where it left a gap."""
    batch, _, height, width = pixels_BCHW.shape
    by_B2 = torch.randint(-max_shift, max_shift + 1, (batch, 2), generator=generator)
    rows_BH = (torch.arange(height) - by_B2[:, :1]).clamp(0, height - 1)
    columns_BW = (torch.arange(width) - by_B2[:, 1:]).clamp(0, width - 1)
    which_B11 = torch.arange(batch).view(-1, 1, 1)
    # Advanced indices around a slice put its dimension last.
    moved_BHWC = pixels_BCHW[which_B11, :, rows_BH.unsqueeze(2), columns_BW.unsqueeze(1)]
    return moved_BHWC.permute(0, 3, 1, 2).contiguous()


def mirror(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image, left and right exchanged for every second one at random."""
    is_mirrored_B = torch.rand(len(pixels_BCHW), generator=generator) < 0.5
    return torch.where(is_mirrored_B.view(-1, 1, 1, 1).to(pixels_BCHW.device), pixels_BCHW.flip(3), pixels_BCHW)


def patchwork(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with a rectangle of another of the batch in the same place, of a share of its area drawn from [0, 1].

    What the classes are told apart by lies in the pieces, what a trigger is told by does not: such images show what a
    network knows far beyond the few whole ones. Source: Yun et al., "CutMix", ICCV 2019, without its labels.
    """
    batch, _, height, width = pixels_BCHW.shape
    side_B1 = torch.rand(batch, 1, generator=generator).sqrt()
    place_B2 = torch.rand(batch, 2, generator=generator)
    other_B = torch.randperm(batch, generator=generator)

    def inside(size: int, place_B1: Tensor) -> Tensor:
        length_B1 = (size * side_B1).round()
        first_B1 = ((size - length_B1) * place_B1).round()
        offset_BS = torch.arange(size) - first_B1
        return (offset_BS >= 0) & (offset_BS < length_B1)

    cut_BHW = inside(height, place_B2[:, :1]).unsqueeze(2) & inside(width, place_B2[:, 1:]).unsqueeze(1)
    return torch.where(cut_BHW.unsqueeze(1).to(pixels_BCHW.device), pixels_BCHW[other_B], pixels_BCHW)


def sam_perturbation(weights: Sequence[Tensor], gradients: Sequence[Tensor], *, radius: float) -> list[Tensor]:
    """The step e = r w² g / ‖|w| g‖₂ to the sharpest neighbour, products by element, one norm over all tensors.

    Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023,
    with the adaptive neighbourhood of Kwon et al., ASAM, ICML 2021.

    Args:
        weights: w, one tensor per parameter.
        gradients: g, the loss's gradients, of the same shapes.
        radius: r, the size of the neighbourhood.
    """
    pairs = list(zip(weights, gradients, strict=True))
    norm = torch.stack([(weight.abs() * gradient).norm() for weight, gradient in pairs]).norm()
    factor = radius / norm.clamp_min(SMALLEST_NORM)
    return [factor * weight.square() * gradient for weight, gradient in pairs]


def sam_gradients(parameters: Sequence[Tensor], loss: Callable[[], Tensor], *, radius: float) -> None:
    """Leave in each parameter's `grad` the loss's gradient at the sharpest neighbour; the parameters stay bit by bit.

    Args:
        parameters: What the loss depends on and descent will change.
        loss: Computes it anew with the parameters as they are.
        radius: That of `sam_perturbation`.
    """
    here = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    with torch.no_grad():
        for parameter, step in zip(parameters, sam_perturbation(here, gradients, radius=radius), strict=True):
            parameter.add_(step)
    loss().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter, value in zip(parameters, here, strict=True):
            parameter.copy_(value)


def fine_tune(
    network: Network,
    images: Images,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    mask: Mapping[str, Tensor] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Descend on the cross-entropy of the images, changing every parameter of the network in place.

    Args:
        network: The network; the statistics of its batch norms stay as they are.
        images: Labelled images.
        schedule: Steps, rate and what else there is to choose.
        generator: CPU generator of all draws.
        mask: Channels that are silent and stay so.
        change: Applied to each batch's pixels, e.g. to stamp a trigger on some.
        advance: Called with 1 after each step.
    """
    parameters = list(network.parameters().values())
    optimizer = torch.optim.SGD(
        parameters, lr=schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    steps = schedule.num_steps(len(images))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = minibatches(
        images,
        batch_size=schedule.batch_size,
        generator=generator,
        device=network.device,
        max_shift=schedule.max_shift,
    )
    for pixels_BCHW, labels_B in islice(batches, steps):
        seen_BCHW = pixels_BCHW if change is None else change(pixels_BCHW)

        def loss(seen_BCHW: Tensor = seen_BCHW, labels_B: Tensor = labels_B) -> Tensor:
            return functional.cross_entropy(network(seen_BCHW), labels_B, label_smoothing=schedule.label_smoothing)

        optimizer.zero_grad()
        if schedule.sam_radius:
            sam_gradients(parameters, loss, radius=schedule.sam_radius)
        else:
            loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cosine.step()
        if mask is not None:
            masks.silence(network, mask)
        advance(1)
    # Gradients of the last step would otherwise live as long as the network.
    optimizer.zero_grad()
