"""From a checked `.pt2` document to an fx graph of our own making: allow-listed operators, arguments by their schema.

What a file says of a value's shape or symbol is not believed and not read: shapes come out of running the graph. Its
dtypes decide nothing but where a bound may be written into the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload

from worker.sanitizer.capping import VALUE_NAME
from worker.sanitizer.programs import canonical, operators
from worker.sanitizer.programs import pt2_arguments as arguments
from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.programs.ancestry import Ancestry
from worker.sanitizer.programs.pt2_document import Document
from worker.sanitizer.programs.pt2_tensors import FLOAT32
from worker.sanitizer.refusals import (
    CorruptProgramError,
    CustomObjectError,
    InPlaceOnWeightError,
    ProgramOperatorError,
    ProgramSignatureError,
    ProgramTooLargeError,
    SubgraphError,
    TrainingModeError,
)

MAX_NODES = 50_000
# Where an argument says that the operator behaves as in training.
_TRAINING_FLAGS = {"batch_norm": "training", "instance_norm": "use_input_stats", "dropout": "train",
                   "feature_dropout": "train", "alpha_dropout": "train", "dropout_": "train",
                   "native_dropout": "train"}  # fmt: skip


@dataclass(slots=True)
class _Builder:
    """The graph so far. `values` maps the file's names to our nodes; a name that is None may not be read."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, fx.Node | None] = field(default_factory=dict)
    # The names of values that the file says are in float32; a bound that is added to the file must be of their kind.
    float32: frozenset[str] = frozenset()
    images: fx.Node = field(init=False)
    of_images: Ancestry = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.graph.placeholder("images")
        self.of_images = Ancestry(self.images)

    def define(self, name: object, node: fx.Node | None) -> None:
        known = documents.text(name, "a value's name")
        if known in self.values:
            raise CorruptProgramError(f"the program defines {known[:80]!r} twice; export it again")
        self.values[known] = node
        if known in self.float32 and node is not None and node.op == "call_function":
            node.meta[VALUE_NAME] = known

    def value(self, name: object) -> fx.Node:
        known = documents.text(name, "a value's name")
        node = self.values.get(known)
        if node is None:
            raise CorruptProgramError(f"the program uses {known[:80]!r} before it is computed; export it again")
        return node


def build(program: Document, root: nn.Module, tensors: Collection[str]) -> tuple[fx.GraphModule, str]:
    """The graph, and the name that the file gives to the images.

    Args:
        program: A document that `pt2_document.check` accepted.
        root: Holds the tensors.
        tensors: Their names.

    Raises:
        CheckpointRefusedError: the codes of this module's and of pt2_arguments' imports.
    """
    module = program["graph_module"]
    graph, signature = module["graph"], documents.fields(module.get("signature"), "signature")
    builder = _Builder(float32=_float32(graph))
    images = _define_inputs(builder, graph, signature, tensors)
    nodes = documents.items(graph.get("nodes"), "nodes")
    if len(nodes) > MAX_NODES:
        raise ProgramTooLargeError(f"the program has {len(nodes)} operations; at most {MAX_NODES} are read")
    for node in nodes:
        _add(builder, node)
    builder.graph.output(_logits(builder, graph, signature))
    _erase_unused(builder.graph)
    canonical.rewrite(builder.graph)
    _erase_unused(builder.graph)
    return fx.GraphModule(root, builder.graph), images


def _float32(graph: Document) -> frozenset[str]:
    described = documents.fields(graph.get("tensor_values"), "tensor_values")
    return frozenset(
        name for name, meta in described.items() if documents.fields(meta, "tensor_values").get("dtype") == FLOAT32
    )


def _erase_unused(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr") and node.target not in operators.IN_PLACE:
            graph.erase_node(node)


def _define_inputs(builder: _Builder, graph: Document, signature: Document, tensors: Collection[str]) -> str:
    """One placeholder for the images; every other input is a tensor of the archive, or a constant that nobody reads."""
    names = [documents.variant(value, "inputs") for value in documents.items(graph.get("inputs"), "inputs")]
    specs = documents.items(signature.get("input_specs"), "input_specs")
    if len(names) != len(specs):
        raise CorruptProgramError("inputs and signature of the program differ; export it again")
    images: list[str] = []
    for spec in specs:
        kind, content = documents.variant(spec, "input_specs")
        content = documents.fields(content, "input_specs")
        if kind == "user_input":
            how, argument = documents.variant(content.get("arg"), "input_specs")
            if how != "as_tensor":
                raise _interface("it takes other inputs than tensors")
            images.append(_name(argument))
            builder.define(images[-1], builder.images)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            target = documents.text(content.get(f"{kind}_name"), "input_specs")
            if target not in tensors:
                raise CorruptProgramError(f"the archive lacks the tensor {target[:80]!r}; export the program again")
            builder.define(_name(content.get("arg")), builder.graph.create_node("get_attr", target))
        elif kind == "constant_input":
            builder.define(content.get("name"), None)
        else:
            raise CustomObjectError("the program takes custom objects or tokens; export a model of tensors alone")
    if len(images) != 1:
        raise _interface(f"it takes {len(images)} tensors")
    if [_name(value) for kind, value in names if kind == "as_tensor"] != [
        name for name, node in builder.values.items() if node is not None
    ]:
        raise CorruptProgramError("inputs and signature of the program differ; export it again")
    return images[0]


def _logits(builder: _Builder, graph: Document, signature: Document) -> fx.Node:
    """The first tensor that the program returns."""
    specs = documents.items(signature.get("output_specs"), "output_specs")
    kinds = {documents.variant(spec, "output_specs")[0] for spec in specs}
    if kinds - {"user_output"}:
        raise TrainingModeError(
            "the program changes its own weights or statistics, or computes a loss; call model.eval() and export again"
        )
    for value in documents.items(graph.get("outputs"), "outputs"):
        kind, content = documents.variant(value, "outputs")
        if kind == "as_tensor":
            return builder.value(_name(content))
    raise _interface("it returns no tensor")


def _add(builder: _Builder, node: Document) -> None:
    target = documents.text(node.get("target"), "an operator")
    name = target.removeprefix("torch.ops.aten.")
    if target.startswith("torch.ops.aten.") and name in operators.ASSERTIONS:
        return
    inputs = documents.items(node.get("inputs"), "inputs")
    if target.startswith("torch.ops.higher_order.") or any(_is_graph(value) for value in inputs):
        raise SubgraphError(
            f"the program holds a graph within the graph ({target[:80]}), as control flow, autocast and no_grad blocks "
            "make; export the model without them"
        )
    if target in operators.SIZES:
        made = builder.graph.call_function(
            operators.SIZES[target], tuple(arguments.read(_arg(value), builder.value) for value in inputs)
        )
    elif target.startswith("torch.ops.aten.") and name in operators.ATEN:
        overload = operators.ATEN[name]
        args, kwargs = arguments.by_schema(overload, inputs, builder.value)
        if not _is_standardisation(overload, args, builder.of_images):
            _refuse_training(overload, args)
        if overload in operators.IN_PLACE:
            _refuse_write(args[0], target)
        made = builder.graph.call_function(overload, args, kwargs)
    else:
        raise ProgramOperatorError(
            f"the program calls {target[:120]}, which is not among the operators of image classifiers that are read; "
            "export the model in evaluation mode, without custom operators, or upload its state dict",
            operator=target[:120],
        )
    _define_outputs(builder, made, documents.items(node.get("outputs"), "outputs"))


def _define_outputs(builder: _Builder, node: fx.Node, outputs: list[Any]) -> None:
    """Names for what the operator returns; each part of a tuple or list gets a getitem of its own."""
    if len(outputs) == 1:
        kind, content = documents.variant(outputs[0], "outputs")
        if kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            builder.define(_name(content), node)
        elif kind == "as_tensors":
            _define_items(builder, node, documents.items(content, "outputs"))
        elif kind != "as_none":
            raise CorruptProgramError("an operator returns no tensor; export the program again")
        return
    parts = [documents.variant(output, "outputs") for output in outputs]
    if any(kind not in ("as_tensor", "as_none") for kind, _ in parts):
        raise CorruptProgramError("an operator returns no tensors; export the program again")
    _define_items(builder, node, [content if kind == "as_tensor" else None for kind, content in parts])


def _define_items(builder: _Builder, node: fx.Node, names: list[Any]) -> None:
    for index, content in enumerate(names):
        if content is not None:
            builder.define(_name(content), builder.graph.call_function(operators.get_item, (node, index)))


def _is_standardisation(overload: OpOverload, args: tuple[Any, ...], of_images: Ancestry) -> bool:
    """Whether a batch norm goes by the statistics of weights, and no image has a part in what it computes."""
    if overload is not operators.ATEN["batch_norm.default"] or any(arg is not None for arg in args[3:5]):
        return False
    return not any(isinstance(arg, fx.Node) and arg in of_images for arg in args)


def _refuse_training(overload: OpOverload, args: tuple[Any, ...]) -> None:
    schema = operators.schema_of(overload)
    flag = _TRAINING_FLAGS.get(schema.name.rpartition(":")[2])
    for argument, value in zip(schema.arguments, args, strict=False):
        if argument.name == flag and value is not False:
            raise TrainingModeError(
                f"the program was exported in training mode ({argument.name} of {schema.name}); call model.eval() "
                "and export again"
            )


def _refuse_write(written: object, target: str) -> None:
    """Refuse an operator that writes into what the graph was given, also through views of it."""
    while isinstance(written, fx.Node):
        is_view = written.target is operators.get_item or (
            isinstance(written.target, OpOverload) and operators.shares_memory(written.target)
        )
        if written.op != "call_function" or not is_view:
            break
        written = written.args[0]
    if not isinstance(written, fx.Node) or written.op != "call_function":
        raise InPlaceOnWeightError(
            f"{target[:80]} writes into a weight or into the input; export a model that does not change them"
        )


def _is_graph(value: object) -> bool:
    return documents.variant(_arg(value), "an argument")[0] in ("as_graph", "as_operator")


def _arg(value: object) -> object:
    return documents.fields(value, "an argument").get("arg")


def _name(argument: object) -> str:
    fields = documents.fields(argument, "a value's name")
    return documents.text(fields.get("name", fields.get("as_name")), "a value's name")


def _interface(what: str) -> ProgramSignatureError:
    return ProgramSignatureError(
        f"the program is not a classifier of images: {what}; export a model that takes one batch of images "
        "(N, C, H, W) and returns logits (N, classes)"
    )


def input_sizes(program: Document, images: str) -> tuple[int | None, ...]:
    """The images' sizes as exported, None where a symbol stands; only the first decides anything."""
    graph = program["graph_module"]["graph"]
    meta = documents.fields(documents.fields(graph.get("tensor_values"), "tensor_values").get(images), "tensor_values")
    sizes: list[int | None] = []
    for value in documents.items(meta.get("sizes"), "the input's shape"):
        kind, _ = documents.variant(value, "the input's shape")
        sizes.append(None if kind == "as_expr" else documents.whole(value, "the input's shape"))
    if len(sizes) != 4:
        raise _interface(f"its input has {len(sizes)} dimensions")
    if any(size is not None and not 0 < size <= 2**20 for size in sizes):
        raise _interface("its input has an absurd shape")
    return tuple(sizes)
