"""Choose the device, and make a run on it repeatable: seeds and deterministic kernels, put back afterwards."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import Device


class DeviceNotAvailableError(SanitizerError):
    """The device that was asked for is not there; another one is never taken in its place."""

    code = "device_not_available"


def choose(requested: Device) -> torch.device:
    """The device of a job: `auto` is CUDA where there is one, else the CPU.

    Raises:
        DeviceNotAvailableError: `cuda` was asked for and there is none. A client that asks for a GPU by name wants
            its numbers, and those of a CPU differ in the last bits.
    """
    if requested == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if requested == "cuda":
        raise DeviceNotAvailableError("This worker has no CUDA device. Ask for device `auto` or `cpu`.")
    return torch.device("cpu")


def describe(device: torch.device) -> str:
    """The processor's name, for the report."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


@contextmanager
def deterministic(seed: int, target: torch.device) -> Iterator[None]:
    """Within the block torch draws from `seed` and uses deterministic kernels in full float32.

    Where CUDA has none (the gradients of some poolings, reflections and enlargements) it warns and takes another.
    """
    # cuBLAS reads this when its handle is made, before the first matrix product on the device.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    strict, warn_only, cudnn, matmul = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn,
        torch.backends.cuda.matmul,
    )
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    torch.use_deterministic_algorithms(mode=True, warn_only=target.type == "cuda")
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=strict, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
