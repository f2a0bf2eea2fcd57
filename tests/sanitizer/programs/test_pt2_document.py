"""What torch's loader would evaluate, import or look up is held to a grammar, or refused."""

import json
import time

import pytest

from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.refusals import CheckpointRefusedError, SymbolicExpressionError, TreeSpecError


def symbol(expression):
    def edit(document):
        values = document["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = expression

    return edit


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', integer=True))",
        "FloorDiv(Add(Symbol('s0'), Integer(-1)), Integer(2))",
        "s0 + 1",
        "(s0 + 1)//2",
        "2*s0",
        "Max(1, s0)",
    ],
)
def test_sums_products_and_quotients_of_sizes_are_data(expression, exported):
    document = json.loads(exported["models/model.json"])
    symbol(expression)(document)
    documents.check(document)


@pytest.mark.parametrize(
    "expression",
    [
        "print(1)",
        "s0.real",
        "s0 ** 9",
        "9**9**9",
        "1 << 99",
        "Symbol('s0').name",
        "Symbol('print(1)')",
        "__name__",
        "lambda: 1",
        "[s0]",
        "'s0'",
        "s0; s0",
        "s0 = 1",
        "Integer(1)(2).x",
        "MaxLessThan(1)",
        "1e9",
        "0x10",
        "",
        "1" * 30,
        "s0 + " * 300 + "1",
    ],
)
def test_any_other_expression_is_refused_wherever_it_stands(expression, code_of):
    assert code_of(model=symbol(expression)) == "program_symbolic_expression"

    def deep(document):
        document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["extra"] = [{"as_expr": {"expr_str": expression}}]

    assert code_of(model=deep) == "program_symbolic_expression"


def test_an_expression_costs_one_pass_whatever_it_is():
    started = time.perf_counter()
    for expression in ("//" * 499 + "x", "1" * 999, "Le" * 499, "Symbol('s0'" * 90, "<" * 999):
        assert not documents._EXPRESSION.fullmatch(expression)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda d: d.update(guards_code=["print(1)"]), "program_guard_code"),
        (lambda d: d.update(guards_code="x"), "program_guard_code"),
        (
            lambda d: d.update(range_constraints={"print(1)": {"min_val": 1, "max_val": 2}}),
            "program_symbolic_expression",
        ),
        (lambda d: d["schema_version"].update(major=9), "unknown_program_schema"),
        (lambda d: d["schema_version"].update(minor=99), "unknown_program_schema"),
        (lambda d: d.update(schema_version=None), "corrupt_program"),
        (lambda d: d.update(new_field="x"), "unknown_program_schema"),
        (lambda d: d["graph_module"].update(new_field="x"), "unknown_program_schema"),
        (lambda d: d["graph_module"]["graph"].update(new_field="x"), "unknown_program_schema"),
        (lambda d: d["graph_module"]["graph"]["nodes"][0].update(new_field="x"), "unknown_program_schema"),
        (lambda d: d["graph_module"]["graph"]["nodes"][0]["metadata"].update(evil="x"), "unknown_program_schema"),
        (
            lambda d: d["graph_module"]["graph"].update(custom_obj_values={"x": {"name": "x", "class_fqn": "y"}}),
            "program_custom_object",
        ),
        (
            lambda d: d["graph_module"].update(treespec_namedtuple_fields={"x": {"field_names": ["y"]}}),
            "program_tree_specification",
        ),
        (lambda d: d.update(graph_module=None), "corrupt_program"),
        (lambda d: d["graph_module"].update(graph=[]), "corrupt_program"),
    ],
)
def test_what_is_more_than_data_is_refused(edit, code, code_of):
    assert code_of(model=edit) == code


def spec(**changes):
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [], **changes}])


@pytest.mark.parametrize(
    "specification",
    [
        spec(type="os.system"),
        spec(type="collections.namedtuple"),
        spec(type="builtins.slice"),
        spec(type="transformers.x.y()"),
        spec(context='{"__enum__": true, "fqn": "os:system"}'),
        spec(context='["a", {"__enum__": true}]'),
        spec(extra=1),
        spec(children_spec=[{"type": "x", "context": None, "children_spec": []}]),
        "[2, {}]",
        "x",
        "[" * 5000,
        None,
    ],
)
def test_a_tree_of_other_types_is_refused(specification, code_of):
    with pytest.raises(CheckpointRefusedError):
        documents.tree(specification)

    def edit(document):
        document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = specification

    assert code_of(model=edit) in {"program_tree_specification", "corrupt_program"}


def test_transformers_outputs_are_trees():
    kind = "transformers.modeling_outputs.ImageClassifierOutput"
    assert documents.tree(spec(type=kind, context='["logits"]'))["type"] == kind


@pytest.mark.parametrize("data", [b"", b"[1]", b"nan", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 10**6])
def test_what_is_not_one_json_object_is_refused(data, code_of):
    assert code_of({"models/model.json": data}) == "corrupt_program"


def test_json_that_would_fill_the_memory_is_refused(code_of):
    assert code_of({"models/model.json": b"[" + b"[]," * 4_000_000 + b"1]"}) == "program_too_large"


def test_the_refusals_name_what_to_do():
    with pytest.raises(TreeSpecError, match="return the logits"):
        documents.tree(spec(type="os.system"))
    assert issubclass(SymbolicExpressionError, CheckpointRefusedError)


@pytest.mark.parametrize(
    "text", ['{"x": 1e999}', '{"x": -1e999}', '{"x": NaN}', '{"x": ' + "[" * 60 + "]" * 60 + "}", "5"], ids=range(5)
)
def test_what_cannot_be_written_again_is_refused_when_it_is_read(text):
    with pytest.raises(CheckpointRefusedError) as caught:
        documents.parse(text.encode(), "the program")
    assert caught.value.code == "corrupt_program"


def test_documents_may_nest_as_deep_as_the_bound():
    assert documents.parse(('{"x": ' + "[" * 59 + "]" * 59 + "}").encode(), "the program")
