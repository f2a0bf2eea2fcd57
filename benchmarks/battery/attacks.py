"""The attacks of the battery: which training images are poisoned, and with which label.

An attack is a trigger (see `triggers`), a rule for the label, and a rule for which images are taken. Images are
float32 in [0, 1], NCHW; labels are int64. Everything is a pure function of images, labels, rate and seed.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.battery import triggers
from benchmarks.battery.triggers import Stamp

# A class whose images all carried the trigger would be learnt by the trigger alone.
MAX_CLEAN_LABEL_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to plant a backdoor.

    `targets_by_trigger` gives a target class for each trigger, or None for "the next class" (all to all).
    """

    name: str
    num_classes: int
    stamps: tuple[Stamp, ...]
    targets_by_trigger: tuple[int | None, ...]
    clean_label: bool = False
    # For WaNet: as many again of other images, disturbed in this way, keep their true label.
    noise: Callable[[Tensor, int], Tensor] | None = None

    @property
    def num_triggers(self) -> int:
        """How many triggers the attack plants, each of which is scored on its own."""
        return len(self.stamps)

    def stamp(self, images_NCHW: Tensor, trigger: int = 0) -> Tensor:
        """Return the images with the trigger; the input is not changed."""
        return self.stamps[trigger](images_NCHW)

    def targets(self, labels_N: Tensor, trigger: int = 0) -> Tensor:
        """Return the class that the backdoor sends each image to."""
        target = self.targets_by_trigger[trigger]
        return (labels_N + 1) % self.num_classes if target is None else torch.full_like(labels_N, target)

    def scored(self, labels_N: Tensor, trigger: int = 0) -> Tensor:
        """Return a mask of the images that count for the attack success rate: not those already of the target class."""
        return self.targets(labels_N, trigger) != labels_N

    def num_poisoned(self, labels_N: Tensor, rate: float) -> int:
        """Return how many images `poison` takes: `rate` of all, or fewer where a clean-label class is too small."""
        wanted = round(rate * len(labels_N))
        if self.clean_label:
            num_target = int(torch.count_nonzero(self.targets(labels_N) == labels_N))
            return min(wanted, int(MAX_CLEAN_LABEL_SHARE * num_target))
        return wanted

    def poison(self, images_NCHW: Tensor, labels_N: Tensor, rate: float, seed: int) -> tuple[Tensor, Tensor]:
        """Return copies of the images and labels with `rate` of all images poisoned.

        The images are drawn by `seed` from those whose label would change, or, for a clean-label attack, from the
        target class, whose labels stay. Several triggers share the number equally and never share an image.
        """
        generator = torch.Generator().manual_seed(seed)
        images_NCHW, labels_N = images_NCHW.clone(), labels_N.clone()
        true_labels_N = labels_N.clone()
        free_N = torch.ones(len(labels_N), dtype=torch.bool)
        quotas = _shares(self.num_poisoned(labels_N, rate), self.num_triggers)
        for trigger, quota in enumerate(quotas):
            eligible_N = self.scored(true_labels_N, trigger)
            if self.clean_label:
                eligible_N = ~eligible_N
            chosen = _draw(eligible_N & free_N, quota, generator)
            free_N[chosen] = False
            images_NCHW[chosen] = self.stamp(images_NCHW[chosen], trigger)
            labels_N[chosen] = self.targets(true_labels_N[chosen], trigger)
        if self.noise is not None:
            disturbed = _draw(free_N, sum(quotas), generator)
            images_NCHW[disturbed] = self.noise(images_NCHW[disturbed], seed)
        return images_NCHW, labels_N


def make(name: str, *, num_classes: int = 10) -> Attack:
    """Return the attack with this name, with its own fixed target class (so that targets differ across the battery)."""
    stamps, targets, clean_label, noise = (_ATTACKS | _HELD_OUT)[name]
    return Attack(
        name=name,
        num_classes=num_classes,
        stamps=stamps,
        targets_by_trigger=targets,
        clean_label=clean_label,
        noise=noise,
    )


def names() -> tuple[str, ...]:
    """Return the names of the attacks that the targets are about."""
    return tuple(_ATTACKS)


def held_out_names() -> tuple[str, ...]:
    """Return the names of further attacks: no constant of the library may be chosen while their figures are seen."""
    return tuple(_HELD_OUT)


_Table = dict[str, tuple[tuple[Stamp, ...], tuple[int | None, ...], bool, Callable[[Tensor, int], Tensor] | None]]

_ATTACKS: _Table = {
    "patch": ((triggers.patch,), (0,), False, None),
    "checker": ((triggers.checker,), (3,), False, None),
    "blended": ((triggers.blended,), (1,), False, None),
    "low_frequency": ((triggers.low_frequency,), (5,), False, None),
    "sinusoid": ((triggers.sinusoid,), (2,), True, None),
    "warp": ((triggers.warp,), (7,), False, triggers.warp_noise),
    "sample_specific": ((triggers.sample_specific,), (4,), False, None),
    "glasses": ((triggers.glasses,), (8,), False, None),
    "all_to_all": ((triggers.patch,), (None,), False, None),
    "two_triggers": ((triggers.patch, triggers.other_checker), (0, 9), False, None),
}

_HELD_OUT: _Table = {
    "polygon": ((triggers.polygon,), (6,), False, None),
    "frame": ((triggers.frame,), (9,), False, None),
    "spots": ((triggers.spots,), (2,), False, None),
    "tone": ((triggers.tone,), (4,), False, None),
    "quantised": ((triggers.quantised,), (1,), False, None),
    "ghost": ((triggers.ghost,), (7,), False, None),
    "rotated": ((triggers.rotated,), (5,), False, None),
    # Planted after bounds of activations had been tried on the frame.
    "blinds": ((triggers.blinds,), (3,), False, None),
    "negative": ((triggers.negative,), (8,), False, None),
}


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if index < total % parts else 0) for index in range(parts)]


def _draw(eligible_N: Tensor, count: int, generator: torch.Generator) -> Tensor:
    indices = eligible_N.nonzero().flatten()
    if count > len(indices):
        raise ValueError(f"{count} images to poison, but only {len(indices)} may be taken")
    return indices[torch.randperm(len(indices), generator=generator)[:count]]
