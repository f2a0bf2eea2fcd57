import os
import signal
import subprocess
import sys
from pathlib import Path

from worker.scratch import Scratch

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import sys
from pathlib import Path
from worker.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "job").mkdir()
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_a_scratch_folder_is_gone_when_closed(tmp_path):
    scratch = Scratch(tmp_path / "work")
    (scratch.path / "file").write_bytes(b"x")
    scratch.close()
    assert not scratch.path.exists()


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        folder = Path(worker.stdout.readline().strip())
        living = Scratch(tmp_path)
        assert (folder / "job").is_dir()
        os.kill(worker.pid, signal.SIGKILL)
    third = Scratch(tmp_path)
    assert not folder.exists()
    assert living.path.is_dir()
    third.close()
    living.close()
