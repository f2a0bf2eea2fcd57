"""What a preview answers about a clean set and its model: plain frozen dataclasses of JSON types."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from worker.sanitizer.report import Estimate, FileDigest

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to look at. A job with these two uploads would end in every `refusal`; a `warning` only may matter."""

    severity: Literal["refusal", "warning"]
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCount:
    """How many images have this size before they are fitted."""

    height: int
    width: int
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """One class: its images, and what the model calls most of them."""

    class_index: int
    name: str | None
    num_images: int
    recall: float | None = None
    mostly_predicted: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Images whose pixels are the same. `num_images` counts those beyond the first of each group.

    `num_contradicting` counts groups with more than one label; `examples` are positions in the upload's order.
    """

    num_images: int
    num_groups: int
    num_contradicting: int
    examples: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One image that the model calls something else than its label; the surest ones are listed first."""

    index: int
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """The model's accuracy if pixels were normalised like this."""

    name: str
    mean: list[float]
    std: list[float]
    accuracy: float
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A clean set before a job is started. `accuracy` and what follows from it need labels and a model that loads."""

    schema_version: int
    kind: Literal["preview"]
    format: str
    num_images: int
    num_left_out: int
    sizes: list[SizeCount]
    classes: list[ClassCount]
    duplicates: Duplicates
    accuracy: Estimate | None
    num_disagreements: int | None
    disagreements: list[Disagreement]
    normalisations: list[Normalisation]
    findings: list[Finding]
    files: list[FileDigest]

    @property
    def would_be_refused(self) -> bool:
        """Whether a job with these uploads would end in a refusal."""
        return any(finding.severity == "refusal" for finding in self.findings)


def to_json(preview: Preview) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    return json.dumps(dataclasses.asdict(preview), sort_keys=True, allow_nan=False, ensure_ascii=False)
