"""Architectures by name: build the network that a checkpoint's tensors belong to."""

from worker.sanitizer.architectures.options import (
    ArchitectureNotInstalledError,
    ArchitectureRefusedError,
    InvalidArchitectureOptionError,
    OptionValue,
    UnknownArchitectureError,
)
from worker.sanitizer.architectures.registry import MAX_PARAMETERS, build, names, state_shapes

__all__ = [
    "MAX_PARAMETERS",
    "ArchitectureNotInstalledError",
    "ArchitectureRefusedError",
    "InvalidArchitectureOptionError",
    "OptionValue",
    "UnknownArchitectureError",
    "build",
    "names",
    "state_shapes",
]
