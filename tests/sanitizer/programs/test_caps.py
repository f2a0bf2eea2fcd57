"""Bounds of activations in files: other runtimes compute what the capped network computes, and nothing else changed."""

import json
import re
import zipfile

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.sanitizer.programs.onnx_files import export as export_onnx
from tests.sanitizer.programs.onnx_files import session, shake
from worker.sanitizer import checkpoint
from worker.sanitizer.architectures import build
from worker.sanitizer.case import load_network
from worker.sanitizer.programs import onnx_wire
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

# Torch's own, at its own decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

SIDE = 16
INPUT = InputSpec(height=SIDE, width=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
FROM_FILE = ArchitectureSpec(source="file", num_classes=4)
CPU = torch.device("cpu")


def export_pt2(module, path, *, decomposed=False, dynamic=True):
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


MAKERS = {
    "pt2": lambda module, folder: export_pt2(module, folder / "m.pt2"),
    "pt2_decomposed": lambda module, folder: export_pt2(module, folder / "m.pt2", decomposed=True),
    "pt2_of_one_batch": lambda module, folder: export_pt2(module, folder / "m.pt2", dynamic=False),
    "onnx": lambda module, folder: export_onnx(module, folder / "m.onnx", shape=(3, SIDE, SIDE)),
    "onnx_new": lambda module, folder: export_onnx(module, folder / "m.onnx", shape=(3, SIDE, SIDE), dynamo=True),
}


@pytest.fixture(params=["small_resnet", "small_vgg"])
def module(request):
    torch.manual_seed(0)
    return shake(build(ArchitectureSpec(name=request.param, num_classes=4, options={"width": 4})))


@pytest.fixture
def pixels():
    return torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def halved(network, pixels):
    """Half of the largest activation of every channel that a bound can be written for."""
    largest = {}
    named = network.value_names()
    sites = [site for site in network.sites if site.name in named]

    def watch(site):
        return lambda value: largest.update(
            {site.name: site.maps(value.detach()).transpose(0, 1).flatten(1).amax(dim=1) / 2}
        )

    with torch.no_grad():
        network.observe(pixels, {site.tap: watch(site) for site in sites})
    return largest


def capped_file(path, pixels):
    """Cap the network of a file and write it; returns the file, the old logits, the new ones, and the bounds."""
    found, network = load_network(path, FROM_FILE, INPUT, CPU)
    with torch.no_grad():
        before = network(pixels)
        caps = halved(network, pixels)
        network.cap(caps)
        after = network(pixels)
    assert len(caps) == len(network.sites), "every layer has a place for bounds"
    assert (after - before).abs().max() > 1e-3
    written = path.with_stem("capped")
    found.write(written, {}, network.bounds.by_value())
    return written, before, after, caps


def answers(path, pixels):
    """What torch or ONNX Runtime makes of a file."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        with torch.no_grad():
            return torch.cat([module(pixels[:2]), module(pixels[2:4])])
    images = onnx.load(path).graph.input[0].name
    runtime = session(path.read_bytes())
    return torch.cat([torch.from_numpy(runtime.run(None, {images: p.numpy()})[0]) for p in (pixels[:2], pixels[2:4])])


@pytest.mark.parametrize("kind", MAKERS)
def test_other_runtimes_answer_as_the_capped_network_does_and_so_does_the_file_read_again(
    kind, module, pixels, tmp_path
):
    written, _, after, caps = capped_file(MAKERS[kind](module, tmp_path), pixels)
    torch.testing.assert_close(answers(written, pixels), after[:4], rtol=1e-4, atol=1e-5)
    _, again = load_network(written, FROM_FILE, INPUT, CPU)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), after, rtol=1e-4, atol=1e-5)
    # What was capped is a suspect like any other: its layers are found, and can be capped again.
    assert list(again.value_names()) == list(caps)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_bounds_can_be_added_to_a_file_that_has_some(kind, module, pixels, tmp_path):
    once, _, _, _ = capped_file(MAKERS[kind](module, tmp_path), pixels)
    twice, before, after, _ = capped_file(once, pixels)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(answers(twice, pixels), after[:4], rtol=1e-4, atol=1e-5)


def test_a_program_keeps_its_weights_and_every_member_that_does_not_describe_the_graph(module, pixels, tmp_path):
    path = MAKERS["pt2"](module, tmp_path)
    written, _, _, caps = capped_file(path, pixels)
    assert torch.export.load(written).state_dict.keys() == torch.export.load(path).state_dict.keys()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written) as new:
        names = {name.partition("/")[2]: name for name in old.namelist()}
        kept = {name.partition("/")[2]: name for name in new.namelist()}
        added = kept.keys() - names.keys()
        assert added == {f"data/constants/tensor_{index}" for index in range(len(caps))}
        changed = {name for name, full in names.items() if old.read(full) != new.read(kept[name])}
    describes = r"models/\w+\.json|data/constants/\w+_constants_config\.json|data/sample_inputs/\w+\.pt"
    assert all(re.fullmatch(describes, name) for name in changed)


def test_an_onnx_file_keeps_its_tensors_and_its_nodes_but_for_the_names_of_what_is_bounded(module, pixels, tmp_path):
    path = MAKERS["onnx"](module, tmp_path)
    written, _, _, caps = capped_file(path, pixels)
    old, new = onnx.load(path), onnx.load(written)
    onnx.checker.check_model(new, full_check=True)
    bounds = [node for node in new.graph.node if node.op_type == "Min"]
    assert len(bounds) == len(caps)
    stored = {one.name: one.SerializeToString() for one in new.graph.initializer}
    assert all(stored.pop(one.name) == one.SerializeToString() for one in old.graph.initializer)
    assert sorted(stored) == sorted(node.input[1] for node in bounds)
    # Take the bounds off by hand, and the nodes are the old ones.
    renamed = {node.input[0]: node.output[0] for node in bounds}
    nodes = [node for node in new.graph.node if node.op_type != "Min"]
    for node in nodes:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    assert [node.SerializeToString() for node in nodes] == [node.SerializeToString() for node in old.graph.node]


def test_weights_that_changed_are_written_beside_the_bounds(module, pixels, tmp_path):
    for kind in ("pt2", "onnx"):
        found, network = load_network(MAKERS[kind](module, tmp_path), FROM_FILE, INPUT, CPU)
        name = next(name for name, tensor in found.tensors.items() if tensor.dim() == 4)
        network.cap(halved(network, pixels))
        with torch.no_grad():
            network.tensors[name].mul_(0.5)
            after = network(pixels)
        written = tmp_path / f"both.{kind}"
        found.write(written, {name: network.tensors[name].detach()}, network.bounds.by_value())
        torch.testing.assert_close(answers(written, pixels), after[:4], rtol=1e-4, atol=1e-5)


def test_a_network_in_half_precision_has_no_place_for_bounds_in_single(module, tmp_path):
    found, network = load_network(export_half_pt2(module, tmp_path / "h.pt2"), FROM_FILE, INPUT, CPU)
    assert {tensor.dtype for tensor in found.tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert network.value_names() == {}
    model = onnx.load(MAKERS["onnx"](module, tmp_path))
    for one in model.graph.initializer:
        values = onnx.numpy_helper.to_array(one)
        if values.dtype == np.float32:
            one.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), one.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    path = tmp_path / "h.onnx"
    onnx.save(model, path)
    _, network = load_network(path, FROM_FILE, INPUT, CPU)
    assert network.value_names() == {}


def export_half_pt2(module, path):
    torch.export.save(torch.export.export(module.half(), (torch.zeros(2, 3, SIDE, SIDE).half(),)), path)
    module.float()
    return path


def spoilt_onnx(path, edit):
    """The file with its model changed, or its graph's bytes lengthened."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def called_uncapped(model):
    """What the activation reads is called as the activation would be."""
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    old, new = relu.input[0], f"{relu.output[0]}_uncapped"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def stale_description(model):
    """A description of a value that there is not."""
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info(f"{relu.output[0]}_uncapped", onnx.TensorProto.INT64, [7])
    )


def called_cap(model):
    """A weight is called as a bound would be."""
    old = model.graph.initializer[0].name
    model.graph.initializer[0].name = "lustrate_cap_0"
    for node in model.graph.node:
        node.input[:] = ["lustrate_cap_0" if name == old else name for name in node.input]


@pytest.mark.parametrize("edit", [called_uncapped, stale_description, called_cap])
def test_names_that_an_onnx_file_has_are_left_to_their_owners(edit, module, pixels, tmp_path):
    path = spoilt_onnx(MAKERS["onnx"](module, tmp_path), edit)
    written, _, after, _ = capped_file(path, pixels)
    torch.testing.assert_close(answers(written, pixels), after[:4], rtol=1e-4, atol=1e-5)


def test_a_field_that_no_reader_knows_is_neither_taken_for_a_node_nor_lost(module, pixels, tmp_path):
    path = MAKERS["onnx"](module, tmp_path)
    data = memoryview(path.read_bytes())
    graph = next(field for field in onnx_wire.fields(data, 0, len(data)) if field.number == 7)
    stray = b"\x08\xff\x01"  # a number where a node would be
    size = onnx_wire.varint_bytes(graph.stop - graph.payload + len(stray))
    head, content = bytes(data[: graph.begin]) + b"\x3a" + size, bytes(data[graph.payload : graph.stop])
    path.write_bytes(head + content + stray + bytes(data[graph.stop :]))
    written, _, after, _ = capped_file(path, pixels)
    assert stray in written.read_bytes()
    torch.testing.assert_close(answers(written, pixels), after[:4], rtol=1e-4, atol=1e-5)


def edited_pt2(path, edit):
    """The archive with its document, and the names of its members, changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (model,) = [name for name in members if "/models/" in name]
    (config,) = [name for name in members if name.endswith("constants_config.json")]
    document, constants = json.loads(members[model]), json.loads(members[config])
    edit(document["graph_module"], constants["config"], members)
    members |= {model: json.dumps(document).encode(), config: json.dumps(constants).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def bare_assertion(module, _constants, _members):
    """A node that is not read has no outputs."""
    node = {"target": "torch.ops.aten._assert_scalar.default", "inputs": [], "metadata": {}}
    module["graph"]["nodes"].insert(0, node)


def undescribed_value(module, _constants, _members):
    """A value that is called as the old value would be, and that nothing describes."""
    nodes = module["graph"]["nodes"]
    relu = next(node for node in nodes if node["target"] == "torch.ops.aten.relu.default")
    old, new = relu["inputs"][0]["arg"]["as_tensor"]["name"], relu["outputs"][0]["as_tensor"]["name"] + "_uncapped"
    relu["inputs"][0]["arg"]["as_tensor"]["name"] = new
    maker = next(node for node in nodes if node["outputs"] == [{"as_tensor": {"name": old}}])
    maker["outputs"] = [{"as_tensor": {"name": new}}]
    del module["graph"]["tensor_values"][old]


def one_constant_elsewhere(_module, constants, members):
    """The only constant lies in a member of another number."""
    meta = {"dtype": 7, "sizes": [], "strides": [], "storage_offset": {"as_int": 0}, "layout": 7,
            "requires_grad": False, "device": {"type": "cpu", "index": None}}  # fmt: skip
    constants["lustrate_cap_0"] = {"path_name": "tensor_1", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    root = next(iter(members)).partition("/")[0]
    members[f"{root}/data/constants/tensor_1"] = b"\0" * 4


@pytest.mark.parametrize("edit", [bare_assertion, undescribed_value, one_constant_elsewhere])
def test_programs_that_no_exporter_wrote_are_bounded_as_well(edit, module, pixels, tmp_path):
    path = edited_pt2(MAKERS["pt2"](module, tmp_path), edit)
    written, _, after, caps = capped_file(path, pixels)
    _, again = load_network(written, FROM_FILE, INPUT, CPU)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), after, rtol=1e-4, atol=1e-5)
    assert list(again.value_names()) == list(caps)


class Tokens(nn.Module):
    """Patches, attention, a gated multilayer perceptron: channels whose axis is not the second."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = torch.relu(self.patches(x)).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens).mean(dim=1))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_hidden_layers_and_heads_are_bounded_along_their_own_axis(kind, pixels, tmp_path):
    torch.manual_seed(0)
    path = MAKERS[kind](Tokens().eval(), tmp_path)
    written, _, after, caps = capped_file(path, pixels)
    assert len({len(cap) for cap in caps.values()}) == 3, "patches, heads and hidden channels"
    torch.testing.assert_close(answers(written, pixels), after[:4], rtol=1e-4, atol=1e-5)


def test_a_state_dict_takes_no_bounds(module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "m.pt")
    found = checkpoint.read(tmp_path / "m.pt")
    with pytest.raises(AssertionError):
        found.write(tmp_path / "out", {}, {"relu": torch.zeros(4, 1, 1)})
    assert not (tmp_path / "out").exists()


def test_the_bytes_depend_on_the_file_and_the_bounds_alone(module, pixels, tmp_path):
    for kind in ("pt2", "onnx"):
        found, network = load_network(MAKERS[kind](module, tmp_path), FROM_FILE, INPUT, CPU)
        network.cap(halved(network, pixels))
        made = []
        for attempt in range(2):
            path = tmp_path / f"{attempt}.{kind}"
            found.write(path, {}, network.bounds.by_value())
            made.append(path.read_bytes())
        assert made[0] == made[1]
