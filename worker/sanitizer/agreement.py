"""How a network answers to a labelled set, and what a disagreement that is not its fault looks like.

A normalisation that was declared wrongly, and classes in another order, are tried. Shapes: N images, C channels,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.sanitizer import case as cases
from worker.sanitizer.activations import batched
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.evaluate import is_finite, wilson
from worker.sanitizer.findings import Disagreement, Finding, Normalisation
from worker.sanitizer.network import Network
from worker.sanitizer.spec import InputSpec

MAX_LISTED = 50
# Enough images to tell normalisations apart by whole points, and few enough to try them all in seconds.
MAX_IMAGES_TO_TRY = 1000
# An alternative is named only if it is better by this much and the two intervals do not touch.
LEAST_GAIN = 0.05
# Below this many points of accuracy gained a renumbering of the classes may be chance.
LEAST_GAIN_OF_ORDER = 0.2

Progress = Callable[[str, int, int], None]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Means and standard deviations that training scripts use, by number of channels, of pixels in [0, 1].
_USUAL: dict[int, dict[str, Statistics]] = {
    1: {"mnist": ((0.1307,), (0.3081,)), "fashion_mnist": ((0.2860,), (0.3530,))},
    3: {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    },
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the network says about each image, and its accuracy under each normalisation, the declared one first.

    An answer that is no finite number has the confidence 0.
    """

    predicted_N: Tensor
    confidence_N: Tensor
    labels_N: Tensor
    num_not_finite: int
    normalisations: list[Normalisation]

    @property
    def num_wrong(self) -> int:
        """How many images the network calls something else than their label."""
        return int(torch.count_nonzero(self.predicted_N != self.labels_N))


def judge(
    network: Network, pixels_NCHW: Tensor, labels_N: Tensor, input_spec: InputSpec, progress: Progress
) -> Agreement:
    """Ask the network about every image, and about some of them under other normalisations."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch_NCHW in batched(pixels_NCHW):
        with torch.no_grad():
            logits_NK = network(batch_NCHW.to(network.device))
        predicted_N = logits_NK.argmax(dim=1)
        confidence_N = logits_NK.softmax(dim=1).gather(1, predicted_N.unsqueeze(1)).squeeze(1)
        parts.append((predicted_N.cpu(), confidence_N.cpu(), is_finite(logits_NK).cpu()))
        progress("predict", sum(len(part[0]) for part in parts), len(pixels_NCHW))
    predicted_N, confidence_N, finite_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Agreement(
        predicted_N,
        confidence_N.nan_to_num(0.0),
        labels_N,
        int(torch.count_nonzero(~finite_N)),
        _try_normalisations(network, pixels_NCHW, labels_N, input_spec, progress),
    )


def findings(agreement: Agreement, num_classes: int) -> list[Finding]:
    """What a job would refuse, and mistakes that would explain the network's answers."""
    found, total = [], len(agreement.labels_N)
    for refuse in (
        partial(cases.refuse_near_chance, agreement.predicted_N, agreement.labels_N),
        partial(cases.refuse_non_finite, agreement.num_not_finite, total),
    ):
        try:
            refuse()
        except SanitizerError as error:
            found.append(Finding(severity="refusal", code=error.code, message=error.message))
    # Where the order explains the answers, whatever another normalisation gains is an accident.
    order = _about_order(agreement.predicted_N, agreement.labels_N, num_classes)
    return found + (order or _about_normalisation(agreement.normalisations))


def disagreements(agreement: Agreement) -> list[Disagreement]:
    """The images whose label the network contradicts, those first of which it is surest."""
    wrong = torch.nonzero(agreement.predicted_N != agreement.labels_N).reshape(-1)
    surest = wrong[agreement.confidence_N[wrong].argsort(descending=True, stable=True)][:MAX_LISTED]
    return [
        Disagreement(
            index=index,
            label=int(agreement.labels_N[index]),
            predicted=int(agreement.predicted_N[index]),
            confidence=round(float(agreement.confidence_N[index]), 6),
        )
        for index in surest.tolist()
    ]


def _try_normalisations(
    network: Network, pixels_NCHW: Tensor, labels_N: Tensor, input_spec: InputSpec, progress: Progress
) -> list[Normalisation]:
    """The accuracy under the declared normalisation and under usual others, on the same images."""
    # Evenly spread, because a set is often sorted by class.
    step = max(1, -(-len(pixels_NCHW) // MAX_IMAGES_TO_TRY))
    pixels_NCHW, labels_N = pixels_NCHW[::step], labels_N[::step]
    channels = len(input_spec.mean)
    ones = (1.0,) * channels
    own_C = pixels_NCHW.double().mean(dim=(0, 2, 3)), pixels_NCHW.double().std(dim=(0, 2, 3)).clamp_min(1e-6)
    alternatives: dict[str, Statistics] = {
        "declared": (tuple(input_spec.mean), tuple(input_spec.std)),
        "none": ((0.0,) * channels, ones),
        "half": ((0.5,) * channels, (0.5,) * channels),
        "bytes": ((0.0,) * channels, (1 / 255,) * channels),
        "this_data_set": (tuple(own_C[0].tolist()), tuple(own_C[1].tolist())),
        **_USUAL.get(channels, {}),
    }
    tried = []
    for done, (name, (mean, std)) in enumerate(alternatives.items()):
        tried.append(_try(network, pixels_NCHW, labels_N, input_spec, name, mean, std))
        progress("normalisation", done + 1, len(alternatives))
    if channels == 3:
        declared = alternatives["declared"]
        tried.append(
            _try(network, pixels_NCHW.flip(1), labels_N, input_spec, "declared_with_channels_reversed", *declared)
        )
    return tried


def _try(
    network: Network,
    pixels_NCHW: Tensor,
    labels_N: Tensor,
    input_spec: InputSpec,
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Normalisation:
    """Feed pixels that the network's own normalisation turns into what another one would have given."""

    def column(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)

    hits = 0
    for batch_NCHW, batch_N in zip(batched(pixels_NCHW), batched(labels_N), strict=True):
        shifted_NCHW = batch_NCHW
        if name != "declared":
            normalised_NCHW = (batch_NCHW - column(mean)) / column(std)
            shifted_NCHW = normalised_NCHW * column(tuple(input_spec.std)) + column(tuple(input_spec.mean))
        with torch.no_grad():
            predicted_N = network(shifted_NCHW.to(network.device)).argmax(dim=1).cpu()
        hits += int(torch.count_nonzero(predicted_N == batch_N))
    return Normalisation(
        name=name,
        mean=[round(value, 6) for value in mean],
        std=[round(value, 6) for value in std],
        accuracy=hits / len(labels_N),
        num_images=len(labels_N),
    )


def _about_normalisation(normalisations: list[Normalisation]) -> list[Finding]:
    declared, *others = normalisations
    best = max(others, key=lambda other: other.accuracy)
    low = wilson(round(best.accuracy * best.num_images), best.num_images).low
    high = wilson(round(declared.accuracy * declared.num_images), declared.num_images).high
    if best.accuracy < declared.accuracy + LEAST_GAIN or low <= high:
        return []
    message = (
        f"the model classifies {best.accuracy:.1%} correctly with the normalisation `{best.name}` (mean "
        f"{best.mean}, std {best.std}), and {declared.accuracy:.1%} with the declared one; correct input.mean and "
        "input.std"
    )
    if best.name == "declared_with_channels_reversed":
        message = (
            f"the model classifies {best.accuracy:.1%} correctly if the channels are reversed (BGR for RGB), and "
            f"{declared.accuracy:.1%} as they are; reverse the images' channels"
        )
    return [Finding(severity="warning", code="normalisation_mismatch", message=message)]


def _about_order(predicted_N: Tensor, labels_N: Tensor, num_classes: int) -> list[Finding]:
    """Whether the labels look like the model's classes in another order."""
    labels = torch.unique(labels_N).tolist()
    mostly = {label: int(torch.bincount(predicted_N[labels_N == label]).argmax()) for label in labels}
    if len(set(mostly.values())) < len(mostly) or all(label == other for label, other in mostly.items()):
        return []
    order_K = torch.arange(num_classes)
    for label, other in mostly.items():
        order_K[label] = other
    reached = float((order_K[labels_N] == predicted_N).double().mean())
    before = float((labels_N == predicted_N).double().mean())
    if reached < before + LEAST_GAIN_OF_ORDER:
        return []
    moved = ", ".join(f"{a} is its {b}" for a, b in list(mostly.items())[:10] if a != b)
    message = (
        f"the labels look like the model's classes in another order: renumbered, {reached:.1%} instead of "
        f"{before:.1%} agree ({moved}); put the labels into the model's order, or declare architecture.class_names"
    )
    return [Finding(severity="warning", code="class_order_mismatch", message=message)]
