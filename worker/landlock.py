"""Landlock: the kernel's own way for a process without rights to give up access to files (Linux 5.13 and newer).

The numbers are those of linux/landlock.h; a kernel that knows fewer of them is asked for fewer.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract Unix sockets and signals of processes outside

# How many access rights of files the kernel knows, by the version of its interface: the last one for all later.
_NUM_RIGHTS = (13, 14, 15, 15, 16)
_SINCE_TCP, _SINCE_SCOPES = 4, 6


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """The version of the kernel's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


def restrict(*, readable: Iterable[Path], writable: Iterable[Path], listable: Iterable[Path]) -> bool:
    """Give up all files but these, for this thread and everything that it starts, for ever.

    Also, where the kernel knows how: TCP, abstract Unix sockets, and signals to processes outside.

    Args:
        readable: Read, list and execute below these.
        writable: Everything below these.
        listable: List folders below these, without reading what is in them.

    Returns:
        Whether the rules are in force. `PR_SET_NO_NEW_PRIVS` must have been set.
    """
    known = version()
    if known == 0:
        return False
    libc = _libc()
    rights = (1 << _NUM_RIGHTS[min(known, len(_NUM_RIGHTS)) - 1]) - 1
    attributes = _RulesetAttributes(
        rights, _TCP if known >= _SINCE_TCP else 0, _SCOPES if known >= _SINCE_SCOPES else 0
    )
    size = 8 if known < _SINCE_TCP else 16 if known < _SINCE_SCOPES else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if ruleset < 0:
        return False
    try:
        for paths, access in ((readable, _READ), (writable, rights), (listable, _READ_DIR)):
            if not all(_allow(libc, ruleset, path, access & rights) for path in paths):
                return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> bool:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # what cannot be reached needs no rule
    try:
        rule = _PathBeneath(access if path.is_dir() else access & _ON_FILES, descriptor)
        return bool(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0) == 0)
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
