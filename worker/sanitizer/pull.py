"""Where random triggers lead: a kind of them that ends at one class, as it does in no witness, is the backdoor's kin.

A network that was poisoned with a warp takes many another warp for it, and likewise with blends and waves. It needs
neither a search nor a suspect.

Shapes: F families of random triggers, K classes, N images, M answers to them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from worker.sanitizer.activations import batched
from worker.sanitizer.case import Images
from worker.sanitizer.disturbances import FAMILIES, Family
from worker.sanitizer.evaluate import predict_finite
from worker.sanitizer.network import Network
from worker.sanitizer.witness import MIN_CLASSES_OF_A_LINE

# So often every image is put under a random trigger of each family.
DRAWS = 3
# Of more images every second, third ... is put under triggers, which is enough to tell shares apart.
MAX_IMAGES = 1000
# Of fewer images that are not of a class no share is told.
MIN_OTHERS = 20
# A family is telling where it sends so much more of the images to one class than it does in a witness. Set by hand on
# networks of the battery: of clean ones blends come to 0.17 and no other kind to 0.1, of those poisoned with a warp or
# a blend most are between 0.2 and 0.7.
TELLING = 0.2


def ends(network: Network, images: Images, classes: Sequence[int], *, seed: int) -> Tensor:
    """From which share of the images, those of the class left out, each family leads to each class: (F, K) float64.

    An answer that is not finite leads nowhere, nor is anything said of a class with fewer than `MIN_OTHERS` others.

    Args:
        network: The network.
        images: Clean labelled images.
        classes: K of them.
        seed: Of the random triggers, so that networks can be compared on the same.
    """
    generator = torch.Generator().manual_seed(seed)
    # Evenly spread, because a set is often sorted by class.
    images = images.take(torch.arange(0, len(images), -(-len(images) // MAX_IMAGES)))
    labels_M = images.labels.cpu().repeat(DRAWS)
    shares = []
    for family in FAMILIES:
        seen = [
            predict_finite(network, family(pixels_NCHW, generator).clamp(0, 1))
            for _ in range(DRAWS)
            for pixels_NCHW in batched(images.pixels_NCHW)
        ]
        answers_M, is_finite_M = (torch.cat(parts) for parts in zip(*seen, strict=True))
        others_KM = torch.stack([labels_M != one for one in classes])
        hits_KM = others_KM & is_finite_M & torch.stack([answers_M == one for one in classes])
        number_K = others_KM.sum(dim=1)
        is_told_K = number_K >= MIN_OTHERS * DRAWS
        shares.append(torch.where(is_told_K, hits_KM.sum(dim=1).double() / number_K.clamp_min(1), 0.0))
    return torch.stack(shares)


def telling(pull_FK: Tensor, classes: Sequence[int], known: Collection[int] = ()) -> list[Family]:
    """The families that lead to a class, other than those that are known already, as by nature they do not.

    Args:
        pull_FK: How much more often each leads to each class than in a witness.
        classes: K of them; of fewer than five nothing is said, as every loss of robustness ends at one of few.
        known: What leads to these only tells nothing new.
    """
    is_new_K = torch.tensor([one not in known for one in classes])
    is_telling_FK = (pull_FK > TELLING) & is_new_K & (len(classes) >= MIN_CLASSES_OF_A_LINE)
    return [
        family for family, is_telling in zip(FAMILIES, is_telling_FK.any(dim=1).tolist(), strict=True) if is_telling
    ]


def pulled(pull_FK: Tensor, classes: Sequence[int]) -> list[int]:
    """The classes that some family leads to so, the most frequent first; none of fewer than five."""
    if len(classes) < MIN_CLASSES_OF_A_LINE:
        return []
    most_K = pull_FK.amax(dim=0)
    rows = most_K.argsort(descending=True, stable=True).tolist()
    return [classes[row] for row in rows if float(most_K[row]) > TELLING]


def leaning(families: Sequence[Family]) -> tuple[Family, ...]:
    """All families, and of these as many again as of all together."""
    return (*FAMILIES, *islice(cycle(families), len(FAMILIES) if families else 0))
