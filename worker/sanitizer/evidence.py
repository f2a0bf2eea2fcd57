"""What a report says about tensors, layers, files and the machine: facts that anyone can check again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from worker.sanitizer import device
from worker.sanitizer.activations import ChannelStatistics
from worker.sanitizer.criteria import MAD_TO_STD
from worker.sanitizer.network import Network
from worker.sanitizer.report import CappedLayer, Environment, FileDigest, Layer, NormSummary, TensorDigest

REPORTED_NORMS = ("linf", "l1", "l2")
REPORTED_PACKAGES = ("safetensors", "onnx", "numpy", "pillow", "torchvision", "timm", "transformers")
CHUNK_BYTES = 1 << 20


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's elements in row-major order, as bytes of its dtype."""
    contiguous = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(contiguous.view(torch.uint8).numpy().data).hexdigest()


def tensor_digests(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[TensorDigest]:
    """Each tensor's digest before and after, so that a reader can check which ones were touched."""
    digests = []
    for name, tensor in before.items():
        old, new = tensor_sha256(tensor), tensor_sha256(after[name])
        digests.append(TensorDigest(name=name, changed=old != new, sha256_before=old, sha256_after=new))
    return digests


def changed(
    originals: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The checkpoint's tensors that the network's change touches, in their own dtypes; the rest keeps its bits.

    Args:
        originals: The tensors as they were read.
        before: The network's float32 tensors made from them.
        after: The network's tensors now.
    """
    tensors = {}
    for name, original in originals.items():
        if name not in before or torch.equal(before[name], after[name]):
            continue
        touched = (before[name] != after[name]).cpu()
        tensors[name] = torch.where(touched, after[name].detach().cpu().to(original.dtype), original.detach())
    return tensors


def file_digest(role: str, file_format: str, path: Path) -> FileDigest:
    """Size and SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return FileDigest(
        role=role,  # type: ignore[arg-type]
        format=file_format,
        size_bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
    )


def layers(
    network: Network,
    statistics: Mapping[str, ChannelStatistics],
    scores: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    by_criterion: Mapping[str, Mapping[str, Tensor]],
) -> list[Layer]:
    """Every prunable layer with its clean statistics, its scores where it was in scope, and what was silenced."""
    rows = []
    for site in network.sites:
        keep_C = mask.get(site.name)
        pruned = [] if keep_C is None else (~keep_C).nonzero().squeeze(1).tolist()
        rows.append(
            Layer(
                name=site.name,
                kind=site.kind,
                num_channels=site.num_channels,
                in_scope=site.name in scores,
                num_pruned=len(pruned),
                pruned_channels=pruned,
                tensors=list(site.tensors),
                norms={norm: _summary(statistics[site.name].mean(norm)) for norm in REPORTED_NORMS},
                scores=_rounded(scores[site.name]) if site.name in scores else [],
                criterion_scores={
                    name: _rounded(part[site.name]) for name, part in by_criterion.items() if site.name in part
                },
            )
        )
    return rows


def capped(network: Network, caps: Mapping[str, Tensor]) -> list[CappedLayer]:
    """The layers with bounded activations; `caps` are the bounds by what the file calls the value."""
    values = network.value_names()
    return [
        CappedLayer(
            name=site.name,
            value=values[site.name],
            num_channels=site.num_channels,
            sha256=tensor_sha256(caps[values[site.name]]),
        )
        for site in network.sites
        if values.get(site.name) in caps
    ]


def environment(target: torch.device, seed: int) -> Environment:
    """Versions, device, seed and threads: what a second run needs to give the same bytes."""
    return Environment(
        lustrate=_version("lustrate") or "unknown",
        python=platform.python_version(),
        torch=torch.__version__,
        packages={name: found for name in REPORTED_PACKAGES if (found := _version(name)) is not None},
        device=target.type,
        device_name=device.describe(target),
        seed=seed,
        num_threads=torch.get_num_threads(),
    )


def _rounded(score_C: Tensor) -> list[float]:
    return [round(value, 6) for value in score_C.tolist()]


def _summary(values_C: Tensor) -> NormSummary:
    median = values_C.quantile(0.5)
    deviation = MAD_TO_STD * (values_C - median).abs().quantile(0.5)
    return NormSummary(median=float(median), maximum=float(values_C.amax()), deviation=float(deviation))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
