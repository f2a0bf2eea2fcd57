"""The allow-list: what is on it computes, what writes is known, and sizes cannot grow without bound."""

import operator

import pytest
import torch

from worker.sanitizer.programs import operators


def test_every_listed_operator_exists_and_none_reads_or_returns_foreign_memory():
    assert len(operators.ATEN) > 300
    for name, overload in operators.ATEN.items():
        assert overload._schema.is_mutable == (overload in operators.IN_PLACE), name
        assert not {"file", "item", "empty", "as_strided", "set_", "resize_"} & set(name.replace(".", "_").split("_"))


def test_what_writes_writes_into_its_first_argument_alone():
    for overload in operators.IN_PLACE:
        written = [a.name for a in overload._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        assert written == [overload._schema.arguments[0].name], overload


def test_views_are_known_as_such():
    image = torch.rand(2, 4, 4, 4)
    calls = {
        "view.default": ([-1],),
        "transpose.int": (0, 1),
        "chunk.default": (2,),
        "unbind.int": (0,),
        "reshape.default": ([-1],),
        "contiguous.default": (),
        "to.dtype": (torch.float32,),
        "type_as.default": (image,),
        "dropout.default": (0.5, False),
        "relu.default": (),
        "clone.default": (),
        "add.Tensor": (1,),
    }
    for name, arguments in calls.items():
        result = operators.ATEN[name](image, *arguments)
        first = result[0] if isinstance(result, (list, tuple)) else result
        shares = first.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
        assert operators.shares_memory(operators.ATEN[name]) >= shares, name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add", (3, 2)),
        ("sub", (3, 2)),
        ("mul", (3, 2)),
        ("floordiv", (7, 2)),
        ("truediv", (7, 2)),
        ("mod", (7, 2)),
        ("neg", (7,)),
    ],
)
def test_sizes_are_computed_as_python_does(name, arguments):
    assert operators.SIZES[f"_operator.{name}"](*arguments) == getattr(operator, name)(*arguments)


@pytest.mark.parametrize("name", [name for name in operators.SIZES if name.split(".")[1] not in
                                  {"eq", "ne", "lt", "le", "gt", "ge"}])  # fmt: skip
def test_no_size_grows_beyond_what_a_shape_can_have(name):
    function = operators.SIZES[name]
    for value in (2**70, torch.ones(1), "9" * 99, [1] * 9, float("inf"), None):
        with pytest.raises((ValueError, TypeError)):
            function(value, value) if name.split(".")[1] in _TWO else function(value)


_TWO = {"add", "sub", "mul", "floordiv", "truediv", "mod", "sym_max", "sym_min"}


def test_squaring_over_and_over_stops():
    def power(size):
        for _ in range(100):
            size = operators.SIZES["_operator.mul"](size, size)
        return size

    assert power(1) == 1
    with pytest.raises(ValueError, match="a shape can have"):
        power(3)
