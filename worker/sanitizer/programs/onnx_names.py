"""Names for a network's tensors, made from those in the file: such that a module can hold them, and each only once."""

from __future__ import annotations

import re

from torch import fx, nn

MAX_CHARACTERS = 200
MAX_PARTS = 30

NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")

_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
_FOREIGN = re.compile(r"[^A-Za-z0-9_.]+")


class StateNames:
    """Gives each tensor of the file one name. fx writes source code around names, so nothing foreign may be in one."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._tensors: set[str] = set()
        self._modules: set[str] = set()
        self._num_constants = 0

    def state(self, file_name: str) -> str:
        """The name of one of the file's tensors: its own, where a module can hold it."""
        if file_name not in self._given:
            self.assign(file_name, file_name)
        return self._given[file_name]

    def assign(self, file_name: str, wanted: str) -> None:
        """Give a tensor of the file a name like the one wanted."""
        plain = _plain(wanted)
        flat = plain.replace(".", "_")
        candidate, number = plain, 0
        while not self._is_free(candidate):
            number += 1
            candidate = f"{flat}_{number}"
        self._take(candidate)
        self._given[file_name] = candidate

    def norm(self, prefix: str) -> str:
        """A prefix for the tensors of one batch norm, whose statistics are then called as torch calls them."""
        plain = _plain(prefix)
        candidate, number = plain, 0
        while not all(self._is_free(f"{candidate}.{leaf}") for leaf in NORM_LEAVES):
            number += 1
            candidate = f"{plain}_{number}"
        for leaf in ("running_mean", "running_var"):
            self._take(f"{candidate}.{leaf}")
        return candidate

    def constant(self) -> str:
        """The name of a tensor that is not of the file."""
        while True:
            self._num_constants += 1
            name = f"constant_{self._num_constants}"
            if self._is_free(name):
                self._take(name)
                return name

    def _is_free(self, name: str) -> bool:
        parts = name.split(".")
        owners = {".".join(parts[:end]) for end in range(1, len(parts))}
        return (
            name not in self._tensors
            and name not in self._modules
            and not owners & self._tensors
            and not _RESERVED & set(parts)
        )

    def _take(self, name: str) -> None:
        parts = name.split(".")
        self._tensors.add(name)
        self._modules |= {".".join(parts[:end]) for end in range(1, len(parts))}


def _plain(name: str) -> str:
    """The name with nothing in it but letters, digits, underscores and single dots between them."""
    parts = [part for part in _FOREIGN.sub("_", name[:MAX_CHARACTERS]).split(".") if part]
    if not parts or len(parts) > MAX_PARTS:
        parts = ["_".join(parts) or "tensor"]
    return ".".join(parts)
