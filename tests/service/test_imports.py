import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["service.app", "service.jobs", "service.broker", "service.blobs"])
def test_the_service_never_imports_torch(module):
    program = f"import sys, {module}; print([name for name in ('torch', 'worker.tasks') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr, run.returncode) == ("[]", "", 0)


@pytest.mark.parametrize("module", ["service.jobs", "service.blobs", "service.broker", "service.db"])
def test_the_records_need_no_web_framework(module):
    program = f"import sys, {module}; print([name for name in ('fastapi', 'starlette') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr, run.returncode) == ("[]", "", 0)
