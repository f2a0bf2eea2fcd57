import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from service import broker
from service.settings import Settings
from worker import app as worker_app
from worker import sandbox
from worker.app import StopFlag, make_app

ROOT = Path(__file__).resolve().parent.parent.parent


def test_importing_the_tasks_and_the_app_imports_no_torch():
    program = "import sys, worker.tasks, worker.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_the_app_knows_both_tasks_and_both_queues(tmp_path):
    app = make_app(Settings.from_env({"LUSTRATE_DATA_DIR": str(tmp_path)}))
    assert {broker.TASK_SANITIZE, broker.TASK_REAP} <= set(app.tasks)
    assert set(app.amqp.queues) == {broker.QUEUE_JOBS, broker.QUEUE_UPKEEP}


def test_the_stop_flag_is_up_when_its_last_holder_lets_go():
    flag = StopFlag()
    assert not flag.is_raised()
    flag.raise_()
    assert flag.is_raised()
    flag.raise_()
    assert flag.is_raised()


def test_a_worker_says_what_its_processes_give_up_and_starts_with_what_is_required(sqlite_settings):
    active = worker_app.check_protections(sqlite_settings)
    assert set(sandbox.ALWAYS) <= set(active)
    assert worker_app.check_protections(replace(sqlite_settings, require_protections=active)) == active


def test_a_worker_does_not_start_without_a_protection_that_is_required(sqlite_settings):
    lacking = [name for name in sandbox.PROTECTIONS if name not in worker_app.check_protections(sqlite_settings)]
    for name in ("a_moat", *lacking):
        with pytest.raises(SystemExit, match=name):
            worker_app.check_protections(replace(sqlite_settings, require_protections=("rlimits", name)))
