"""One architecture sent through one format: out of its library, through ours with channels silenced, and back.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trips import runtimes
from benchmarks.trips.catalogue import MEAN, NUM_CLASSES, STD, Architecture
from worker.sanitizer import evidence, masks
from worker.sanitizer.case import load_network
from worker.sanitizer.checkpoint import Checkpoint
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.network import Network, Site
from worker.sanitizer.programs.onnx_model import OnnxModel
from worker.sanitizer.repair import snapshot
from worker.sanitizer.spec import ArchitectureSpec

# Of the largest logit, or of one where all are smaller; ONNX Runtime fuses and orders its sums in its own way.
TOLERANCES = {"safetensors": 1e-5, runtimes.REPOSITORY: 1e-5, "pth": 1e-5, "pt2": 1e-5, "onnx": 1e-4, "onnx_new": 1e-4}
NUM_IMAGES = 3
NUM_SITES = 6
SHARE_SILENCED = 0.25
CPU = torch.device("cpu")


class TripFailedError(Exception):
    """A step did not hold; `code` says which."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(slots=True)
class Trip:
    """What was found.

    Attributes:
        code: `ok`, a refusal's code, or the step that did not hold.
        detail: Of what is not `ok`.
        batch: `free` or `fixed` for programs.
        sites: By kind.
        num_skipped: Layers that are left out by name.
        before: Largest difference of logits between the original and our view of it, relative.
        after: The same between what we wrote, loaded where it came from, and our silenced view.
        effect: How far silencing moved the logits, relative.
        num_silenced: Sites that lost channels.
        num_silent: Of those, the ones whose channels are zero in the original's own library on every image.
        parameters: Number of values.
    """

    source: str
    name: str
    side: int
    format: str
    code: str = "ok"
    detail: str = ""
    batch: str | None = None
    sites: dict[str, int] = field(default_factory=dict)
    num_skipped: int = 0
    before: float | None = None
    after: float | None = None
    effect: float | None = None
    num_silenced: int = 0
    num_silent: int = 0
    parameters: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def make_trip(architecture: Architecture, kind: str, seconds: int = 600) -> Trip:
    """Send one architecture through one format; whatever fails is in the answer, under its code."""
    trip = Trip(architecture.source, architecture.name, architecture.side, kind)
    try:
        with tempfile.TemporaryDirectory() as folder, _limit(seconds):
            _go(trip, architecture, Path(folder))
    except (TripFailedError, SanitizerError) as error:
        trip.code, trip.detail = error.code, _line(error)
    except Exception as error:  # a foreign library, and any mistake of ours, is a row of the table too
        trip.code, trip.detail = f"crashed: {type(error).__name__}", _line(error)
    return trip


def _go(trip: Trip, architecture: Architecture, folder: Path) -> None:
    is_repository = trip.format == "safetensors" and architecture.source == "transformers"
    kind = runtimes.REPOSITORY if is_repository else trip.format
    module = architecture.make()
    trip.parameters = sum(tensor.numel() for tensor in module.parameters())
    pixels_NCHW = torch.rand(
        (NUM_IMAGES, architecture.in_channels, architecture.side, architecture.side),
        generator=torch.Generator().manual_seed(1),
    )
    images_NCHW = (pixels_NCHW - MEAN) / STD
    suffix = runtimes.SUFFIXES.get(kind, kind)
    upload, download = folder / f"upload.{suffix}", folder / f"download.{suffix}"
    trip.batch = _export(kind, module, upload, images_NCHW)
    theirs = runtimes.load(kind, upload, architecture.build)
    is_program = trip.batch is not None
    spec = _file_spec(architecture) if is_program else architecture.by_name
    checkpoint, network = load_network(upload, spec, architecture.input_spec, CPU)
    trip.sites = dict(Counter(site.kind for site in network.sites))
    trip.num_skipped = len(network.skipped)
    with torch.no_grad():  # What transformers keeps from one run to the next must not be bound to inference.
        logits_NK = network(pixels_NCHW)
        # A runtime of its own is the reference for its files; what its exporter folds is no error of our reader.
        wanted_NK = theirs.run(images_NCHW, {}) if suffix == "onnx" else module(images_NCHW)
    trip.before = difference(logits_NK, wanted_NK)
    _require(trip.before <= TOLERANCES[kind], "logits_differ", f"by {trip.before:.2g}")
    mask = choose(network)
    silenced_NK = silence_and_write(checkpoint, network, mask, pixels_NCHW, download)
    trip.effect = difference(silenced_NK, logits_NK)
    _require(trip.effect > 0, "no_effect", "silencing moved no logit")
    ours = runtimes.load(kind, download, architecture.build)
    silent = Silence(network, mask)
    trip.after = difference(ours.run(images_NCHW, silent.named_as_in(checkpoint)), silenced_NK)
    _require(trip.after <= TOLERANCES[kind], "download_differs", f"by {trip.after:.2g}")
    _require(theirs.facts() == ours.facts(), "facts_differ", "keys, dtypes, metadata or untouched bytes")
    trip.num_silenced, trip.num_silent = len(silent.sites), len(silent.silent())
    _require(trip.num_silent == trip.num_silenced, "not_silent", ", ".join(silent.loud()))


def _file_spec(architecture: Architecture) -> ArchitectureSpec:
    return ArchitectureSpec(source="file", num_classes=NUM_CLASSES, in_channels=architecture.in_channels)


def _export(kind: str, module: nn.Module, path: Path, images_NCHW: Tensor) -> str | None:
    """Write the file, with a batch of any size where the exporter can; `free`, `fixed`, or None for a state dict."""
    if kind in {"safetensors", runtimes.REPOSITORY, "pth"}:
        runtimes.write(kind, module, path, images_NCHW, is_free=True)
        return None
    for is_free in (True, False):
        try:
            runtimes.quietly(lambda is_free=is_free: runtimes.write(kind, module, path, images_NCHW, is_free=is_free))  # type: ignore[misc]
        except TimeoutError:
            raise
        except Exception as error:  # exporters raise anything
            failure = error
        else:
            return "free" if is_free else "fixed"
    raise TripFailedError("exporter_failed", f"{type(failure).__name__}: {_line(failure)}")


def choose(network: Network) -> dict[str, Tensor]:
    """A mask over sites of every kind, from the first to the last: a quarter of each one's channels, never all."""
    sites, generator = network.sites, torch.Generator().manual_seed(2)
    spread = torch.linspace(0, len(sites) - 1, min(NUM_SITES, len(sites))).round().int().unique().tolist()
    firsts = {site.kind: position for position, site in reversed(list(enumerate(sites)))}
    mask = {}
    for position in sorted({*spread, *firsts.values()}):
        site = sites[position]
        if site.num_channels < 2:
            continue
        count = min(max(1, int(site.num_channels * SHARE_SILENCED)), site.num_channels - 1)
        keep_C = torch.ones(site.num_channels, dtype=torch.bool)
        keep_C[torch.randperm(site.num_channels, generator=generator)[:count]] = False
        mask[site.name] = keep_C
    return mask


def silence_and_write(
    checkpoint: Checkpoint, network: Network, mask: Mapping[str, Tensor], pixels_NCHW: Tensor, path: Path
) -> Tensor:
    """Silence for good, as a job does, look at our own view, and write. Returns the logits (N, K) from then on."""
    suspect = snapshot(network)
    masks.silence(network, mask)
    loud: list[str] = []

    def observer(site: Site) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            if bool(site.maps(value)[:, ~mask[site.name]].any()):
                loud.append(site.name)

        return see

    taps = {site.tap: observer(site) for site in network.sites if site.name in mask}
    with torch.inference_mode():
        logits_NK = network.observe(pixels_NCHW, taps)
    _require(not loud, "not_silent_here", ", ".join(loud))
    checkpoint.write(path, evidence.changed(checkpoint.tensors, suspect, network.tensors))
    return logits_NK


class Silence:
    """Looks, in the library that a file came from, at what the tensors of silenced channels are used for.

    A site is silent where at least one of its tensors' operators was seen, and all that were seen gave zeros in the
    silenced channels' places on every image.
    """

    def __init__(self, network: Network, mask: Mapping[str, Tensor]) -> None:
        self.sites = [site for site in network.sites if site.name in mask]
        self._looks: dict[str, runtimes.Look] = {}
        self._seen: dict[str, list[bool]] = {site.name: [] for site in self.sites}
        for site in self.sites:
            gone_C = (~mask[site.name]).nonzero().flatten()
            for rows in site.owned:
                index = rows.index(gone_C)[-1]
                assert isinstance(index, Tensor)
                self._looks[rows.tensor] = self._look(site.name, index, network.tensors[rows.tensor].shape[rows.axis])

    def named_as_in(self, checkpoint: Checkpoint) -> dict[str, runtimes.Look]:
        """The looks by the names that the file itself uses."""
        origins = checkpoint.source.origins if isinstance(checkpoint.source, OnnxModel) else {}
        return {origins[name].name if name in origins else name: look for name, look in self._looks.items()}

    def silent(self) -> list[str]:
        """The sites that are silent."""
        return [name for name, seen in self._seen.items() if seen and all(seen)]

    def loud(self) -> list[str]:
        """The others, and how much of them was seen."""
        return [f"{name} ({sum(seen)} of {len(seen)})" for name, seen in self._seen.items() if not (seen and all(seen))]

    def _look(self, site: str, index: Tensor, length: int) -> runtimes.Look:
        def look(value: Tensor) -> None:
            axes = [axis for axis in range(1, value.dim()) if value.shape[axis] == length]
            if axes:  # Else it is made of weights alone, as when biases are joined.
                self._seen[site].append(any(not value.index_select(axis, index).any() for axis in axes))

        return look


def difference(one_NK: Tensor, other_NK: Tensor) -> float:
    """The largest difference, relative to the largest logit, or to one where all are smaller."""
    if one_NK.shape != other_NK.shape or not torch.isfinite(other_NK).all():
        return float("inf")
    return float((one_NK - other_NK).abs().amax() / other_NK.abs().amax().clamp(min=1))


def _require(holds: bool, code: str, detail: str) -> None:
    if not holds:
        raise TripFailedError(code, detail)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Stop what takes too long; for the main thread alone."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
