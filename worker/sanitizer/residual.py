"""Triggers that depend on the image: a small network writes what is added to it.

No mask and no fixed pattern stands for a warp or a sample-specific trigger; a function of the image does, and holds
fixed patterns of the whole image too. After the generators of such attacks (Nguyen and Tran, "Input-Aware Dynamic
Backdoor Attack", NeurIPS 2020; Doan et al., "LIRA", ICCV 2021), here to find them.

Shapes: T triggers, R some of them, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer.network import Network, frozen
from worker.sanitizer.trigger import aim, at_once

KERNEL = 5
FEATURES = 8
FILTER_RATE = 0.02
BIAS_RATE = 0.05
BIAS_SPREAD = 0.3
SMALLEST_NORM = 1e-12
# A stamped image gets its change at a strength drawn from here to 1: weaker triggers must not work either.
LEAST_STRENGTH = 0.5


class ResidualSearch:
    """The search for functions g of the image such that f(x + r g(x) / ‖g(x)‖₂) is the target, step by step.

    g(x) = w₂ * relu(w₁ * (x - ½)) + b, two convolutions and a map of biases for each trigger, by Adam.

    Args:
        network: f; its parameters are left alone.
        targets: T classes, or `ANYWHERE`; one may come more than once.
        shape_CHW: Of an image.
        radius: r, in units of pixels in [0, 1].
        generator: CPU generator of all draws.
    """

    def __init__(
        self,
        network: Network,
        targets: Sequence[int],
        *,
        shape_CHW: Sequence[int],
        radius: float,
        generator: torch.Generator,
    ) -> None:
        self.network, self.radius, self.generator = network, radius, generator
        self.targets_T = torch.tensor(list(targets), dtype=torch.int64, device=network.device)
        num, channels = len(targets), shape_CHW[0]
        per_first, per_second = KERNEL**2 * channels, KERNEL**2 * FEATURES

        def drawn(spread: float, *shape: int) -> Tensor:
            return (spread * torch.randn(shape, generator=generator)).to(network.device).requires_grad_(True)

        self._first_T = drawn(per_first**-0.5, num, FEATURES, channels, KERNEL, KERNEL)
        self._second_T = drawn(per_second**-0.5, num, channels, FEATURES, KERNEL, KERNEL)
        self._bias_TCHW = drawn(BIAS_SPREAD, num, *shape_CHW)
        self._optimizer = torch.optim.Adam(
            [
                {"params": [self._first_T, self._second_T], "lr": FILTER_RATE},
                {"params": [self._bias_TCHW], "lr": BIAS_RATE},
            ],
            betas=(0.5, 0.9),
        )

    def step(self, pixels_BCHW: Tensor, labels_B: Tensor) -> None:
        """One gradient step of every trigger on the same images; none is asked to send its own class to itself."""
        pixels_BCHW = pixels_BCHW.to(self.network.device)
        self._optimizer.zero_grad()
        with frozen(self.network):
            for rows_R in at_once(len(self.targets_T), pixels_BCHW):
                stamped_RBCHW = (pixels_BCHW + self._change(pixels_BCHW, rows_R)).clamp(0, 1)
                logits_RBK = self.network(stamped_RBCHW.flatten(0, 1)).view(*stamped_RBCHW.shape[:2], -1)
                loss_RB, _, counts_RB = aim(logits_RBK, self.targets_T[rows_R], labels_B)
                loss_R = (loss_RB * counts_RB).sum(dim=1) / counts_RB.sum(dim=1).clamp_min(1)
                loss_R.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def stamp_randomly(self, pixels_BCHW: Tensor) -> Tensor:
        """Each image under one of the triggers and at a strength, both drawn at random: (B, C, H, W) in [0, 1]."""
        batch, num = len(pixels_BCHW), len(self.targets_T)
        which_B = torch.randint(num, (batch,), generator=self.generator).to(pixels_BCHW.device)
        strength_B111 = LEAST_STRENGTH + (1 - LEAST_STRENGTH) * torch.rand(batch, 1, 1, 1, generator=self.generator)
        stamped_BCHW = pixels_BCHW.clone()
        with torch.no_grad():
            for row in torch.arange(num, device=pixels_BCHW.device):
                change_BCHW = self._change(pixels_BCHW[which_B == row], row.unsqueeze(0))[0]
                stamped_BCHW[which_B == row] += strength_B111.to(pixels_BCHW)[which_B == row] * change_BCHW
        return stamped_BCHW.clamp(0, 1)

    def _change(self, pixels_BCHW: Tensor, rows_R: Tensor) -> Tensor:
        """Change r g(x) / ‖g(x)‖₂ by some of the triggers: (R, B, C, H, W)."""
        num, padding = len(rows_R), KERNEL // 2
        # A CPU is quicker at convolutions in groups with channels last, forwards and back.
        first, second = (
            filters[rows_R].flatten(0, 1).contiguous(memory_format=torch.channels_last)
            for filters in (self._first_T, self._second_T)
        )
        features = functional.conv2d(pixels_BCHW - 0.5, first, padding=padding).relu()
        written = functional.conv2d(features, second, padding=padding, groups=num)
        written_BRCHW = written.view(len(written), num, *self._bias_TCHW.shape[1:])
        change_RBCHW: Tensor = written_BRCHW.transpose(0, 1) + self._bias_TCHW[rows_R].unsqueeze(1)
        norm_RB: Tensor = torch.linalg.vector_norm(change_RBCHW.flatten(2), dim=2).clamp_min(SMALLEST_NORM)
        return change_RBCHW * (self.radius / norm_RB).view(*norm_RB.shape, 1, 1, 1)
