"""What a recipe is given and what it answers: nothing held out, no true trigger, no known answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from worker.sanitizer.activations import ChannelStatistics
from worker.sanitizer.case import Images
from worker.sanitizer.criteria import Scores
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.masks import Mask
from worker.sanitizer.network import Network
from worker.sanitizer.report import (
    NOT_CAPPED,
    Caps,
    Choice,
    CurvePoint,
    NormChoice,
    Repair,
    SyntheticAttackSuccess,
    Verdict,
)
from worker.sanitizer.spec import SanitizeSpec
from worker.sanitizer.variety import Vary, patchworks

NOT_JUDGED = Verdict(verdict="not_judged", reason="This recipe does not judge.")
NOT_ATTEMPTED = Repair(status="not_attempted", reason="This recipe has no training step of its own, or was not asked.")

# phase(name, total) times a step and announces it; what it yields is called with the size of each part done.
Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class Workbench:
    """All that a recipe may look at.

    Attributes:
        network: The suspect in float32 on the device. The recipe leaves its result in these very tensors.
        num_classes: K.
        repair: Clean labelled images to profile and to train with.
        select: Other clean labelled images, to choose with and never to train on.
        guide: Trigger samples, only where the specification lets them guide.
        spec: What the client asked for.
        generator: CPU generator; every draw comes from it.
        phase: Progress and timing.
        vary: Makes patchworks of clean images, or what takes their place (`variety`).
    """

    network: Network
    num_classes: int
    repair: Images
    select: Images
    guide: Images | None
    spec: SanitizeSpec
    generator: torch.Generator
    phase: Phase
    vary: Vary = patchworks


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a recipe did to the network.

    Attributes:
        choice: What was chosen, and why, in a sentence.
        mask: Channels that are silent now, per site.
        scores: Standardised scores per site that was ranked, (C,).
        by_criterion: Of several criteria each one's standardised scores.
        statistics: Clean activation statistics of every site, or nothing where not all were taken.
        curve: The sweep, where there was one.
        triggers: Synthesised triggers, most suspicious first, each with its success on the selection images.
        triggered: Statistics under the triggers that guided, where there were any.
        norms: What each norm would have pruned, where they were compared.
        verdict: What the recipe thinks of the suspect.
        repair: The training step, where there was one.
        estimate: Success of synthesised triggers before and after.
        caps: Bounds of activations; the report adds which layers of the file have them.
    """

    choice: Choice
    mask: Mask = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    by_criterion: dict[str, Scores] = field(default_factory=dict)
    statistics: dict[str, ChannelStatistics] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    triggers: list[Suspected] = field(default_factory=list)
    triggered: dict[str, ChannelStatistics] = field(default_factory=dict)
    norms: list[NormChoice] = field(default_factory=list)
    verdict: Verdict = NOT_JUDGED
    repair: Repair = NOT_ATTEMPTED
    estimate: SyntheticAttackSuccess | None = None
    caps: Caps = NOT_CAPPED


Recipe = Callable[[Workbench], Outcome]
