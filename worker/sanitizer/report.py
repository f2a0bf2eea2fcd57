"""What a job answers: plain frozen dataclasses of JSON types, and their canonical text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

SCHEMA_VERSION = 1
MAX_FIGURE_BYTES = 2 * 1024 * 1024
MAX_ALL_FIGURES_BYTES = 8 * 1024 * 1024  # the report's page holds them all

RepairStatus = Literal["repaired", "partly_repaired", "not_repaired", "not_attempted"]
Norm = Literal["linf", "l1", "l2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A proportion with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRecall:
    """The share of a class's held-out images that are predicted as it, before and after."""

    class_index: int
    before: Estimate
    after: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Clean accuracy (ACC) on the held-out split, before and after, and each class's recall that has images there."""

    before: Estimate
    after: Estimate
    classes: list[ClassRecall] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSuccess:
    """Attack success rate (ASR) on the trigger samples that guided nothing; never an estimate.

    `robust_accuracy_*` (RA) is the share of triggered images predicted as their true label, when labels were given.
    """

    status: Literal["measured", "not_measurable"]
    reason: str
    target_class: int | None = None
    target_class_source: Literal["supplied", "modal_prediction"] | None = None
    before: Estimate | None = None
    after: Estimate | None = None
    robust_accuracy_before: Estimate | None = None
    robust_accuracy_after: Estimate | None = None
    num_of_target_class_left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One nested mask of the sweep, judged on images to choose with: the selection split, or all that are not held out.

    `accuracy_low` and `accuracy_high` are the accuracy's 95 % Wilson interval; `worst_recall_drop` is the largest loss
    of any class's recall against the unpruned network, negative where every class gained. A point is `admissible` if it
    keeps the budget, surely so where nothing wins back what pruning loses.
    `synthetic_attack_success` is the largest success of the synthesised triggers that guided, null without any.
    """

    num_pruned: int
    fraction: float
    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    worst_recall_drop: float | None = None
    synthetic_attack_success: float | None = None
    admissible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSummary:
    """A layer's distribution of one norm over its channels."""

    median: float
    maximum: float
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One prunable layer: its statistics and what was silenced in it.

    `kind` is `conv`, `linear` (hidden channels of a multilayer perceptron), `head` (attention heads, a channel each) or
    `norm` (on a residual stream).
    """

    name: str
    kind: Literal["conv", "norm", "linear", "head"]
    num_channels: int
    in_scope: bool
    num_pruned: int
    pruned_channels: list[int]
    tensors: list[str]
    norms: dict[str, NormSummary]
    scores: list[float]
    # Of several criteria each one's, standardised; `scores` is then what their mean comes to.
    criterion_scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBias:
    """How far the most biased channel of a layer sticks out when images carry a trigger (arXiv 2002.12162).

    `linf`, `l1` and `l2` are each norm's largest robust deviation, over the layer's channels, of the difference
    between triggered and clean images; `channel` is the one that ℓ∞ singles out. `source` says whose triggers they
    were.
    """

    name: str
    num_channels: int
    linf: float
    l1: float
    l2: float
    channel: int
    source: Literal["synthetic", "supplied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormChoice:
    """What one norm of the activation map chooses under the same triggers and rule, on the selection split.

    `num_shared` of its channels are among those of the row of ℓ∞, whose pruning is the one that was carried out.
    """

    criterion: Norm
    num_pruned: int
    num_shared: int
    accuracy: Estimate
    synthetic_attack_success: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureInfo:
    """A picture stored with the report, by the name under which it is served."""

    name: str
    title: str
    media_type: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDigest:
    """The SHA-256 of one tensor's bytes, before and after."""

    name: str
    changed: bool
    sha256_before: str
    sha256_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """One file that went in or came out."""

    role: Literal["checkpoint", "clean_set", "triggered_set", "sanitized_checkpoint"]
    format: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEvidence:
    """What the synthesised triggers say about one class.

    `mask_size` is the ℓ1 norm of the smallest mask, in pixels, and `mask_success` the largest share of the selection
    images that any mask found sends to the class; `prominence` the logarithm of how many times smaller it is than the
    median class's; `ease` the logit of `perturbation_success` less the median class's. The natural values are those of
    a witness, a small network that was taught on clean images alone, and what is in excess of prominence and ease is
    what a line through the classes' natural values does not explain. `unlearning_cost` is the divergence (nats) on
    clean images of the network that unlearnt the class on trial, `relief` the logarithm of how many times cheaper that
    was than for the median class tried. `strength` is the mean of excess prominence, relief and half the excess ease,
    `loudness` the median of prominence, relief and half the ease, each held to its threshold unless two of the three
    agree; the verdict goes by these two. All four are null for classes that were not tried.
    """

    class_index: int
    mask_size: float
    natural_mask_size: float
    perturbation_success: float
    natural_perturbation_success: float
    anomaly_index: float
    prominence: float
    excess_prominence: float
    ease: float
    excess_ease: float
    unlearning_cost: float | None
    relief: float | None
    mask_success: float | None = None
    strength: float | None = None
    loudness: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the suspect is backdoored. Above a score of 1 the evidence is beyond its threshold.

    `calibrated_false_positive_rate` says how often, at most, a clean network like those of the reference bank scores so
    high; of networks unlike them, larger or of other data, it says little. Null where there is no score.
    """

    verdict: Literal["clean", "suspicious", "backdoored", "inconclusive", "not_judged"]
    reason: str
    target_classes: list[int] = field(default_factory=list)
    score: float | None = None
    calibrated_false_positive_rate: float | None = None
    evidence: list[ClassEvidence] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticAttackSuccess:
    """The largest success of synthesised triggers on the selection split: an estimate, never the attack success.

    `auto` searches for triggers again afterwards, and counts those too; the other recipes know those that they found
    on the suspect. `low` and `high` are the 95 % Wilson interval of the trigger that succeeds most, which allows for
    the number of images and not for its being the largest of several.
    """

    before: float
    after: float
    num_triggers: int
    before_low: float | None = None
    before_high: float | None = None
    after_low: float | None = None
    after_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The training step behind pruning, its own row of the evidence."""

    status: RepairStatus
    reason: str
    rounds: int = 0
    classes: list[int] = field(default_factory=list)
    share_kept: float = 0.0
    accuracy_before: float | None = None
    accuracy_pruned: float | None = None
    accuracy_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapPoint:
    """Caps of one tightness, judged on all images that are not held out.

    `deviations` is k of mean + k · std; `worst_recall_drop` the largest loss of any class's recall against the suspect,
    or behind a repair against the repaired network. A point is `admissible` if it keeps the budget; behind a repair, if
    the bounds cost no more than half of it and the whole is not broken by more than chance explains.
    """

    deviations: float
    accuracy: float
    worst_recall_drop: float
    admissible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CappedLayer:
    """A layer whose activations are bounded: what the file calls the bounded value, and the bounds' SHA-256.

    The digest is of float32 numbers, one for each of `num_channels`, in the order of the channels.
    """

    name: str
    value: str
    num_channels: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Activation caps: operators and constants added to the file, which bound each channel from above.

    The bound of a channel is its mean over clean images and positions plus `deviations` standard deviations. They are
    `not_needed` where no synthesised trigger works after pruning, `not_possible` in a file without a place for them,
    and `not_attempted` where nobody asked for them.
    """

    status: Literal["added", "not_added", "not_needed", "not_possible", "not_attempted"]
    reason: str
    deviations: float | None = None
    curve: list[CapPoint] = field(default_factory=list)
    layers: list[CappedLayer] = field(default_factory=list)


NOT_CAPPED = Caps(status="not_attempted", reason="This recipe does not bound activations, or was not asked to.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """What one recipe makes of the suspect, on the images that the main one is scored on.

    A recipe that refused the network has its refusal's `code` and sentence, and no figures. `attack_success` and
    `robust_accuracy` are null where they cannot be measured. `synthetic_attack_success` is the largest success, on the
    selection split, of the triggers that the main recipe synthesised on the suspect, null where it made none: an
    estimate, and of triggers that the recipe was not necessarily shown.
    """

    recipe: str
    status: Literal["done", "refused"]
    reason: str
    code: str | None = None
    accuracy: Estimate | None = None
    attack_success: Estimate | None = None
    robust_accuracy: Estimate | None = None
    synthetic_attack_success: float | None = None
    num_pruned: int | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The point that was chosen, and why."""

    num_pruned: int
    num_in_scope: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How many clean images served what; the parts are disjoint and stratified by class."""

    num_profile: int
    num_select: int
    num_holdout: int
    num_triggered_guide: int
    num_triggered_score: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where the numbers come from."""

    lustrate: str
    python: str
    torch: str
    packages: dict[str, str]
    device: str
    device_name: str
    seed: int
    num_threads: int
    # What the process that read the uploads had given up; empty where nothing says so, as from the command line.
    protections: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The evidence of one job."""

    schema_version: int
    spec: dict[str, object]
    architecture: dict[str, object]
    input: dict[str, object]
    accuracy: Accuracy
    attack_success: AttackSuccess
    split: Split
    choice: Choice
    curve: list[CurvePoint]
    layers: list[Layer]
    skipped_layers: dict[str, str]
    tensors: list[TensorDigest]
    files: list[FileDigest]
    environment: Environment
    seconds: dict[str, float]
    warnings: list[str]
    verdict: Verdict
    repair: Repair
    synthetic_attack_success: SyntheticAttackSuccess | None
    # Reports from before there were caps are read too.
    caps: Caps = field(default_factory=lambda: NOT_CAPPED)
    bias: list[LayerBias] = field(default_factory=list)
    # Of the recipe `paper` alone: what ℓ1 and ℓ2 would have pruned.
    norms: list[NormChoice] = field(default_factory=list)
    figures: list[FigureInfo] = field(default_factory=list)
    # The main recipe first; empty where there was nothing to compare it with.
    comparison: list[ComparisonRow] = field(default_factory=list)


def to_json(report: Report) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    return json.dumps(dataclasses.asdict(report), sort_keys=True, allow_nan=False, ensure_ascii=False)
