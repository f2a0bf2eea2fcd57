"""The graph: allow-listed operators with arguments by schema; what runs, writes or hides code is refused by name."""

import copy
import io
import json
import zipfile

import pytest
import torch
from torch import nn

from worker.sanitizer import checkpoint
from worker.sanitizer.refusals import ProgramOperatorError, TrainingModeError


def export(module, path, **options):
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), **options)
    torch.export.save(program, path)
    return path


def node(document, target):
    return next(n for n in document["graph_module"]["graph"]["nodes"] if n["target"] == f"torch.ops.aten.{target}")


def retarget(target):
    return lambda document: node(document, "relu.default").update(target=target)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("os.system", "program_operator"),
        ("torch.load", "program_operator"),
        ("torch.hub.load", "program_operator"),
        ("torch.ops.aten.from_file.default", "program_operator"),
        ("torch.ops.aten.empty.memory_format", "program_operator"),
        ("torch.ops.aten.as_strided.default", "program_operator"),
        ("torch.ops.aten.item.default", "program_operator"),
        ("torch.ops.aten.resize_.default", "program_operator"),
        ("torch.ops.aten.set_.source_Storage", "program_operator"),
        ("torch.ops.prim.device.default", "program_operator"),
        ("torch.ops.aten.relu", "program_operator"),
        ("torch.ops.aten.__class__", "program_operator"),
        ("_operator.attrgetter", "program_operator"),
        ("_operator.pow", "program_operator"),
        ("_operator.getitem", "program_operator"),
        ("math.factorial", "program_operator"),
        ("#namespace:operator", "program_operator"),
        ("torch.ops.higher_order.cond", "program_subgraph"),
        ("", "program_operator"),
        (None, "corrupt_program"),
    ],
)
def test_a_stranger_among_the_operators_is_refused(target, code, code_of):
    assert code_of(model=retarget(target)) == code


def test_the_refusal_names_the_operator(tmp_path, code_of):
    assert code_of(model=retarget("torch.ops.aten.from_file.default")) == "program_operator"
    with pytest.raises(ProgramOperatorError, match="from_file") as caught:
        checkpoint.read(tmp_path / "spoilt.pt2")
    assert caught.value.operator == "torch.ops.aten.from_file.default"


def argument(value, name="self"):
    return lambda document: node(document, "relu.default").update(inputs=[{"name": name, "arg": value, "kind": 1}])


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (argument({"as_graph": {"name": "g", "graph": {}}}), "program_subgraph"),
        (argument({"as_operator": "os.system"}), "program_subgraph"),
        (argument({"as_custom_obj": {"name": "x", "class_fqn": "y"}}), "program_custom_object"),
        (argument({"as_string_to_argument": {}}), "program_custom_object"),
        (argument({"as_complex": {"real": 1, "imag": 1}}), "program_custom_object"),
        (argument({"as_tensor": {"name": "nobody"}}), "corrupt_program"),
        (argument({"as_tensor": {"name": "relu"}}), "corrupt_program"),
        (argument({"as_tensor": "relu"}), "corrupt_program"),
        (argument({"as_none": True, "as_int": 1}), "corrupt_program"),
        (argument({}), "corrupt_program"),
        (argument(None), "corrupt_program"),
        (argument({"as_int": 2**70}), "corrupt_program"),
        (argument({"as_float": "1"}), "program_argument"),
        (argument({"as_bool": 1}), "program_argument"),
        (argument({"as_string": "x" * 300}), "program_argument"),
        (argument({"as_ints": [1] * 20_000}), "program_argument"),
        (argument({"as_scalar_type": 9}), "program_argument"),
        (argument({"as_layout": 1}), "program_argument"),
        (argument({"as_memory_format": 9}), "program_argument"),
        (argument({"as_int": 1}, name="other"), "program_argument"),
        (lambda d: node(d, "relu.default").update(inputs=[]), "program_argument"),
        (lambda d: node(d, "relu.default").update(inputs=node(d, "relu.default")["inputs"] * 2), "program_argument"),
        (lambda d: node(d, "relu.default").update(outputs=[{"as_tensor": {"name": "x"}}]), "corrupt_program"),
        (lambda d: node(d, "relu.default").update(outputs=[{"as_int": 1}]), "corrupt_program"),
        (
            lambda d: d["graph_module"]["graph"].update(nodes=d["graph_module"]["graph"]["nodes"][::-1]),
            "corrupt_program",
        ),
    ],
)
def test_an_argument_that_is_no_tensor_and_no_number_is_refused(edit, code, code_of):
    assert code_of(model=edit) == code


def signature(document):
    return document["graph_module"]["signature"]


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda d: signature(d)["input_specs"][0].update(token=signature(d)["input_specs"][0].pop("parameter")),
         "program_custom_object"),
        (lambda d: signature(d)["input_specs"].pop(), "corrupt_program"),
        (lambda d: signature(d)["input_specs"].reverse(), "corrupt_program"),
        (lambda d: signature(d)["input_specs"][0]["parameter"].update(parameter_name="nobody"), "corrupt_program"),
        (lambda d: signature(d)["output_specs"].append({"buffer_mutation": {}}), "program_training_mode"),
        (lambda d: signature(d)["output_specs"].append({"loss_output": {}}), "program_training_mode"),
        (lambda d: d["graph_module"]["graph"].update(outputs=[{"as_none": True}]), "program_inputs_outputs"),
        (lambda d: d["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].pop(), "program_inputs_outputs"),
        (lambda d: d["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0].clear(), "corrupt_program"),
        (lambda d: d["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[{"as_int": 2**40}] * 4),
         "program_inputs_outputs"),
    ],
)  # fmt: skip
def test_other_than_images_in_and_logits_out_is_refused(edit, code, code_of):
    assert code_of(model=edit) == code


class Writes(nn.Module):
    """Writes into its own weight, through a view of a view."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(4))
        self.head = nn.Linear(192, 4)

    def forward(self, x):
        return self.head(x.flatten(1)) + self.kept


def write_into(name):
    def edit(document):
        nodes = document["graph_module"]["graph"]["nodes"]
        view = {"target": "torch.ops.aten.view.default", "metadata": {}, "outputs": [{"as_tensor": {"name": "v"}}],
                "inputs": [{"name": "self", "arg": {"as_tensor": {"name": name}}, "kind": 1},
                           {"name": "size", "arg": {"as_ints": [-1]}, "kind": 1}]}  # fmt: skip
        parts = {"target": "torch.ops.aten.unbind.int", "metadata": {}, "outputs": [
            {"as_tensors": [{"name": "p0"}, {"name": "p1"}]}],
            "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "v"}}, "kind": 1}]}  # fmt: skip
        write = {"target": "torch.ops.aten.zero_.default", "metadata": {}, "outputs": [{"as_tensor": {"name": "w"}}],
                 "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "p1"}}, "kind": 1}]}  # fmt: skip
        nodes[:0] = [view, parts, write]

    return edit


@pytest.mark.parametrize("name", ["p_conv_weight", "b_bn_running_mean", "x"])
def test_writing_into_a_weight_or_the_input_is_refused_through_views(name, code_of):
    assert code_of(model=write_into(name)) == "program_writes_weight"


def test_a_program_in_training_mode_is_refused(code_of):
    def train(document):
        for value in node(document, "batch_norm.default")["inputs"]:
            if value["name"] == "training":
                value["arg"] = {"as_bool": True}

    assert code_of(model=train) == "program_training_mode"


class Standardised(nn.Module):
    """A convolution whose weight is standardised, with a gain that may depend on the images."""

    def __init__(self, *, looks=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.gain = nn.Parameter(torch.rand(4))
        self.looks = looks

    def forward(self, x):
        gain = self.gain * x.mean() if self.looks else self.gain
        flat = self.weight.reshape(1, 4, -1)
        weight = nn.functional.batch_norm(flat, None, None, gain, training=True, momentum=0.0)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight)).mean((2, 3))


def test_a_weight_that_is_standardised_is_no_training(tmp_path):
    module = Standardised()
    program = checkpoint.read(export(module, tmp_path / "a.pt2")).program
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(program.graph(images), module(images))


def test_a_norm_by_its_own_statistics_in_which_images_have_a_part_is_training(tmp_path):
    with pytest.raises(TrainingModeError):
        checkpoint.read(export(Standardised(looks=True), tmp_path / "a.pt2"))


def test_assertions_are_dropped_unread(exported, tmp_path):
    document = json.loads(exported["models/model.json"])
    nodes = document["graph_module"]["graph"]["nodes"]
    nodes.insert(0, {"target": "torch.ops.aten._assert_scalar.default", "metadata": {}, "outputs": [{"as_none": True}],
                     "inputs": "nobody reads this"})  # fmt: skip
    from_file = program_of(exported, document, tmp_path)
    assert not any("assert" in str(n.target) for n in from_file.graph.graph.nodes)


def test_symbolic_sizes_are_computed_within_bounds(tmp_path):
    class Sized(nn.Module):
        def forward(self, x):
            rows = x.reshape(x.shape[0] * 3, -1)
            return rows.reshape(x.shape[0], -1)[:, : 3 + x.shape[2] // 2 - 1]

    path = export(Sized(), tmp_path / "m.pt2", dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    program = checkpoint.read(path).program
    assert program.batch_size is None
    images = torch.rand(5, 3, 8, 8)
    assert torch.equal(program.graph(images), Sized()(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_program_of_another_precision_computes_in_float32(dtype, tmp_path):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 4)

        def forward(self, x):
            scores = self.head(x.to(dtype).flatten(1)).softmax(1, dtype=torch.float32).to(dtype)
            return scores + torch.arange(4, dtype=dtype) + torch.full((4,), 0.5, dtype=dtype)

    module = Cast().to(dtype).eval()
    found = checkpoint.read(export(module, tmp_path / "m.pt2"))
    assert found.tensors["head.weight"].dtype is dtype
    assert torch.equal(found.tensors["head.weight"], module.head.weight)
    images = torch.rand(2, 3, 8, 8)
    wide = copy.deepcopy(module).float().head(images.flatten(1)).softmax(1) + torch.arange(4) + 0.5
    logits = found.program.graph(images)
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits, wide, rtol=1e-5, atol=1e-5)


def program_of(members, document, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {**members, "models/model.json": json.dumps(document).encode()}.items():
            archive.writestr("small/" + name, data)
    path = tmp_path / "edited.pt2"
    path.write_bytes(buffer.getvalue())
    return checkpoint.read(path).program
