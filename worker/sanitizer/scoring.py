"""Score a network on what guided nothing: held-out clean images, and the scoring half of the trigger samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer import report
from worker.sanitizer.case import Case
from worker.sanitizer.evaluate import predict, wilson


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
    """Clean accuracy (ACC) on the held-out split."""
    labels_N = case.holdout.labels
    return report.Accuracy(before=_share(before.clean_N == labels_N), after=_share(after.clean_N == labels_N))


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
        _share(seen_N[counts_N] == labels_N[counts_N]) for seen_N in (before.triggered_N, after.triggered_N)
    ]  # fmt: skip
    return report.AttackSuccess(
        status="measured",
        reason="Measured on the half of the trigger samples that guided nothing."
        if labels_N is not None
        else "Measured without true labels: images of the target class count as successes.",
        target_class=target,
        target_class_source="modal_prediction" if case.target_class is None else "supplied",
        before=_share(before.triggered_N[counts_N] == target),
        after=_share(after.triggered_N[counts_N] == target),
        robust_accuracy_before=robust[0],
        robust_accuracy_after=robust[1],
        num_of_target_class_left_out=left_out,
    )


def _share(hits_N: Tensor) -> report.Estimate:
    return wilson(int(hits_N.sum()), len(hits_N))
