"""What routes need: the application's resources, the tenant, a page's bounds. Nothing here commits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from celery import Celery
from fastapi import Depends, Query, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from service import ids
from service.errors import UnprocessableError
from service.schemas import Page
from service.settings import Settings
from service.tables import LOCAL_TENANT, DatasetRow, JobRow, ModelRow

Row = TypeVar("Row", ModelRow, DatasetRow, JobRow)
View = TypeVar("View")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one application holds open."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    celery: Celery


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Which part of a list: one more than is shown is read, to know whether more follow."""

    limit: int
    cursor: str | None

    def before(self, prefix: str) -> str | None:
        """The id that the page ends before.

        Raises:
            UnprocessableError: invalid_cursor.
        """
        if self.cursor is None:
            return None
        try:
            decoded = base64.urlsafe_b64decode(self.cursor + "=" * (-len(self.cursor) % 4)).decode("ascii")
        except (binascii.Error, ValueError):
            decoded = ""
        if not ids.is_id(prefix, decoded):
            raise UnprocessableError(
                "the cursor is not one of this list's next_cursor; leave it out to begin with the newest",
                code="invalid_cursor",
            )
        return decoded

    def page(self, rows: list[Row], view: Callable[[Row], View]) -> Page[View]:
        """The page of rows that were read with a limit of one more."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        cursor = base64.urlsafe_b64encode(shown[-1].id.encode()).decode().rstrip("=") if more else None
        return Page(items=[view(row) for row in shown], next_cursor=cursor)


def _resources(request: Request) -> Resources:
    found: Resources = request.app.state.resources
    return found


def _tenant() -> str:
    return LOCAL_TENANT


def _page_request(
    limit: Annotated[int, Query(ge=1, le=200)] = 50, cursor: Annotated[str | None, Query(max_length=200)] = None
) -> PageRequest:
    return PageRequest(limit=limit, cursor=cursor)


Held = Annotated[Resources, Depends(_resources)]
Tenant = Annotated[str, Depends(_tenant)]
Paging = Annotated[PageRequest, Depends(_page_request)]
