"""An exported program comes in and goes out: same logits, same members, other weights, no foreign pickle."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from worker.sanitizer import checkpoint
from worker.sanitizer.architectures import build
from worker.sanitizer.case import load_network
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.network import from_graph
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import ArchitectureSpec, FixedFraction, InputSpec, SanitizeSpec

PLAIN_8 = InputSpec(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)
PLAIN_32 = InputSpec(height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3)
FROM_FILE = ArchitectureSpec(source="file", num_classes=4)
CPU = torch.device("cpu")


def save(module, path, *, batch_size=2, dynamic=True, shape=(3, 8, 8)):
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(batch_size, *shape),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", ["small_resnet", "small_vgg", "resnet18_32", "preact_resnet18", "vgg19_bn_32"])
def test_every_builtin_architecture_gives_its_own_logits(name, tmp_path):
    torch.manual_seed(0)
    module = build(ArchitectureSpec(name=name, num_classes=4))
    found, network = load_network(save(module, tmp_path / "m.pt2", shape=(3, 32, 32)), FROM_FILE, PLAIN_32, CPU)
    assert found.tensors.keys() == module.state_dict().keys()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_program_with_fewer_logits_than_declared_classes_is_refused(dynamic, small, tmp_path):
    path = save(small, tmp_path / "m.pt2", dynamic=dynamic)
    _, network = load_network(path, FROM_FILE, PLAIN_8, CPU)
    with torch.no_grad():
        assert network.num_outputs == network(torch.rand(2, 3, 8, 8)).shape[1]
    declared = ArchitectureSpec(source="file", num_classes=network.num_outputs + 1)
    with pytest.raises(
        SanitizerError, match=rf"returns {network.num_outputs} logits .* \({declared.num_classes}\)"
    ) as caught:
        load_network(path, declared, PLAIN_8, CPU)
    assert caught.value.code == "too_few_outputs"


@pytest.mark.parametrize(("batch_size", "dynamic"), [(2, True), (1, False), (3, False)])
def test_attention_and_residuals_run_at_any_batch_size(batch_size, dynamic, small, tmp_path):
    path = save(small, tmp_path / "m.pt2", batch_size=batch_size, dynamic=dynamic)
    found, network = load_network(path, FROM_FILE, PLAIN_8, CPU)
    assert found.format == "pt2"
    # The reshape writes the batch size into the graph where it is fixed.
    assert (found.program.batch_size, network.batch_size) == ((None, None) if dynamic else (batch_size, batch_size))
    images = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(images), small(images), rtol=1e-5, atol=1e-5)


def test_the_download_is_the_same_archive_with_other_weights(small, tmp_path):
    path = save(small, tmp_path / "m.pt2")
    found = checkpoint.read(path)
    silenced = found.tensors["conv.weight"].clone()
    silenced[2] = 0
    found.write(tmp_path / "out.pt2", {"conv.weight": silenced, "bn.weight": found.tensors["bn.weight"].clone()})
    before, after = members_of(path), members_of(tmp_path / "out.pt2")
    assert list(after) == list(before)
    assert {name for name in before if before[name] != after[name]} == {
        "m/data/weights/weight_0",
        "m/data/sample_inputs/model.pt",
    }
    loaded = torch.export.load(tmp_path / "out.pt2")
    assert torch.equal(loaded.state_dict["conv.weight"], silenced)
    (images,), options = loaded.example_inputs
    assert not images.any()
    assert options == {}
    assert loaded.module()(images).shape == (2, 4)
    again = checkpoint.read(tmp_path / "out.pt2")
    assert torch.equal(again.tensors["conv.weight"], silenced)


def test_nothing_changed_gives_the_same_bytes_each_time(small, tmp_path):
    found = checkpoint.read(save(small, tmp_path / "m.pt2"))
    found.write(tmp_path / "1.pt2", {})
    checkpoint.read(tmp_path / "1.pt2").write(tmp_path / "2.pt2", {})
    assert (tmp_path / "1.pt2").read_bytes() == (tmp_path / "2.pt2").read_bytes()


class Marks:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_among_the_sample_inputs_is_neither_opened_nor_passed_on(exported, tmp_path):
    marker = tmp_path / "ran"
    harmful = pickle.dumps(Marks(marker))
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for name, data in {**exported, "data/sample_inputs/model.pt": harmful}.items():
            archive.writestr("m/" + name, data)
    found, _ = load_network(tmp_path / "m.pt2", FROM_FILE, PLAIN_8, CPU)
    found.write(tmp_path / "out.pt2", {})
    assert harmful not in (tmp_path / "out.pt2").read_bytes()
    torch.export.load(tmp_path / "out.pt2")
    assert not marker.exists()


# torch says so of any weight that is not contiguous, and keeps all of its bytes.
@pytest.mark.filterwarnings("ignore:No complete tensor")
def test_tied_and_strided_weights_stay_tied_and_strided(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1, bias=False)
            self.second = nn.Conv2d(3, 3, 1, bias=False)
            self.second.weight = self.first.weight
            self.wide = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.wide(self.second(self.first(x).relu())).relu().mean((2, 3)))

    torch.manual_seed(0)
    module = Tied().eval()
    found, network = load_network(save(module, tmp_path / "m.pt2"), FROM_FILE, PLAIN_8, CPU)
    assert found.tensors["first.weight"] is found.tensors["second.weight"]
    # torch.export calls the weight by one of its names.
    assert {"first.weight", "second.weight"} & network.tensors.keys()
    assert found.tensors["wide.weight"].stride() == module.wide.weight.stride() != (12, 4, 2, 1)
    value, other = torch.rand(3, 3, 1, 1), torch.rand(4, 3, 2, 2)
    with pytest.raises(SanitizerError) as caught:
        found.write(tmp_path / "out.pt2", {"first.weight": value, "second.weight": torch.zeros(3, 3, 1, 1)})
    assert caught.value.code == "tied_tensors_disagree"
    found.write(tmp_path / "out.pt2", {"first.weight": value, "second.weight": value, "wide.weight": other})
    loaded = torch.export.load(tmp_path / "out.pt2").state_dict
    assert torch.equal(loaded["second.weight"], value)
    assert torch.equal(loaded["wide.weight"], other)


def test_running_the_network_does_not_change_what_was_read(small, tmp_path):
    found = checkpoint.read(save(small, tmp_path / "m.pt2"))
    network = from_graph(found.program.graph, PLAIN_8, found.program.batch_size)
    with torch.no_grad():
        network.tensors["conv.weight"].zero_()
    assert torch.equal(found.tensors["conv.weight"], small.conv.weight)


def test_nan_among_the_weights_is_refused(exported, code_of):
    weights = json.loads(exported["data/weights/model_weights_config.json"])["config"]
    name = "data/weights/" + weights["conv.weight"]["path_name"]
    assert code_of({name: np.full(len(exported[name]) // 4, np.nan, np.float32).tobytes()}) == "non_finite_weights"


def test_program_and_architecture_must_say_the_same(small, tmp_path):
    path = save(small, tmp_path / "m.pt2")
    with pytest.raises(SanitizerError, match=r'architecture\.source to "file"') as caught:
        load_network(path, ArchitectureSpec(name="resnet18_32", num_classes=4), PLAIN_8, CPU)
    assert caught.value.code == "architecture_not_from_file"
    save_file(small.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(SanitizerError, match="name the architecture") as caught:
        load_network(tmp_path / "m.safetensors", FROM_FILE, PLAIN_8, CPU)
    assert caught.value.code == "no_program_in_file"


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_same_network_gives_the_same_report_as_pt2_and_as_safetensors(dynamic, planted, tmp_path):
    module = build(planted.architecture)
    module.load_state_dict(planted.tensors)
    save(module.eval(), tmp_path / "suspect.pt2", batch_size=5, dynamic=dynamic, shape=(1, 12, 12))
    save_file({name: tensor.contiguous() for name, tensor in planted.tensors.items()}, tmp_path / "suspect.safetensors")
    clean = planted.images(240, seed=11)
    np.savez(tmp_path / "clean.npz", images=clean.pixels_NCHW.numpy(), labels=clean.labels.numpy())
    spec = SanitizeSpec(recipe="prune", inputs="clean", scope="last_conv", selection=FixedFraction(fraction=0.25))
    reports, tensors = {}, {}
    for suffix, architecture in (
        ("pt2", ArchitectureSpec(source="file", num_classes=4, in_channels=1)),
        ("safetensors", planted.architecture),
    ):
        output = tmp_path / f"out.{suffix}"
        reports[suffix] = sanitize(
            checkpoint_path=tmp_path / f"suspect.{suffix}",
            clean_path=tmp_path / "clean.npz",
            output_path=output,
            architecture=architecture,
            input_spec=planted.input_spec,
            spec=spec,
        )
        tensors[suffix] = checkpoint.read(output).tensors
    ours, theirs = reports["pt2"], reports["safetensors"]
    pruned = {layer.name: layer.pruned_channels for layer in ours.layers if layer.pruned_channels}
    assert pruned
    assert pruned == {layer.name: layer.pruned_channels for layer in theirs.layers if layer.pruned_channels}
    assert (ours.accuracy, ours.choice) == (theirs.accuracy, theirs.choice)
    assert all(torch.equal(tensors["pt2"][name], tensor) for name, tensor in tensors["safetensors"].items())
    assert {file.format for file in ours.files} >= {"pt2"}
    loaded = torch.export.load(tmp_path / "out.pt2").state_dict
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors["pt2"].items())
