"""What a job is for: sanitizing, or a preview of its clean set.

A worker of the release before takes a preview for a sanitization, which costs time and harms nothing: update workers
first.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-23
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(length=20), nullable=False, server_default="sanitize"))


def downgrade() -> None:
    # A release that does not know previews would offer their checkpoints, which they do not have.
    op.execute("DELETE FROM jobs WHERE kind = 'preview'")
    op.drop_column("jobs", "kind")
