"""Alembic migrations, found by service.db beside its own package."""
