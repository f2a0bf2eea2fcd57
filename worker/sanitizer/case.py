"""One job's material: the network in memory, the clean images split once, the trigger samples split once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.sanitizer import checkpoint as checkpoints
from worker.sanitizer import dataset
from worker.sanitizer.activations import batched
from worker.sanitizer.activations import profile as profile_activations
from worker.sanitizer.architectures import build, hugging_face
from worker.sanitizer.checkpoint import Checkpoint
from worker.sanitizer.checkpoint.repository import Repository
from worker.sanitizer.dataset import LabelledImages
from worker.sanitizer.errors import InvalidSpecError, SanitizerError
from worker.sanitizer.evaluate import predict_closely, recalls
from worker.sanitizer.network import Network, from_graph, from_module
from worker.sanitizer.refusals import (
    ArchitectureNotFromFileError,
    NoConfigInFileError,
    NoProgramInFileError,
    NotFromTransformersError,
)
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

# Profile, select, hold out; the report's accuracy comes from the last part alone.
CLEAN_FRACTIONS = (0.5, 0.25, 0.25)
# Guide, score.
TRIGGERED_FRACTIONS = (0.5, 0.5)
# A model that is hardly better than guessing on its own clean set was declared wrongly, or is not worth a job.
CHANCE_FACTOR = 2.0
CHANCE_CEILING = 0.9
# Of a mean recall: who always guesses one of K classes reaches 1/K.
LEAST_RECALL_FACTOR = 1.1
# Below this many profiling images of the rarest class the report warns.
FEW_PER_CLASS = 10


class NearChanceError(SanitizerError):
    """The model does not classify the clean set: declaration and checkpoint do not fit each other."""

    code = "clean_accuracy_near_chance"


class NonFiniteOutputsError(SanitizerError):
    """Some of the model's answers are no numbers, so that no score of it would be one."""

    code = "non_finite_outputs"


class TooFewOutputsError(SanitizerError):
    """A program returns fewer logits an image than classes are declared, so that some have no answer at all."""

    code = "too_few_outputs"


@dataclass(frozen=True, slots=True)
class Images:
    """Pixels (N, C, H, W) in [0, 1] and labels (N,), None where the client sent none."""

    pixels_NCHW: Tensor
    labels_N: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels_NCHW)

    @property
    def labels(self) -> Tensor:
        """The labels of a set that must have them."""
        assert self.labels_N is not None
        return self.labels_N

    def take(self, index: Tensor) -> Images:
        """The images at these positions."""
        return Images(self.pixels_NCHW[index], None if self.labels_N is None else self.labels_N[index])

    def join(self, others: Images) -> Images:
        """These and others, all with labels."""
        return Images(torch.cat([self.pixels_NCHW, others.pixels_NCHW]), torch.cat([self.labels, others.labels]))


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that a recipe may look at, and the held-out parts that it may not.

    Attributes:
        checkpoint: The suspect as it was read, in its own dtypes.
        network: The suspect in float32 on the device.
        num_classes: K.
        profile: Clean images to profile and repair with.
        select: Clean images to choose with.
        holdout: Clean images that only the report looks at.
        guide: Trigger samples that may guide, where the specification says so.
        score: Trigger samples that only the report looks at.
        target_class: The class that the client says the trigger leads to.
        clean_format: Format of the clean set's file.
        triggered_format: Format of the trigger samples' file.
    """

    checkpoint: Checkpoint
    network: Network
    num_classes: int
    profile: Images
    select: Images
    holdout: Images
    guide: Images | None
    score: Images | None
    target_class: int | None
    clean_format: str
    triggered_format: str | None


def load_network(
    path: Path, architecture: ArchitectureSpec, input_spec: InputSpec, target: torch.device
) -> tuple[Checkpoint, Network]:
    """Read a checkpoint and put its tensors into its architecture, in float32 on the device.

    Raises:
        SanitizerError: The file, the architecture or their match is refused.
    """
    if len(input_spec.mean) != architecture.in_channels:
        raise InvalidSpecError("input.mean and input.std must have one entry for each of architecture.in_channels.")
    checkpoint = checkpoints.read(path)
    return checkpoint, network_of(checkpoint, architecture, input_spec, target)


def network_of(
    checkpoint: Checkpoint, architecture: ArchitectureSpec, input_spec: InputSpec, target: torch.device
) -> Network:
    """The checkpoint's tensors in its architecture, in float32 on the device.

    Raises:
        SanitizerError: The architecture or their match is refused.
    """
    program = checkpoint.program_for(architecture.in_channels, input_spec.height, input_spec.width)
    if program is not None:
        if architecture.source != "file":
            raise ArchitectureNotFromFileError(
                f"the file is a program ({checkpoint.format}) that carries its own architecture; set "
                'architecture.source to "file" and leave the name out, or upload the weights alone'
            )
        network = from_graph(program.graph.to(target), input_spec, program.batch_size)
        if network.num_outputs is not None and network.num_outputs < architecture.num_classes:
            raise TooFewOutputsError(
                f"the program returns {network.num_outputs} logits an image, fewer than architecture.num_classes "
                f"({architecture.num_classes}); declare its classes, or export the whole classifier"
            )
        return network
    if architecture.source == "file":
        raise NoProgramInFileError(
            f'the file holds tensors alone ({checkpoint.format}), so that architecture.source cannot be "file"; name '
            "the architecture, or upload an exported program (.pt2 or ONNX)"
        )
    if isinstance(checkpoint.source, Repository):
        return _from_repository(checkpoint, checkpoint.source, architecture, input_spec, target)
    if architecture.source == "transformers":
        raise NoConfigInFileError(
            f'the file ({checkpoint.format}) holds no config.json, which architecture.source "transformers" needs; '
            "upload a zip of config.json and model.safetensors (docs/hugging-face.md)"
        )
    module = build(architecture)
    state = module.state_dict()
    # Into the module's own, which says of which version of its code each part is: MNASNet refuses a state without.
    state.update(checkpoints.match(checkpoint, state))
    module.load_state_dict(state)
    return from_module(module.float().to(target), input_spec)


def _from_repository(
    checkpoint: Checkpoint,
    repository: Repository,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    target: torch.device,
) -> Network:
    if architecture.source != "transformers":
        raise NotFromTransformersError(
            "the file is a Hugging Face repository, whose config.json says what it is; set architecture.source to "
            '"transformers" and leave name and options out, or upload its model.safetensors alone'
        )
    design = hugging_face.design(repository.described, architecture)
    names = design.state_names(checkpoint.tensors)
    # Matched before any tensor of the network exists, so that a hostile configuration costs no memory.
    state = checkpoints.match(replace(checkpoint, tensors=_under(names, checkpoint)), design.shapes)
    module = design.build(state).float().to(target)
    return from_module(module, input_spec, {hugging_face.PREFIX + own: name for name, own in names.items() if own})


def _under(names: dict[str, str | None], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The file's tensors under the network's names; two of one name would be one too many."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        own = names[name]
        if own is not None:
            tensors[f"{name} (as {own} again)" if own in tensors else own] = tensor
    return tensors


def load(
    *,
    checkpoint_path: Path,
    clean_path: Path,
    triggered_path: Path | None,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    target_class: int | None,
    seed: int,
    target: torch.device,
) -> Case:
    """Read and check everything a job was given, before any work starts.

    Raises:
        SanitizerError: Something is refused; its code says what.
    """
    clean, clean_format = _images(clean_path, architecture, input_spec, "clean")
    triggered, triggered_format = None, None
    if triggered_path is not None:
        triggered, triggered_format = _images(triggered_path, architecture, input_spec, "triggered")
        if len(triggered) < len(TRIGGERED_FRACTIONS):
            raise InvalidSpecError(
                "The triggered set holds one image, but one half may guide and the other scores. Send two or more."
            )
    if target_class is not None and not 0 <= target_class < architecture.num_classes:
        raise InvalidSpecError(f"target_class must be 0 to {architecture.num_classes - 1}.")
    checkpoint, network = load_network(checkpoint_path, architecture, input_spec, target)
    profile, select, holdout = (clean.take(i) for i in dataset.split(clean.labels, CLEAN_FRACTIONS, seed))
    guide, score = None, None
    if triggered is not None:
        # Without labels the samples are one stratum.
        strata = triggered.labels_N
        strata = torch.zeros(len(triggered), dtype=torch.int64) if strata is None else strata
        guide, score = (triggered.take(i) for i in dataset.split(strata, TRIGGERED_FRACTIONS, seed))
    case = Case(
        checkpoint, network, architecture.num_classes, profile, select, holdout, guide, score, target_class,
        clean_format, triggered_format,
    )  # fmt: skip
    predicted_N, finite_N, spread_N = predict_closely(case.network, clean.pixels_NCHW)
    refuse_near_chance(predicted_N, clean.labels)
    refuse_non_finite(int(torch.count_nonzero(~finite_N)), len(clean))
    case.network.scale_logits(spread_N)
    # Overflows inside are refused before any work: one batch shows those that are not rare.
    profile_activations(case.network, [next(batched(clean.pixels_NCHW))], case.network.sites)
    return case


def _images(
    path: Path, architecture: ArchitectureSpec, input_spec: InputSpec, kind: Literal["clean", "triggered"]
) -> tuple[Images, str]:
    read = dataset.read(
        path, in_channels=architecture.in_channels, rule=input_spec, class_names=tuple(architecture.class_names)
    )
    check(read, architecture, input_spec, kind)
    return Images(dataset.pixels(read.images_NCHW), read.labels_N), read.format


def check(
    data: LabelledImages, architecture: ArchitectureSpec, input_spec: InputSpec, kind: Literal["clean", "triggered"]
) -> None:
    """Require images that the declared network can take, and enough of each class.

    Raises:
        DatasetRefusedError: By which rule, its code says.
    """
    dataset.check(
        data,
        num_classes=architecture.num_classes,
        in_channels=architecture.in_channels,
        height=input_spec.height,
        width=input_spec.width,
        kind=kind,
    )


def refuse_non_finite(number: int, num_images: int) -> None:
    """Refuse a model that answers NaN or infinity to some of its own clean images.

    Raises:
        NonFiniteOutputsError: It does.
    """
    if number:
        raise NonFiniteOutputsError(
            f"the model's answers to {number} of {num_images} images are not finite numbers; correct input.mean and "
            "input.std, or look for weights so large that they overflow"
        )


def refuse_near_chance(predicted_N: Tensor, labels_N: Tensor) -> None:
    """Refuse a model whose accuracy on its own clean set is hardly above guessing, over the images or the classes.

    Raises:
        NearChanceError: It is.
    """
    seen = float((predicted_N == labels_N).double().mean())
    counts_K = torch.bincount(labels_N)
    chance = float(counts_K.max()) / len(labels_N)
    if seen < min(CHANCE_FACTOR * chance, CHANCE_CEILING * (1 + chance) / 2):
        raise NearChanceError(
            f"The model classifies {seen:.1%} of the clean set correctly, where always guessing the most frequent "
            f"class would reach {chance:.1%}. Does the input normalisation (input.mean, input.std) fit the model, and "
            "are the labels in the model's class order?"
        )
    # Of a set of which nearly all is one class, only the classes tell knowledge from guessing.
    recall_K = recalls(predicted_N, labels_N, len(counts_K))[counts_K > 0]
    recall = float(recall_K.mean())
    if len(recall_K) > 1 and recall < LEAST_RECALL_FACTOR / len(recall_K):
        raise NearChanceError(
            f"The model knows hardly any class of the clean set but the most frequent one: the mean recall of "
            f"{len(recall_K)} classes is {recall:.1%}. Are the labels in the model's class order? Does the input "
            "normalisation (input.mean, input.std) fit?"
        )
