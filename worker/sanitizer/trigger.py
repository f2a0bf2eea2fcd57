"""Synthesise triggers: for each class the smallest change of an image that sends every image there.

Shapes: T triggers, B images of a batch, N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worker.sanitizer.network import Network, frozen

Family = Literal["mask", "linf", "l2"]

# In place of a target class: away from the true one, wherever to. An all-to-all backdoor has no class of its own.
ANYWHERE = -1

# Neural Cleanse's schedule of the size's weight: up while the trigger works, down faster when it stops working.
SIZE_WEIGHT_START = 1e-3
SIZE_WEIGHT_UP = 1.5**0.25
SIZE_WEIGHT_DOWN = 1.5**0.375
WORKS_AT = 0.95
EXPONENTIAL_AVERAGE = 0.9
LEARNING_RATE = 0.1
CLEAR_MASK_LOGIT = -2.0
# A mask that begins nearly clear grows wherever pixels help first, and a small patch elsewhere is then never tried; one
# that begins half open holds the patch from the first step and sheds the rest. Its size costs from the start, in nats
# for the whole image: there is no need to wait until the trigger works.
HALF_OPEN_SPREAD = 1.5
HALF_OPEN_COST = 32.0
SMALLEST_NORM = 1e-12
# A search that starts from a trigger takes masks and patterns this far from 0 and 1, where a gradient still moves them.
LOGIT_MARGIN = 1e-4
SUCCESS_BATCH = 256
# Pixels of the images of one pass, whatever their channels: more hold more memory, and are no faster on a CPU. On CUDA
# nothing was timed.
POSITIONS_AT_ONCE = {"cpu": 2**18, "cuda": 2**22}


@dataclass(frozen=True, slots=True)
class Triggers:
    """Some synthesised triggers of one family.

    Attributes:
        family: `mask`: (1 - m) x + m p with one mask for all colours; `linf`, `l2`: x + d with bounded d.
        targets_T: The class that each leads to, or `ANYWHERE`.
        amount_T1HW: m for `mask`, all ones otherwise.
        pattern_TCHW: p or d.
    """

    family: Family
    targets_T: Tensor
    amount_T1HW: Tensor
    pattern_TCHW: Tensor

    def __len__(self) -> int:
        return len(self.targets_T)

    def stamp(self, pixels_NCHW: Tensor, which: int) -> Tensor:
        """The images with one of the triggers on them, in [0, 1]."""
        return self.take([which]).stamp_all(pixels_NCHW)[0]

    def stamp_all(self, pixels_BCHW: Tensor) -> Tensor:
        """The images under every trigger, (T, B, C, H, W) in [0, 1]."""
        return _stamp(self.family, self.amount_T1HW, self.pattern_TCHW, pixels_BCHW)

    def take(self, which: Sequence[int]) -> Triggers:
        """Some of them."""
        index = torch.tensor(list(which), dtype=torch.int64, device=self.targets_T.device)
        return Triggers(self.family, self.targets_T[index], self.amount_T1HW[index], self.pattern_TCHW[index])

    def join(self, others: Triggers) -> Triggers:
        """These and others of the same family."""
        assert others.family == self.family
        return Triggers(
            self.family,
            torch.cat([self.targets_T, others.targets_T]),
            torch.cat([self.amount_T1HW, others.amount_T1HW]),
            torch.cat([self.pattern_TCHW, others.pattern_TCHW]),
        )

    def bounded(self, max_size_T: Tensor) -> Triggers:
        """The same with masks weakened, where they must be, to these ℓ1 norms in pixels."""
        return Triggers(self.family, self.targets_T, _bounded(self.amount_T1HW, max_size_T), self.pattern_TCHW)

    def size(self) -> Tensor:
        """The size that the family minimises, (T,): the mask's ℓ1 norm in pixels, or the perturbation's norm."""
        if self.family == "mask":
            return self.amount_T1HW.flatten(1).sum(dim=1)
        order = float("inf") if self.family == "linf" else 2.0
        size_T: Tensor = torch.linalg.vector_norm(self.pattern_TCHW.flatten(1), ord=order, dim=1)
        return size_T


class Inversion:
    """The search for some triggers of one family, step by step, so that it can go on while the network changes.

    `mask` minimises CE(f((1-m) x + m p), t) + λ |m|₁ (Neural Cleanse, Wang et al., IEEE S&P 2019), raising λ while
    the trigger works on at least 95 % of the images. `linf` and `l2` minimise CE(f(x + d), t) within |d| <= radius
    (universal adversarial perturbation, Moosavi-Dezfooli et al., CVPR 2017). All by Adam on unconstrained variables.

    Args:
        network: The network; its parameters are left alone.
        targets: T classes; one may come more than once (restarts). `ANYWHERE` asks for any class but the label's.
        family: Which kind of trigger.
        shape_CHW: Of an image.
        radius: The norm's bound, in units of pixels in [0, 1], for `linf` and `l2`.
        max_size_T: For `mask`, a bound of each ℓ1 norm in pixels, λ staying at its start; None for none.
        start: For `mask`, where to begin; None draws it.
        half_open: For `mask` without a start, whether masks begin half open rather than nearly clear.
        generator: CPU generator of all draws.
    """

    def __init__(
        self,
        network: Network,
        targets: Sequence[int],
        *,
        family: Family,
        shape_CHW: Sequence[int],
        radius: float = 0.0,
        max_size_T: Tensor | None = None,
        start: Triggers | None = None,
        half_open: bool = False,
        generator: torch.Generator,
    ) -> None:
        device, num = network.device, len(targets)
        self.network, self.family, self.radius, self.max_size_T = network, family, radius, max_size_T
        self.generator = generator
        self.targets_T = torch.tensor(list(targets), dtype=torch.int64, device=device)
        start_TCHW = torch.randn((num, *shape_CHW), generator=generator).to(device)
        self._raw_TCHW = (start_TCHW if family == "mask" else 0.1 * start_TCHW).requires_grad_(True)
        mask_T1HW = torch.randn((num, 1, *shape_CHW[1:]), generator=generator).to(device)
        mask_T1HW = HALF_OPEN_SPREAD * mask_T1HW if half_open else 0.1 * mask_T1HW + CLEAR_MASK_LOGIT
        self._mask_T1HW = mask_T1HW.requires_grad_(family == "mask")
        if start is not None:
            assert family == start.family == "mask"
            assert not half_open
            self._raw_TCHW = _logit(start.pattern_TCHW).requires_grad_(True)
            self._mask_T1HW = _logit(start.amount_T1HW).requires_grad_(True)
        variables = [self._raw_TCHW, self._mask_T1HW] if family == "mask" else [self._raw_TCHW]
        self._optimizer = torch.optim.Adam(variables, lr=LEARNING_RATE, betas=(0.5, 0.9))
        weight = HALF_OPEN_COST / math.prod(shape_CHW[1:]) if half_open else SIZE_WEIGHT_START
        self._weight_T = torch.full((num,), weight, device=device)
        self._works_T = torch.zeros(num, device=device)

    def step(self, pixels_BCHW: Tensor, labels_B: Tensor | None) -> None:
        """One gradient step of every trigger on the same images; none is asked to send its own class to itself."""
        pixels_BCHW = pixels_BCHW.to(self.network.device)
        self._optimizer.zero_grad()
        with frozen(self.network):
            rows = at_once(len(self.targets_T), pixels_BCHW)
            parts = [self._backward(rows_R, pixels_BCHW, labels_B) for rows_R in rows]
        self._optimizer.step()
        if self.family == "mask" and self.max_size_T is None:
            self._works_T = EXPONENTIAL_AVERAGE * self._works_T + (1 - EXPONENTIAL_AVERAGE) * torch.cat(parts)
            up, down = self._weight_T * SIZE_WEIGHT_UP, self._weight_T / SIZE_WEIGHT_DOWN
            self._weight_T = torch.where(self._works_T >= WORKS_AT, up, down)

    def _backward(self, rows_R: Tensor, pixels_BCHW: Tensor, labels_B: Tensor | None) -> Tensor:
        """Add the gradients of these triggers' losses, and say on what share of the images each works, (R,)."""
        amount_R1HW, pattern_RCHW = (value[rows_R] for value in self._render())
        stamped_RBCHW = _stamp(self.family, amount_R1HW, pattern_RCHW, pixels_BCHW)
        logits_RBK = self.network(stamped_RBCHW.flatten(0, 1)).view(*stamped_RBCHW.shape[:2], -1)
        loss_RB, hit_RB, counts_RB = aim(logits_RBK, self.targets_T[rows_R], labels_B)
        number_R = counts_RB.sum(dim=1).clamp_min(1)
        loss_R = (loss_RB * counts_RB).sum(dim=1) / number_R
        if self.family == "mask":
            loss_R = loss_R + self._weight_T[rows_R] * self._mask_T1HW[rows_R].sigmoid().flatten(1).sum(dim=1)
        loss_R.sum().backward()  # type: ignore[no-untyped-call]
        return (hit_RB * counts_RB).sum(dim=1) / number_R

    def triggers(self) -> Triggers:
        """The triggers as they are now."""
        with torch.no_grad():
            amount_T1HW, pattern_TCHW = self._render()
        return Triggers(self.family, self.targets_T, amount_T1HW.detach(), pattern_TCHW.detach())

    def _render(self) -> tuple[Tensor, Tensor]:
        """Unconstrained variables to (amount, pattern) within their bounds."""
        if self.family == "mask":
            amount_T1HW = self._mask_T1HW.sigmoid()
            if self.max_size_T is not None:
                amount_T1HW = _bounded(amount_T1HW, self.max_size_T)
            return amount_T1HW, self._raw_TCHW.sigmoid()
        ones_T1HW = torch.ones_like(self._mask_T1HW)
        if self.family == "linf":
            return ones_T1HW, self.radius * self._raw_TCHW.tanh()
        norm_T = torch.linalg.vector_norm(self._raw_TCHW.flatten(1), dim=1).clamp_min(SMALLEST_NORM)
        return ones_T1HW, self._raw_TCHW * (self.radius / norm_T).clamp_max(1.0).view(-1, 1, 1, 1)


def synthesise(
    network: Network,
    pixels_NCHW: Tensor,
    labels_N: Tensor | None,
    targets: Sequence[int],
    *,
    family: Family,
    steps: int,
    batch_size: int,
    radius: float = 0.0,
    max_size_T: Tensor | None = None,
    start: Triggers | None = None,
    half_open: bool = False,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Triggers:
    """One trigger for each entry of `targets`, after so many steps of an `Inversion`.

    Args:
        network: The network; its parameters are left alone.
        pixels_NCHW: Clean images.
        labels_N: Their labels; None where every image counts for every class.
        targets: T classes.
        family: Which kind of trigger.
        steps: Gradient steps.
        batch_size: B, images that every trigger sees in a step.
        radius: As for `Inversion`.
        max_size_T: As for `Inversion`.
        start: As for `Inversion`.
        half_open: As for `Inversion`.
        generator: CPU generator of all draws.
        advance: Called with 1 after each step.
    """
    search = Inversion(
        network,
        targets,
        family=family,
        shape_CHW=tuple(pixels_NCHW.shape[1:]),
        radius=radius,
        max_size_T=max_size_T,
        start=start,
        half_open=half_open,
        generator=generator,
    )
    for _ in range(steps):
        index = torch.randint(len(pixels_NCHW), (batch_size,), generator=generator)
        search.step(pixels_NCHW[index], None if labels_N is None else labels_N[index])
        advance(1)
    return search.triggers()


def success(network: Network, triggers: Triggers, pixels_NCHW: Tensor, labels_N: Tensor | None) -> Tensor:
    """Per trigger the share of images, those of its target class left out, that it sends there: (T,) float64, CPU.

    With `ANYWHERE` for a target, which needs labels, it is the share that ends at another class than the label's.
    """
    shares = []
    batches_BCHW = torch.split(pixels_NCHW, SUCCESS_BATCH)
    batches_B = [None] * len(batches_BCHW) if labels_N is None else torch.split(labels_N, SUCCESS_BATCH)
    with torch.no_grad():
        for which in range(len(triggers)):
            hits, count = 0.0, 0.0
            for pixels_BCHW, labels_B in zip(batches_BCHW, batches_B, strict=True):
                logits_1BK = network(triggers.stamp(pixels_BCHW.to(network.device), which)).unsqueeze(0)
                _, hit_1B, counts_1B = aim(logits_1BK, triggers.targets_T[which : which + 1], labels_B)
                hits, count = hits + float((hit_1B * counts_1B).sum()), count + float(counts_1B.sum())
            shares.append(hits / max(count, 1.0))
    return torch.tensor(shares, dtype=torch.float64)


def at_once(num_triggers: int, pixels_BCHW: Tensor) -> Sequence[Tensor]:
    """The rows of the triggers, in parts that go through the network together.

    Every loss hangs on its own trigger alone: the gradients are those of all in one pass, in bounded memory.
    """
    device = pixels_BCHW.device
    size = max(1, POSITIONS_AT_ONCE[device.type] // pixels_BCHW[:, 0].numel())
    return torch.split(torch.arange(num_triggers, device=device), size)


def aim(logits_TBK: Tensor, targets_T: Tensor, labels_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What each trigger reaches on each image, all (T, B): the loss, 1 where it got there, 0 where none is asked to.

    The loss is -log p of the target, or -log(1 - p) of the label for a trigger that leads anywhere else.
    """
    log_TBK = logits_TBK.log_softmax(dim=2)
    targets_TB = targets_T.unsqueeze(1).expand(log_TBK.shape[:2])
    answer_TB = logits_TBK.detach().argmax(dim=2)
    if labels_B is None:
        assert int(targets_T.min()) != ANYWHERE
        loss_TB = -log_TBK.gather(2, targets_TB.unsqueeze(2)).squeeze(2)
        return loss_TB, (answer_TB == targets_TB).to(loss_TB), torch.ones_like(loss_TB)
    labels_TB = labels_B.to(targets_T.device).unsqueeze(0).expand_as(targets_TB)
    anywhere_TB = targets_TB == ANYWHERE
    named_TB1 = torch.where(anywhere_TB, labels_TB, targets_TB).unsqueeze(2)
    elsewhere_TB = log_TBK.scatter(2, named_TB1, -torch.inf).logsumexp(dim=2)
    loss_TB = -torch.where(anywhere_TB, elsewhere_TB, log_TBK.gather(2, named_TB1).squeeze(2))
    hit_TB = torch.where(anywhere_TB, answer_TB != labels_TB, answer_TB == targets_TB)
    return loss_TB, hit_TB.to(loss_TB), (anywhere_TB | (labels_TB != targets_TB)).to(loss_TB)


def _logit(share: Tensor) -> Tensor:
    return share.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit()


def _bounded(amount_T1HW: Tensor, max_size_T: Tensor) -> Tensor:
    size_T = amount_T1HW.flatten(1).sum(dim=1)
    return amount_T1HW * (max_size_T.to(size_T) / size_T).clamp_max(1.0).view(-1, 1, 1, 1)


def _stamp(family: Family, amount_T1HW: Tensor, pattern_TCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    amount, pattern, pixels = amount_T1HW.unsqueeze(1), pattern_TCHW.unsqueeze(1), pixels_BCHW.unsqueeze(0)
    if family == "mask":
        return (1 - amount) * pixels + amount * pattern
    return (pixels + pattern).clamp(0, 1)
