"""What a child gives up before it reads a byte of an upload, and the container that it is started in.

Each protection is tried by itself: a kernel, a container or an operator may forbid any of them. What is active is
said, never guessed: `python -m worker.sandbox PATHS` confines itself exactly as a child does and prints the answer.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker import landlock, protocol

ALWAYS = ("clean_environment", "process_group", "rlimits")
NO_NEW_PRIVILEGES, CAPABILITIES = "no_new_privileges", "capabilities_dropped"
NETWORK, FILESYSTEM, BUBBLEWRAP = "no_network", "filesystem_rules", "bubblewrap"
PROTECTIONS = (*ALWAYS, NO_NEW_PRIVILEGES, CAPABILITIES, NETWORK, FILESYSTEM, BUBBLEWRAP)

MAX_OPEN_FILES = 1024
PROBE_SECONDS = 30.0
MARK = "LUSTRATE_CONTAINER"  # set by bubblewrap for what runs inside it

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc", "/sys")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
_ROOT = Path(__file__).resolve().parent.parent
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
# A user of many rights keeps these two: without them root could not read files of the user whose folder it runs in.
_KEPT_OF_ROOT = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class Area:
    """What a child may touch: it reads `inputs` and writes `outputs` and its own folder."""

    inputs: Path
    outputs: Path
    home: Path

    def arguments(self) -> list[str]:
        """The same for a command line."""
        return [str(self.inputs), str(self.outputs), str(self.home)]


def area(arguments: list[str]) -> Area | None:
    """The area of a command line; None where there is none, and then files are not confined."""
    return Area(*map(Path, arguments)) if len(arguments) == 3 else None


def confine(allowed: Area | None) -> tuple[str, ...]:
    """Give up everything that the system lets this process give up, and return the protections that are active.

    To be called before any thread is started, because some of them are a thread's own.
    """
    active = list(ALWAYS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    if sys.platform != "linux":
        return tuple(active)
    contained = MARK in os.environ
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.geteuid() == 0
    if contained or _leave_network(libc):
        active.append(NETWORK)
    _die_with_parent(libc)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        active.append(NO_NEW_PRIVILEGES)
    if _drop_capabilities(libc, kept=_KEPT_OF_ROOT if root else 0):
        active.append(CAPABILITIES)
    if allowed is not None and landlock.restrict(
        readable=[*readable(), allowed.inputs, *_existing("/proc")],
        writable=[allowed.outputs, allowed.home, *_existing(*_DEVICES, *_GPU_DEVICES, "/dev/shm")],  # noqa: S108
        listable=[_ROOT],
    ):
        active.append(FILESYSTEM)
    if contained:
        active.append(BUBBLEWRAP)
    return tuple(name for name in PROTECTIONS if name in active)


def limit(what: int, value: int) -> None:
    """Set a resource's limit, or leave it where it is lower already."""
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def limit_job(*, max_file_bytes: int, cpu_seconds: int, memory_bytes: int) -> None:
    """Limit what one job may use from now on, beside the supervisor's own watch; 0 is no limit.

    Memory is what the process may map for writing beyond what it has mapped already (RLIMIT_DATA). Where a CUDA device
    is visible it is not set: the driver maps far more than it uses.
    """
    limit(resource.RLIMIT_FSIZE, max_file_bytes)
    if cpu_seconds:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds)
    if memory_bytes and sys.platform == "linux" and not _existing("/dev/nvidiactl"):
        limit(resource.RLIMIT_DATA, _mapped_bytes() + memory_bytes)


def readable(module: str = "worker") -> list[Path]:
    """Where the interpreter, its libraries and our code lie; nothing of what the service keeps."""
    ours = _ROOT / module.split(".", maxsplit=1)[0]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = [
        *_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent),
        *(entry for entry in sys.path if entry and Path(entry) != _ROOT), *filter(None, libraries),
        str(_ROOT / "worker"), str(ours),
    ]  # fmt: skip
    # Installed, our code lies among the other packages.
    if _ROOT.name in ("site-packages", "dist-packages"):
        found.append(str(_ROOT))
    return list(dict.fromkeys(_existing(*found)))


@functools.cache
def bubblewrap() -> str | None:
    """The path of bubblewrap, if it is installed and this system lets it make a container."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    command = [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "true"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return program if done.returncode == 0 else None


def container(program: str, allowed: Area, module: str) -> list[str]:
    """The command line's beginning that starts a child inside bubblewrap: namespaces, and a root of what it needs."""
    command = [program, "--unshare-all", "--die-with-parent", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]  # noqa: S108
    for path in readable(module):
        command += ["--symlink", str(path.readlink()), str(path)] if path.is_symlink() else _same("--ro-bind", path)
    for path in _existing(*_GPU_DEVICES):
        command += _same("--dev-bind", path)
    command += [*_same("--ro-bind", allowed.inputs), *_same("--bind", allowed.outputs), *_same("--bind", allowed.home)]
    return [*command, "--setenv", MARK, "bubblewrap", "--chdir", str(allowed.home), "--"]


def main() -> int:
    """Confine this process and tell how far that went, as an event."""
    active = confine(area(sys.argv[1:]))
    sys.stdout.buffer.write(protocol.encode(protocol.Started(protections=active)))
    return 0


def _same(option: str, path: Path) -> list[str]:
    return [option, str(path), str(path)]


def _existing(*patterns: str) -> list[Path]:
    return [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - absolute ones


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Move into an empty network namespace, with one of users where that needs one."""
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def _die_with_parent(libc: ctypes.CDLL) -> None:
    """Have the kernel kill us when the supervisor dies, however busy we are; elsewhere the end of stdin must do.

    Also adopt orphaned descendants, so that the supervisor finds them below us when it kills.
    """
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _drop_capabilities(libc: ctypes.CDLL, *, kept: int) -> bool:
    """Keep at most these capabilities; a namespace of users has just given us all of them, within it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for the upper 32
    if libc.capget(header, data) != 0:
        return False
    for index in range(6):
        data[index] &= kept if index < 2 else 0
    return bool(libc.capset(header, data) == 0)


def _mapped_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
