"""ONNX files from end to end: the same logits, the same bytes but for the weights, the same job as any checkpoint."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.sanitizer.programs.onnx_files import export, graph, initializer, random, run, save, session, shake
from worker.sanitizer import checkpoint
from worker.sanitizer.architectures import build
from worker.sanitizer.case import load_network
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import ArchitectureSpec, FixedFraction, InputSpec, SanitizeSpec

FROM_FILE = ArchitectureSpec(source="file", num_classes=4)
CPU = torch.device("cpu")
aten = torch.ops.aten


def plain(side, channels=3):
    return InputSpec(height=side, width=side, mean=(0.0,) * channels, std=(1.0,) * channels)


def module_of(name, **options):
    torch.manual_seed(0)
    return shake(build(ArchitectureSpec(name=name, num_classes=4, options=options)))


class Tokens(nn.Module):
    """Patches, a class token, attention, a layer norm, a gated convolution: what vision transformers are made of."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        patches = self.patches(x)
        patches = (patches * torch.sigmoid(patches)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.head(self.block(self.norm(tokens))[:, 0])


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(3)
    return Tokens().eval()


def logits_agree(path, side, *, batch_size=None):
    """Compare with ONNX Runtime on 5 images; return the checkpoint and the network."""
    found, network = load_network(path, FROM_FILE, plain(side), CPU)
    images = torch.rand(5, 3, side, side)
    runtime = session(path.read_bytes())
    name = runtime.get_inputs()[0].name
    fill = torch.cat([images] * (batch_size or 1))
    chunks = fill.split(batch_size or len(fill))
    wanted = np.concatenate([runtime.run(None, {name: chunk.numpy()})[0] for chunk in chunks])[:5]
    with torch.no_grad():
        torch.testing.assert_close(network(images), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    return found, network


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["small_resnet", "small_vgg", "resnet18_32", "preact_resnet18", "vgg19_bn_32"])
def test_every_builtin_architecture_gives_its_own_logits(name, dynamo, tmp_path):
    path = export(module_of(name), tmp_path / "m.onnx", shape=(3, 32, 32), dynamo=dynamo)
    found, network = logits_agree(path, 32)
    assert (found.format, found.program.batch_size) == ("onnx", None)
    assert network.sites


# torch's newer exporter begins at opset 18.
@pytest.mark.parametrize(
    ("opset", "dynamo"), [(14, False), (17, False), (20, False), (18, True), (20, True), (23, True)]
)
def test_a_transformer_is_read_from_every_opset_it_is_exported_in(opset, dynamo, tokens, tmp_path):
    path = export(tokens, tmp_path / "m.onnx", shape=(3, 16, 16), dynamo=dynamo, opset_version=opset)
    _, network = logits_agree(path, 16)
    called = [node.target for node in network.graph.graph.nodes if node.op == "call_function"]
    # However the opset spells them, they come back under their names.
    assert called.count(aten.layer_norm.default) == 3
    assert aten.gelu.default in called
    assert aten.silu.default in called
    assert aten.erf.default not in called


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", "c", "h", "w")])
def test_a_size_that_the_file_leaves_open_is_the_one_that_the_job_names(shape, tmp_path):
    model = onnx.load(export(module_of("small_resnet"), tmp_path / "f.onnx", shape=(3, 32, 32)))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_param = size if isinstance(size, str) else ""
        if not isinstance(size, str):
            dim.dim_value = size
    found, network = logits_agree(save(model, tmp_path / "m.onnx"), 48)
    assert found.tensors.keys() <= network.tensors.keys()
    logits_agree(tmp_path / "m.onnx", 24)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_fixed_batch_size_is_freed_where_the_graph_allows_it(batch_size, tmp_path):
    path = export(module_of("small_resnet"), tmp_path / "m.onnx", shape=(3, 32, 32), batch_size=batch_size, free=False)
    found, network = logits_agree(path, 32, batch_size=batch_size)
    assert found.program.batch_size == batch_size
    assert network.batch_size is None


def test_a_batch_size_that_is_written_into_constants_stays(tokens, tmp_path):
    path = export(tokens, tmp_path / "m.onnx", shape=(3, 16, 16), batch_size=2, free=False)
    _, network = logits_agree(path, 16, batch_size=2)
    assert network.batch_size == 2


def test_a_class_token_for_one_image_is_given_to_each(tokens, tmp_path):
    tokens = copy.deepcopy(tokens)
    tokens.block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    path = export(tokens, tmp_path / "m.onnx", shape=(3, 16, 16), batch_size=1, free=False)
    _, network = logits_agree(path, 16, batch_size=1)
    assert network.batch_size is None


def test_images_with_channels_last_are_turned(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"]),
    ]
    weights = [initializer("w", random(6, 3, 3, 3)), initializer("m", random(6, 4))]
    model = graph(nodes, weights, shape=("n", 8, 8, 3))
    found, network = load_network(save(model, tmp_path / "m.onnx"), FROM_FILE, plain(8), CPU)
    images = random(5, 3, 8, 8)
    # The softmax at the end is left away: what it is given are the logits.
    with torch.no_grad():
        shares = network(torch.from_numpy(images)).softmax(1)
    wanted = torch.from_numpy(run(model, np.ascontiguousarray(images.transpose(0, 2, 3, 1))))
    torch.testing.assert_close(shares, wanted, rtol=1e-4, atol=1e-5)
    assert found.tensors["m"].shape == (4, 6)


def half(model):
    """The same network with its weights in float16, some packed and some as numbers of the message."""
    for number, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
            if number == 0:
                tensor.ClearField("raw_data")
                tensor.int32_data.extend(int(bits) for bits in values.view(np.uint16).reshape(-1))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def test_half_precision_is_computed_in_single_and_written_in_half(tmp_path):
    model = half(onnx.load(export(module_of("small_vgg", batch_norm=False), tmp_path / "f.onnx", shape=(3, 32, 32))))
    found, network = load_network(save(model, tmp_path / "m.onnx"), FROM_FILE, plain(32), CPU)
    wanted = session(model.SerializeToString())
    images = torch.rand(4, 3, 32, 32)
    name = wanted.get_inputs()[0].name
    with torch.no_grad():
        got = network(images)
    torch.testing.assert_close(
        got, torch.from_numpy(wanted.run(None, {name: images.half().numpy()})[0]).float(), rtol=0.02, atol=0.02
    )
    # A tensor whose bytes cannot be overwritten one for one is no tensor that may change.
    assert model.graph.initializer[0].name not in found.tensors
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}
    assert model.graph.initializer[0].name not in network.parameters()


def changed_bytes(before, after):
    assert len(before) == len(after)
    return [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]


@pytest.mark.parametrize("dynamo", [False, True])
def test_only_the_bytes_of_changed_tensors_differ(dynamo, tmp_path):
    path = export(module_of("small_resnet", width=4), tmp_path / "m.onnx", shape=(3, 32, 32), dynamo=dynamo)
    model = onnx.load(path)
    helper.set_model_props(model, {"note": "kept"})
    # A field that no version of the format has, and typed data in place of raw.
    data = model.SerializeToString() + b"\xfa\x3e\x05hello"
    path.write_bytes(data)
    found = checkpoint.read(path)
    assert any("note" in str(line) for line in onnx.load(path).metadata_props)
    for name, tensor in found.tensors.items():
        written = tmp_path / "w.onnx"
        found.write(written, {name: torch.zeros_like(tensor)})
        after = written.read_bytes()
        origin = found.source.origins[name].name
        start = found.source.file.tensors[origin].start
        assert all(start <= index < start + tensor.nbytes for index in changed_bytes(data, after))
        again = checkpoint.read(written)
        assert again.tensors.keys() == found.tensors.keys()
        for other in found.tensors:
            expected = torch.zeros_like(tensor) if other == name else found.tensors[other]
            assert torch.equal(again.tensors[other], expected)
    found.write(tmp_path / "same.onnx", {})
    assert (tmp_path / "same.onnx").read_bytes() == data


def test_typed_data_constants_and_transposed_weights_are_written_where_they_lie(tmp_path):
    typed = helper.make_tensor("w", TensorProto.FLOAT, (6, 3, 3, 3), random(6, 3, 3, 3).ravel())
    kernel = onnx.numpy_helper.from_array(random(6, 6, 1, 1), "k")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Constant", [], ["kernel"], value=kernel),
        helper.make_node("Conv", ["c", "kernel"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    model = graph(nodes, [typed, initializer("m", random(6, 4))], shape=("n", 3, 8, 8))
    found = checkpoint.read(save(model, tmp_path / "m.onnx"))
    assert set(found.tensors) == {"w", "kernel", "m"}
    new = {name: torch.randn(tensor.shape) for name, tensor in found.tensors.items()}
    found.write(tmp_path / "w.onnx", new)
    written = onnx.load(tmp_path / "w.onnx")
    assert np.array_equal(onnx.numpy_helper.to_array(written.graph.initializer[0]), new["w"].numpy())
    assert np.array_equal(onnx.numpy_helper.to_array(written.graph.node[1].attribute[0].t), new["kernel"].numpy())
    assert np.array_equal(onnx.numpy_helper.to_array(written.graph.initializer[1]), new["m"].t().numpy())
    assert len(list(written.graph.initializer[0].float_data)) == 162


def test_names_that_no_module_can_hold_are_made_ones_that_it_can(tmp_path):
    names = ['a"]; import os; x = ["', "training", "layer", "layer.weight", "é/:0", "..", "x" * 1000]
    nodes, last = [], "x"
    for number, _ in enumerate(names):
        nodes.append(helper.make_node("Conv", [last, names[number]], [f"c{number}"]))
        last = f"c{number}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    weights = [initializer(name, random(3, 3, 1, 1, seed=seed)) for seed, name in enumerate(names)]
    path = save(graph(nodes, weights, shape=("n", 3, 8, 8)), tmp_path / "m.onnx")
    found = checkpoint.read(path)
    assert len(found.tensors) == len(names)
    assert all(part.replace("_", "").isalnum() for name in found.tensors for part in name.replace("_", "a").split("."))
    assert {origin.name for origin in found.source.origins.values()} == set(names)
    assert "import" not in found.program.graph.code.replace("import_os", "")


def test_a_batch_norm_that_was_not_folded_is_a_norm_of_its_convolution(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mu", "sigma"], ["b"], name="bn1"),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Conv", ["r", "k"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    weights = [initializer("w", random(6, 3, 3, 3)), initializer("k", random(4, 6, 1, 1))]
    weights += [initializer(name, np.abs(random(6, seed=7)) + 0.5) for name in ("gamma", "beta", "mu", "sigma")]
    _, network = load_network(
        save(graph(nodes, weights, shape=("n", 3, 8, 8)), tmp_path / "m.onnx"), FROM_FILE, plain(8), CPU
    )
    site = network.site("w")
    assert site.norm == "bn1"
    assert {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"} <= network.tensors.keys()
    assert "bn1.running_var" not in network.parameters()


def test_a_job_on_an_onnx_file_gives_an_onnx_file(modules, planted, tmp_path):
    path = export(modules[True], tmp_path / "suspect.onnx", shape=(1, 12, 12))
    clean = planted.images(320, seed=11)
    np.savez(tmp_path / "clean.npz", images=clean.pixels_NCHW.numpy(), labels=clean.labels.numpy())
    report = sanitize(
        checkpoint_path=path,
        clean_path=tmp_path / "clean.npz",
        output_path=tmp_path / "out.onnx",
        architecture=ArchitectureSpec(source="file", num_classes=4, in_channels=1),
        input_spec=planted.input_spec,
        spec=SanitizeSpec(recipe="prune", repair=False, inputs="clean", selection=FixedFraction(fraction=0.2)),
    )
    assert {file.format for file in report.files if "checkpoint" in file.role} == {"onnx"}
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    silent = 0
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        old_values, new_values = onnx.numpy_helper.to_array(old), onnx.numpy_helper.to_array(new)
        touched = (old_values != new_values).reshape(len(old_values), -1).any(axis=1)
        assert not new_values[touched].any()
        silent += int(touched.sum())
        new.CopyFrom(old)
    assert silent > 0
    assert before == after
    # The runtime agrees with the report about what the written file does.
    runtime = session((tmp_path / "out.onnx").read_bytes())
    pixels = (clean.pixels_NCHW - 0.5) / 0.25
    answers = runtime.run(None, {"images": pixels.numpy()})[0].argmax(1)
    accuracy = float((answers == clean.labels.numpy()).mean())
    assert abs(accuracy - report.accuracy.after.value) < 0.1
