"""Where random triggers lead: a kind of them that ends at one class, as it does in no witness, is the backdoor's kin.

A network that was poisoned with a warp takes many another warp for it, and likewise with blends and waves. It needs
neither a search nor a suspect.

Shapes: F families of random triggers, K classes, N images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from worker.sanitizer.activations import batched
from worker.sanitizer.case import Images
from worker.sanitizer.disturbances import FAMILIES, Family
from worker.sanitizer.evaluate import predict
from worker.sanitizer.network import Network

# So often every image is put under a random trigger of each family.
DRAWS = 3
# A family is telling where it sends so many more of the images to one class than it does in a witness. Set by hand on
# networks of the battery: of clean ones blends come to 0.17 and no other kind to 0.1, of those poisoned with a warp or
# a blend most are between 0.2 and 0.7.
TELLING = 0.2


def ends(network: Network, images: Images, classes: Sequence[int], *, seed: int) -> Tensor:
    """From which share of the images, those of the class left out, each family leads to each class: (F, K) float64.

    Args:
        network: The network.
        images: Clean labelled images; a class that has them all is led to by none.
        classes: K of them.
        seed: Of the random triggers, so that networks can be compared on the same.
    """
    generator = torch.Generator().manual_seed(seed)
    labels_DN = images.labels.cpu().repeat(DRAWS)
    shares = []
    for family in FAMILIES:
        drawn = [
            predict(network, family(pixels_NCHW, generator).clamp(0, 1))
            for _ in range(DRAWS)
            for pixels_NCHW in batched(images.pixels_NCHW)
        ]
        answers_DN = torch.cat(drawn)
        hits_K = torch.stack([((answers_DN == one) & (labels_DN != one)).sum() for one in classes])
        others_K = torch.stack([(labels_DN != one).sum() for one in classes])
        shares.append(hits_K.double() / others_K.clamp_min(1))
    return torch.stack(shares)


def telling(pull_FK: Tensor, classes: Sequence[int], known: Collection[int] = ()) -> list[Family]:
    """The families that lead to a class, other than those that are known already, as by nature they do not.

    Args:
        pull_FK: How much more often each leads to each class than in a witness.
        classes: K of them.
        known: What leads to these only tells nothing new.
    """
    news_K = torch.tensor([one not in known for one in classes])
    most_F = torch.where(news_K, pull_FK, 0.0).amax(dim=1)
    return [family for family, most in zip(FAMILIES, most_F.tolist(), strict=True) if most > TELLING]


def pulled(pull_FK: Tensor, classes: Sequence[int]) -> list[int]:
    """The classes that some family leads to so, the most frequent first."""
    most_K = pull_FK.amax(dim=0)
    rows = most_K.argsort(descending=True, stable=True).tolist()
    return [classes[row] for row in rows if float(most_K[row]) > TELLING]


def leaning(families: Sequence[Family]) -> tuple[Family, ...]:
    """All families, and these as often again as all together: half of what is drawn from them is of these."""
    return (*FAMILIES, *islice(cycle(families), len(FAMILIES) if families else 0))
