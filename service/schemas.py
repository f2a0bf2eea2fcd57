"""What clients send and see; the one doorway to the library's plain types."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from service.tables import FAILED, PREVIEW, SUCCEEDED, DatasetRow, JobFigureRow, JobRow, ModelRow, WorkerRow
from worker.sanitizer.findings import Preview
from worker.sanitizer.report import Report
from worker.sanitizer.spec import MAX_CLASSES, ArchitectureSpec, InputSpec, SanitizeSpec

__all__ = [
    "PROBLEMS",
    "DatasetCreate",
    "DatasetView",
    "FigureView",
    "JobCreate",
    "JobView",
    "ModelCreate",
    "ModelView",
    "Page",
    "Preview",
    "PreviewCreate",
    "Problem",
    "Readiness",
    "Report",
    "SanitizeSpec",
    "WorkerView",
]

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=100)]
DatasetKind = Literal["clean", "triggered"]
ResourceState = Literal["awaiting_content", "ready"]
JobKind = Literal["sanitize", "preview"]
JobState = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Item = TypeVar("Item")
_NUMBERS = ("num_classes", "in_channels", "height", "width", "resize")


class Body(BaseModel):
    """A request body: unknown fields are refused, and so is text that no database can hold."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unstorable(cls, data: object) -> object:
        pending = [data]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                pending += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                pending += value
            elif isinstance(value, str) and ("\x00" in value or any("\ud800" <= char <= "\udfff" for char in value)):
                raise ValueError("text may not contain NUL characters or lone surrogates")
            elif isinstance(value, float) and value - value != 0:
                raise ValueError("numbers must be finite")
        return data


class ModelCreate(Body):
    """What the checkpoint is, said before any byte of it travels."""

    name: Name | None = None
    architecture: ArchitectureSpec
    input: InputSpec

    @field_validator("architecture", "input", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes true for 1, and `"resize": true` beside `"grayscale": true` is an easy mistake.
        wrong = [name for name in _NUMBERS if isinstance(value, dict) and isinstance(value.get(name), bool)]
        if wrong:
            raise ValueError(f"{info.field_name}.{min(wrong)} must be a number, not true or false")
        return value

    @model_validator(mode="after")
    def _one_mean_per_channel(self) -> Self:
        if len(self.input.mean) != self.architecture.in_channels:
            raise ValueError(
                f"input.mean and input.std must have architecture.in_channels ({self.architecture.in_channels}) "
                f"entries, and have {len(self.input.mean)}"
            )
        return self


class DatasetCreate(Body):
    """What the images are: clean ones, or ones that carry a trigger."""

    name: Name | None = None
    kind: DatasetKind
    target_class: Annotated[int, Field(ge=0, lt=MAX_CLASSES)] | None = None

    @model_validator(mode="after")
    def _only_triggers_have_targets(self) -> Self:
        if self.target_class is not None and self.kind != "triggered":
            raise ValueError("target_class belongs to a triggered data set only")
        return self


class JobCreate(Body):
    """Which network, which images, and how to sanitize; every field of `spec` has a default."""

    model_id: Id
    clean_dataset_id: Id
    triggered_dataset_id: Id | None = None
    spec: SanitizeSpec = Field(default_factory=SanitizeSpec)


class PreviewCreate(Body):
    """Which network the images are for."""

    model_id: Id


class ModelView(BaseModel):
    """A model as a client sees it."""

    id: str
    name: str | None
    state: ResourceState
    architecture: ArchitectureSpec
    input: InputSpec
    format: str | None
    size: int | None
    sha256: str | None
    created_at: datetime
    ready_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, row: ModelRow) -> Self:
        """The view of a row."""
        return cls.model_validate(_fields(row, cls) | {"links": _content_links("models", row.id)})


class DatasetView(BaseModel):
    """A data set as a client sees it."""

    id: str
    name: str | None
    state: ResourceState
    kind: DatasetKind
    target_class: int | None
    format: str | None
    size: int | None
    sha256: str | None
    created_at: datetime
    ready_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, row: DatasetRow) -> Self:
        """The view of a row."""
        return cls.model_validate(_fields(row, cls) | {"links": _content_links("datasets", row.id)})


class Progress(BaseModel):
    """Steps of the current phase."""

    done: int
    total: int


class JobError(BaseModel):
    """Why the job failed."""

    code: str
    message: str


class JobView(BaseModel):
    """A job as a client sees it.

    `links` holds the report, its page and figures, and the checkpoint once there are any; of a preview, the report.
    """

    id: str
    kind: JobKind
    state: JobState
    phase: str | None
    progress: Progress | None
    attempt: int
    model_id: str
    clean_dataset_id: str
    triggered_dataset_id: str | None
    spec: SanitizeSpec
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, row: JobRow) -> Self:
        """The view of a row."""
        values = _fields(row, cls)
        if row.progress_done is not None and row.progress_total is not None:
            values["progress"] = {"done": row.progress_done, "total": row.progress_total}
        if row.state == FAILED:
            values["error"] = {"code": row.error_code, "message": row.error_message}
        self_link = f"/v1/jobs/{row.id}"
        values["links"] = {"self": self_link, "cancel": f"{self_link}/cancel"}
        if row.state == SUCCEEDED:
            values["links"] |= {
                name: f"{self_link}/{path}"
                for name, path in (
                    ("report", "report"),
                    ("report_page", "report.html"),
                    ("figures", "figures"),
                    ("checkpoint", "checkpoint"),
                )
                if row.kind != PREVIEW or name == "report"
            }
        return cls.model_validate({"progress": None, "error": None} | values)


class FigureView(BaseModel):
    """A picture of a job's report; `links.content` is the file."""

    name: str
    title: str
    media_type: str
    size: int
    sha256: str
    links: dict[str, str]

    @classmethod
    def of(cls, row: JobFigureRow) -> Self:
        """The view of a row."""
        links = {"content": f"/v1/jobs/{row.job_id}/figures/{row.name}"}
        return cls.model_validate(_fields(row, cls) | {"links": links})


class WorkerView(BaseModel):
    """A worker that was seen lately; `protections` are active in the process of each of its jobs."""

    started_at: datetime
    seen_at: datetime
    protections: list[str]

    @classmethod
    def of(cls, row: WorkerRow) -> Self:
        """The view of a row, without its id, which tells the machine's name."""
        return cls.model_validate(_fields(row, cls))


class Readiness(BaseModel):
    """What the service needs, and who works for it; jobs wait while `workers` is empty."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str]
    workers: list[WorkerView]


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first; `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None


class FieldError(BaseModel):
    """One field that is wrong."""

    field: str
    message: str
    type: str


class Problem(BaseModel):
    """Every error (RFC 9457). `code` is stable, `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = None


# For the OpenAPI document: every route may answer with a problem, and with nothing else that is not listed.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "The request is well formed, and what it says cannot be done."},
    "default": {"model": Problem, "description": "A problem document; `code` is stable."},
}


def plain(spec: ArchitectureSpec | InputSpec | SanitizeSpec) -> dict[str, Any]:
    """A specification as JSON types."""
    return dataclasses.asdict(spec)


def _fields(row: ModelRow | DatasetRow | JobRow | JobFigureRow | WorkerRow, view: type[BaseModel]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in view.model_fields if hasattr(row, name)}


def _content_links(collection: str, resource_id: str) -> dict[str, str]:
    self_link = f"/v1/{collection}/{resource_id}"
    return {"self": self_link, "content": f"{self_link}/content"}
