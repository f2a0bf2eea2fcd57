"""A witness: a small network of our own that is taught what the classes look like, and never meets a trigger.

Some classes are easily reached in every network of the same data: a handle makes a bag of nearly anything. What leads
to a class in the witness too is nature; what leads there in the suspect alone is not.

Shapes: N images, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.sanitizer.case import Images
from worker.sanitizer.network import Network, from_module
from worker.sanitizer.spec import InputSpec
from worker.sanitizer.training import minibatches
from worker.sanitizer.variety import Vary, patchworks

STEPS = 400
BATCH = 64
RATE = 3e-3
WARM_UP_SHARE = 0.2
WEIGHT_DECAY = 1e-4
MAX_SHIFT = 1
WIDTH = 16
# Larger images are reduced to so many pixels a side: the cost then hangs on the suspect alone.
MAX_SIDE = 32
SMALLEST_STD = 1e-3
# Of fewer classes a line says nothing.
MIN_CLASSES_OF_A_LINE = 5


class WitnessModule(nn.Module):
    """Two pairs of convolutions, each followed by a pooling, and a linear layer that knows places.

    Args:
        shape_CHW: Of an image.
        num_classes: K.
    """

    def __init__(self, shape_CHW: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, *sides = shape_CHW
        self.sides = [min(side, MAX_SIDE) for side in sides]
        self.is_reduced = self.sides != list(sides)
        # As products, since CUDA has no deterministic gradient of a pooling over uneven areas.
        self.rows_hH, self.columns_wW = (
            nn.Buffer(areas(side, reduced)) for side, reduced in zip(sides, self.sides, strict=True)
        )
        self.stages = nn.ModuleList([_stage(channels, WIDTH), _stage(WIDTH, 2 * WIDTH)])
        height, width = (-(-side // 4) for side in self.sides)
        self.answer = nn.Linear(2 * WIDTH * height * width, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        if self.is_reduced:
            images_BCHW = self.rows_hH @ images_BCHW @ self.columns_wW.T
        for stage in self.stages:
            images_BCHW = functional.max_pool2d(stage(images_BCHW), 2, ceil_mode=True)
        logits_BK: Tensor = self.answer(images_BCHW.flatten(1))
        return logits_BK


def teach(
    network: Network,
    images: Images,
    *,
    generator: torch.Generator,
    vary: Vary = patchworks,
    advance: Callable[[int], None] = lambda _: None,
) -> Network:
    """A witness that answers as the network does on patchworks of clean images, by KL(f ‖ witness).

    What the network knows of the classes is in these answers, a backdoor hardly: none of them has the trigger. Source
    of the idea that distillation leaves a backdoor behind: Yoshida and Fujino, "Disabling Backdoor and Identifying
    Poison Data by Using Knowledge Distillation in Backdoor Attacks on Deep Neural Networks", AISec 2020.

    Args:
        network: f, left alone.
        images: Clean images.
        generator: CPU generator of all draws.
        vary: What makes patchworks of a batch, or takes their place.
        advance: Called with 1 after each of `STEPS` steps.
    """
    shape_CHW = tuple(images.pixels_NCHW.shape[1:])
    with torch.no_grad():
        # A network may have more outputs than classes were declared.
        num_outputs = network(images.pixels_NCHW[:1].to(network.device)).shape[1]
    module = _drawn(shape_CHW, num_outputs, generator).to(network.device).train()
    spec = _input_spec(images.pixels_NCHW)
    mean_1C11, std_1C11 = (
        torch.tensor(values, device=network.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=WARM_UP_SHARE)
    batches = minibatches(images, batch_size=BATCH, generator=generator, device=network.device, max_shift=MAX_SHIFT)
    for pixels_BCHW, labels_B in islice(batches, STEPS):
        pieced_BCHW = vary(pixels_BCHW, labels_B, generator)
        with torch.no_grad():
            taught_BK = network(pieced_BCHW).softmax(dim=1)
        log_BK = module((pieced_BCHW - mean_1C11) / std_1C11).log_softmax(dim=1)
        optimizer.zero_grad()
        functional.kl_div(log_BK, taught_BK, reduction="batchmean").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance(1)
    return from_module(module, spec)


def slope(natural_K: Tensor, seen_K: Tensor) -> float:
    """How much of a statistic's differences between classes is natural, within 0 and 1.

    It is the median of all pairs' slopes, which no single class bends (Theil 1950, Sen 1968), and 0 where there are too
    few classes for a line or the witness's search diverged.

    Args:
        natural_K: x, the statistic of the witness.
        seen_K: y, that of the suspect.
    """
    natural_K, seen_K = natural_K.double(), seen_K.double()
    if len(natural_K) < MIN_CLASSES_OF_A_LINE or not bool(natural_K.isfinite().all()):
        return 0.0
    row_P, column_P = torch.triu_indices(len(natural_K), len(natural_K), offset=1)
    apart_P = natural_K[row_P] - natural_K[column_P]
    rise_P = seen_K[row_P] - seen_K[column_P]
    told_P = apart_P != 0
    if not bool(told_P.any()):
        return 0.0
    return float((rise_P[told_P] / apart_P[told_P]).quantile(0.5).nan_to_num(nan=0.0).clamp(0, 1))


def beyond(natural_K: Tensor, seen_K: Tensor) -> Tensor:
    """What of a statistic of each class is not natural: y - b x less its median, (K,) float64, with b the `slope`."""
    share = slope(natural_K, seen_K)
    # A witness whose search diverged says nothing, and is not even multiplied by zero.
    left_K = seen_K.double() - share * natural_K.double() if share else seen_K.double()
    return left_K - left_K.quantile(0.5)


def areas(side: int, reduced: int) -> Tensor:
    """The matrix that averages `side` pixels to `reduced`, each over the pixels that its area touches."""
    matrix_RS = torch.zeros(reduced, side)
    for row in range(reduced):
        first, last = row * side // reduced, -(-(row + 1) * side // reduced)
        matrix_RS[row, first:last] = 1 / (last - first)
    return matrix_RS


def _stage(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _drawn(shape_CHW: Sequence[int], num_classes: int, generator: torch.Generator) -> WitnessModule:
    """Torch draws a module's first weights from its own state; that is put back."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WitnessModule(shape_CHW, num_classes)


def _input_spec(pixels_NCHW: Tensor) -> InputSpec:
    """Sizes and normalisation by the images' own mean and spread."""
    _, _, height, width = pixels_NCHW.shape
    mean_C = pixels_NCHW.mean(dim=(0, 2, 3))
    std_C = pixels_NCHW.std(dim=(0, 2, 3)).clamp_min(SMALLEST_STD)
    return InputSpec(height=height, width=width, mean=tuple(mean_C.tolist()), std=tuple(std_C.tolist()))
