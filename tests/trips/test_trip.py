"""Builtin architectures go through every format and come back into their own library with silent channels."""

import json
import shutil

import onnx
import pytest
import torch

from benchmarks.trips import page, runtimes, trip
from benchmarks.trips.catalogue import ARCHITECTURES, Architecture, randomised
from benchmarks.trips.trip import Silence, choose, difference, make_trip, silence_and_write
from worker.sanitizer import masks
from worker.sanitizer.case import load_network

# torch's two exporters to ONNX share their library.
LIBRARIES = runtimes.FORMATS[:4]
SMALL = Architecture("builtin", "small_resnet", 16, {"width": 6})


@pytest.mark.parametrize("kind", runtimes.FORMATS)
@pytest.mark.parametrize(
    ("name", "options", "num_sites"),
    [("small_resnet", {"width": 6}, 9), ("small_vgg", {"width": 6, "batch_norm": False}, 4)],
    ids=["small_resnet", "small_vgg"],
)
def test_a_small_network_comes_back_whole(name, options, num_sites, kind):
    found = make_trip(Architecture("builtin", name, 16, options), kind)
    assert (found.code, found.detail) == ("ok", "")
    assert found.sites == {"conv": num_sites}
    assert found.num_silent == found.num_silenced >= 4
    assert found.effect > 1e-3
    assert found.batch == (None if kind in {"safetensors", "pth"} else "free")


@pytest.mark.parametrize(
    ("name", "kind"), [("resnet18_32", "pt2"), ("preact_resnet18", "onnx"), ("vgg19_bn_32", "safetensors")]
)
def test_the_networks_of_the_field_come_back_whole(name, kind):
    found = make_trip(Architecture("builtin", name, 32), kind)
    assert (found.code, found.detail) == ("ok", "")


def test_a_failure_is_a_row_with_its_code():
    found = make_trip(Architecture("timm", "no_such_network", 16), "safetensors")
    assert found.code != "ok"
    assert found.detail
    text = page.write([found.as_dict() | {"commit": "0", "seconds": 90.0}], ["safetensors", "pt2"])
    assert f"**{found.code}**" in text
    assert "0 of 1" in text
    assert "not run" in text
    assert "1 trips took 2 minutes" in text


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    folder, images = tmp_path_factory.mktemp("uploads"), torch.zeros(3, 3, 16, 16)
    for kind in LIBRARIES:
        runtimes.quietly(lambda kind=kind: runtimes.write(kind, SMALL.make(), folder / kind, images, is_free=True))
    return folder


@pytest.fixture
def written(uploads, tmp_path):
    """`written(kind)`: the upload, and what our reader makes of it."""

    def make(kind):
        path = tmp_path / f"m.{kind}"
        shutil.copy(uploads / kind, path)
        spec = SMALL.by_name if kind in {"safetensors", "pth"} else trip._file_spec(SMALL)
        return path, *load_network(path, spec, SMALL.input_spec, trip.CPU)

    return make


@pytest.mark.parametrize("kind", LIBRARIES)
def test_channels_that_were_left_loud_are_seen_in_every_library(kind, written):
    path, checkpoint, network = written(kind)
    mask = choose(network)
    silent = Silence(network, mask)
    runtimes.load(kind, path, SMALL.build).run(torch.randn(3, 3, 16, 16), silent.named_as_in(checkpoint))
    assert len(silent.loud()) == len(mask)
    assert silent.silent() == []
    assert not any("of 0" in line for line in silent.loud())


@pytest.mark.parametrize("kind", LIBRARIES)
def test_one_site_that_the_writer_forgot_is_seen(kind, written, tmp_path):
    _, checkpoint, network = written(kind)
    mask = choose(network)
    forgotten = list(mask)[1]
    silence_and_write(
        checkpoint,
        network,
        {name: keep for name, keep in mask.items() if name != forgotten},
        torch.rand(3, 3, 16, 16),
        tmp_path / "out",
    )
    silent = Silence(network, mask)
    images = torch.randn(3, 3, 16, 16)
    runtimes.load(kind, tmp_path / "out", SMALL.build).run(images, silent.named_as_in(checkpoint))
    assert [line.split()[0] for line in silent.loud()] == [forgotten]


@pytest.mark.parametrize("kind", LIBRARIES)
def test_facts_are_all_but_the_weights(kind, written, tmp_path):
    path, checkpoint, network = written(kind)
    masks.silence(network, choose(network))
    other = tmp_path / "other"
    checkpoint.write(other, {})
    facts = runtimes.load(kind, path, SMALL.build).facts()
    assert runtimes.load(kind, other, SMALL.build).facts() == facts
    _spoil(kind, path)
    assert runtimes.load(kind, path, SMALL.build).facts() != facts


def _spoil(kind, path):
    """Change what is no weight: a note, a member, a name."""
    if kind == "safetensors":
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"]["note"] = "lost"
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    elif kind == "onnx":
        model = onnx.load(path)
        model.producer_name = "another"
        onnx.save(model, path)
    elif kind == "pth":
        torch.save({**torch.load(path, weights_only=True), "epoch": 4}, path)
    else:
        copy = path.with_name("again.pt2")
        program = torch.export.load(path)
        torch.export.save(program, copy, extra_files={"note": "new"})
        shutil.move(copy, path)


def test_differences_are_relative_to_the_largest_logit():
    logits = torch.tensor([[1.0, 200.0]])
    assert difference(logits, logits) == 0
    assert difference(logits + 1, logits) == pytest.approx(0.005)
    assert difference(torch.tensor([[0.1]]), torch.tensor([[0.2]])) == pytest.approx(0.1)
    assert difference(logits, logits * torch.inf) == float("inf")


def test_norms_are_drawn_anew_and_scales_that_hide_a_branch_are_lifted():
    norm = torch.nn.BatchNorm2d(4)
    hidden = torch.nn.Linear(3, 4)
    torch.nn.init.zeros_(hidden.weight)
    module = randomised(torch.nn.Sequential(norm, hidden))
    assert norm.running_mean.abs().min() > 0
    assert len(norm.running_var.unique()) == 4
    assert hidden.weight.abs().min() > 0.2
    assert not module.training


def test_the_catalogue_has_the_families_that_are_promised_and_names_each_once():
    named = [(one.source, one.name) for one in ARCHITECTURES]
    assert len(set(named)) == len(named) >= 40
    assert {source for source, _ in named} == {"torchvision", "timm", "transformers"}
    text = """resnet vgg densenet mobilenet_v2 mobilenet_v3 efficientnet regnet convnext vit deit swin maxvit mixer
        shufflenet squeezenet inception googlenet mnasnet resnext nfnet beit coatnet efficientformer levit poolformer"""
    families = text.split()
    names = " ".join(name.lower() for _, name in named)
    assert [family for family in families if family not in names] == []
