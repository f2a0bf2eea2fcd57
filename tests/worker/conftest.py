"""What the tests of real children share."""

import pytest

from worker.supervisor import Supervisor


@pytest.fixture
def staging(tmp_path):
    """Where the supervisor's children may read and write."""
    for name in ("in", "out"):
        (tmp_path / "staging" / name).mkdir(parents=True)
    return tmp_path / "staging"


@pytest.fixture
def supervisor(staging):
    supervisor = Supervisor(staging)
    yield supervisor
    supervisor.close()
