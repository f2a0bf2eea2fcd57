"""Score a network on what guided nothing: held-out clean images, and the scoring half of the trigger samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer import report
from worker.sanitizer.case import Case
from worker.sanitizer.evaluate import Z_95_ONE_SIDED, accuracy_drop, predict, share_of

# Recall of one class that a report warns of.
NOTEWORTHY_RECALL_DROP = 0.10


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted classes of the held-out clean images and of the scoring trigger samples, (N,) int64 each."""

    clean_N: Tensor
    triggered_N: Tensor | None


def score(case: Case) -> Predictions:
    """Predict the held-out images with the network as it is now."""
    triggered_N = None if case.score is None else predict(case.network, case.score.pixels_NCHW)
    return Predictions(predict(case.network, case.holdout.pixels_NCHW), triggered_N)


def accuracy(case: Case, before: Predictions, after: Predictions) -> report.Accuracy:
    """Clean accuracy (ACC) on the held-out split, whole and class by class."""
    labels_N = case.holdout.labels
    right_before_N, right_after_N = before.clean_N == labels_N, after.clean_N == labels_N
    classes = [
        report.ClassRecall(
            class_index=index,
            before=share_of(right_before_N[labels_N == index]),
            after=share_of(right_after_N[labels_N == index]),
        )
        for index in sorted(set(labels_N.tolist()))
    ]
    return report.Accuracy(before=share_of(right_before_N), after=share_of(right_after_N), classes=classes)


def lost_recall(case: Case, before: Predictions, after: Predictions) -> dict[int, float]:
    """The classes that lost more recall than `NOTEWORTHY_RECALL_DROP`, and more than chance explains, and how much.

    By chance a class loses none of its images or as many as it wins; one-sided at 95 %, class by class.
    """
    labels_N = case.holdout.labels
    lost = {}
    for index in sorted(set(labels_N.tolist())):
        of_it_N = labels_N == index
        drop, error = accuracy_drop(before.clean_N[of_it_N] == index, after.clean_N[of_it_N] == index)
        if drop > NOTEWORTHY_RECALL_DROP and drop > Z_95_ONE_SIDED * error:
            lost[index] = drop
    return lost


def attack_success(case: Case, before: Predictions, after: Predictions) -> report.AttackSuccess:
    """Attack success rate (ASR) and robust accuracy (RA), or the reason why they cannot be measured.

    ASR is the share of triggered images, without those whose true label is the target, predicted as the target. RA
    is the share of the same images predicted as their true label. Source: BackdoorBench's definitions.
    """
    if case.score is None or before.triggered_N is None or after.triggered_N is None:
        return report.AttackSuccess(status="not_measurable", reason="No trigger samples were given.")
    labels_N = case.score.labels_N
    target = case.target_class
    if target is None:
        target = int(torch.mode(before.triggered_N).values)
    counts_N = torch.ones(len(case.score), dtype=torch.bool) if labels_N is None else labels_N != target
    if not bool(counts_N.any()):
        return report.AttackSuccess(
            status="not_measurable", reason="Every trigger sample for scoring is of the target class."
        )
    left_out = int((~counts_N).sum())
    robust = [None, None] if labels_N is None else [
        share_of(seen_N[counts_N] == labels_N[counts_N]) for seen_N in (before.triggered_N, after.triggered_N)
    ]  # fmt: skip
    return report.AttackSuccess(
        status="measured",
        reason="Measured on the half of the trigger samples that guided nothing."
        if labels_N is not None
        else "Measured without true labels: images of the target class count as successes.",
        target_class=target,
        target_class_source="modal_prediction" if case.target_class is None else "supplied",
        before=share_of(before.triggered_N[counts_N] == target),
        after=share_of(after.triggered_N[counts_N] == target),
        robust_accuracy_before=robust[0],
        robust_accuracy_after=robust[1],
        num_of_target_class_left_out=left_out,
    )
