"""Look at a clean set with its model before a job is started: what would be refused, and what looks wrong.

Nothing is pruned or written. Shapes: N images, K classes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worker.sanitizer import agreement as agreements
from worker.sanitizer import case as cases
from worker.sanitizer import dataset, device, evidence
from worker.sanitizer.dataset import LabelledImages
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.evaluate import recalls, wilson
from worker.sanitizer.findings import (
    SCHEMA_VERSION,
    ClassCount,
    Duplicates,
    Finding,
    Preview,
    SizeCount,
)
from worker.sanitizer.spec import ArchitectureSpec, Device, InputSpec

MAX_LISTED = 50
MAX_SIZES = 100
LARGE_SHARE_OF_DUPLICATES = 0.01

Progress = Callable[[str, int, int], None]


def preview(
    *,
    checkpoint_path: Path,
    clean_path: Path,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    device_name: Device = "auto",
    progress: Progress = lambda _phase, _done, _total: None,
) -> Preview:
    """Read both uploads as a job would, and say what it would meet.

    Raises:
        SanitizerError: The clean set cannot be read at all, or the device is not there. What the checks of a job
            would refuse, and a model that cannot be loaded, are findings.
    """
    target = device.choose(device_name)
    progress("read", 0, 1)
    data = dataset.read(
        clean_path,
        in_channels=architecture.in_channels,
        rule=input_spec,
        class_names=tuple(architecture.class_names),
        leave_out_wrong_sizes=True,
    )
    findings = _refusals(data, architecture, input_spec)
    progress("count", 0, 1)
    duplicates = _duplicates(data)
    findings += _about_duplicates(duplicates, len(data.images_NCHW))
    files = [evidence.file_digest("clean_set", data.format, clean_path)]
    progress("load", 0, 1)
    network = None
    try:
        checkpoint, network = cases.load_network(checkpoint_path, architecture, input_spec, target)
        files.append(evidence.file_digest("checkpoint", checkpoint.format, checkpoint_path))
    except SanitizerError as error:
        findings.append(Finding(severity="refusal", code=error.code, message=error.message))
    agreement = None
    if network is not None and data.labels_N is not None and _can_be_judged(data, architecture, input_spec):
        with device.deterministic(0, target):
            agreement = agreements.judge(network, dataset.pixels(data.images_NCHW), data.labels_N, input_spec, progress)
        findings += agreements.findings(agreement, architecture.num_classes)
    num_images = len(data.images_NCHW)
    return Preview(
        schema_version=SCHEMA_VERSION,
        kind="preview",
        format=data.format,
        num_images=num_images,
        num_left_out=data.num_left_out,
        sizes=[
            SizeCount(height=height, width=width, num_images=count)
            for (height, width), count in sorted(data.sizes.items(), key=lambda item: (-item[1], item[0]))[:MAX_SIZES]
        ],
        classes=_classes(data, architecture.num_classes, None if agreement is None else agreement.predicted_N),
        duplicates=duplicates,
        accuracy=None if agreement is None else wilson(num_images - agreement.num_wrong, num_images),
        num_disagreements=None if agreement is None else agreement.num_wrong,
        disagreements=[] if agreement is None else agreements.disagreements(agreement),
        normalisations=[] if agreement is None else agreement.normalisations,
        findings=findings,
        files=files,
    )


def _refusals(data: LabelledImages, architecture: ArchitectureSpec, input_spec: InputSpec) -> list[Finding]:
    found = []
    if data.num_left_out:
        message = (
            f"{data.num_left_out} of {data.num_left_out + len(data.images_NCHW)} images are not "
            f"{input_spec.height}x{input_spec.width} (height x width) after the declared fitting; `sizes` counts what "
            "they are: declare input.resize and input.crop, or resize the images"
        )
        found.append(Finding(severity="refusal", code="wrong_image_size", message=message))
    try:
        cases.check(data, architecture, input_spec, "clean")
    except SanitizerError as error:
        # Where every image was left out, that there is none is the same news twice.
        if not (data.num_left_out and len(data.images_NCHW) == 0):
            found.append(Finding(severity="refusal", code=error.code, message=error.message))
    return found


def _can_be_judged(data: LabelledImages, architecture: ArchitectureSpec, input_spec: InputSpec) -> bool:
    """Whether the images have the network's shape, finite pixels, and labels that it can be compared with."""
    shape = (architecture.in_channels, input_spec.height, input_spec.width)
    if len(data.images_NCHW) == 0 or tuple(data.images_NCHW.shape[1:]) != shape or data.labels_N is None:
        return False
    if int(data.labels_N.min()) < 0 or int(data.labels_N.max()) >= architecture.num_classes:
        return False
    return data.images_NCHW.dtype == torch.uint8 or bool(torch.isfinite(data.images_NCHW).all())


def _duplicates(data: LabelledImages) -> Duplicates:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, image_CHW in enumerate(data.images_NCHW):
        groups[hashlib.sha256(image_CHW.contiguous().numpy().data).digest()].append(index)
    several = [indices for indices in groups.values() if len(indices) > 1]
    contradicting = 0
    if data.labels_N is not None:
        contradicting = sum(len(set(data.labels_N[indices].tolist())) > 1 for indices in several)
    return Duplicates(
        num_images=sum(len(indices) - 1 for indices in several),
        num_groups=len(several),
        num_contradicting=contradicting,
        examples=[indices[:MAX_LISTED] for indices in several[:MAX_LISTED]],
    )


def _about_duplicates(duplicates: Duplicates, num_images: int) -> list[Finding]:
    found = []
    if duplicates.num_contradicting:
        message = (
            f"{duplicates.num_contradicting} images occur with more than one label; keep the right one "
            "(`duplicates.examples` has the first)"
        )
        found.append(Finding(severity="warning", code="contradicting_labels", message=message))
    if duplicates.num_images > LARGE_SHARE_OF_DUPLICATES * num_images:
        message = (
            f"{duplicates.num_images} of {num_images} images are exact copies of others: the held-out images are then "
            "not unseen, and accuracy looks surer than it is; keep one of each"
        )
        found.append(Finding(severity="warning", code="duplicate_images", message=message))
    return found


def _classes(data: LabelledImages, num_classes: int, predicted_N: Tensor | None) -> list[ClassCount]:
    if data.labels_N is None:
        return []
    names = data.class_names or ()
    # Labels that no class has are a finding; here they would need a row of their own.
    inside_N = data.labels_N[(data.labels_N >= 0) & (data.labels_N < num_classes)]
    counts = torch.bincount(inside_N, minlength=num_classes).tolist()
    recall = [None] * num_classes if predicted_N is None else recalls(predicted_N, data.labels_N, num_classes).tolist()
    classes = []
    for label, count in enumerate(counts):
        mostly = None
        if predicted_N is not None and count:
            mostly = int(torch.bincount(predicted_N[data.labels_N == label]).argmax())
        classes.append(
            ClassCount(
                class_index=label,
                name=names[label] if label < len(names) else None,
                num_images=count,
                recall=recall[label] if count else None,
                mostly_predicted=mostly,
            )
        )
    return classes
