"""The figures of a job's report.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-23
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_figures",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("media_type", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_figures_job_id_jobs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"], name="fk_job_figures_tenant_sha256_blobs"
        ),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_job_figures"),
    )
    op.create_index("ix_job_figures_tenant_sha256", "job_figures", ["tenant", "sha256"])


def downgrade() -> None:
    op.drop_index("ix_job_figures_tenant_sha256", "job_figures")

    op.drop_table("job_figures")
