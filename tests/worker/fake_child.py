"""A child that does wrong whatever its request asks for. Run by the supervisor's tests as a module of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SLEEPER = "import sys, time; time.sleep(600)"


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def hang() -> None:
    while True:
        time.sleep(3600)


def main() -> None:  # noqa: C901 - one branch a fault
    request = json.loads(sys.stdin.readline())
    fault, argument = request["fault"], request.get("argument")
    say(event="started", protections=["rlimits"])
    if fault == "succeed":
        say(event="progress", phase="profile", done=1, total=2)
        say(event="succeeded")
    elif fault == "refuse":
        say(event="refused", code="not_a_checkpoint", message="no")
    elif fault == "many_progress":
        for done in range(50_000):
            say(event="progress", phase="profile", done=done, total=50_000)
        say(event="succeeded")
    elif fault == "garbage":
        sys.stdout.write("Segmentation fault, or so\n")
        sys.stdout.flush()
        hang()
    elif fault == "lies":
        say(event="refused", code="../../etc", message=5)
        hang()
    elif fault == "flood":
        while True:
            os.write(1, b"x" * 65536)
    elif fault == "flood_log":
        for _ in range(500):
            os.write(2, b"y" * 65536)
        os.write(2, b"the end")
        say(event="succeeded")
    elif fault == "hang":
        hang()
    elif fault == "ignore_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()
    elif fault == "close_everything":
        os.closerange(0, 3)
        hang()
    elif fault == "grandchildren":
        pids = [
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=new_session).pid
            for new_session in (False, True)
        ]
        Path(argument["pids_path"]).write_text(json.dumps(pids))
        if argument["then"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif argument["then"] == "succeed":
            say(event="succeeded")
        else:
            hang()
    elif fault == "memory":
        hoard = [bytearray(os.urandom(1024) * 1024) for _ in range(argument)]
        hang()
        del hoard
    elif fault == "grandchild_memory":
        program = f"import os, time; x = bytearray(os.urandom(1024) * 1024 * {argument}); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", program])
        hang()
    elif fault == "signal":
        os.kill(os.getpid(), argument)
    elif fault == "exit":
        os._exit(argument)
    elif fault == "succeed_and_hang":
        say(event="succeeded")
        hang()
    elif fault == "succeed_twice":
        say(event="succeeded")
        say(event="refused", code="changed_my_mind", message="")
    elif fault == "environment":
        say(event="refused", code="environment", message=json.dumps(dict(os.environ) | {"cwd": str(Path.cwd())}))


if __name__ == "__main__":
    main()
