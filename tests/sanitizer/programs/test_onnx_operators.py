"""Each ONNX operator, in the opsets in which it changed, against ONNX Runtime."""

import itertools

import numpy as np
import pytest
import torch
from onnx import helper

from tests.sanitizer.programs.onnx_files import classifier, initializer, random, run, save
from worker.sanitizer.programs import onnx_file, onnx_import

TOLERANCE = 1e-4
NEWEST = onnx_file.MAX_OPSET
EVERY = (11, 13, 18, 22, 24, NEWEST)
CASES = []


def node(op, inputs="x", outputs="z", **attributes):
    """Inputs and outputs are words; `-` is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def case(nodes, *, opsets=(17,), shape=("n", 3, 6, 8), label="", **values):
    """Note a case; the values are initialisers, integers as int64 and floats as float32."""
    nodes = nodes if isinstance(nodes, list) else [nodes]
    initializers = []
    for name, value in values.items():
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" or not array.size else np.int64)
        initializers.append(initializer(name, array))
    for opset in opsets:
        used = "_".join(dict.fromkeys(one.op_type for one in nodes))
        CASES.append(pytest.param(nodes, initializers, opset, shape, id=f"{used}{label}-{opset}"))


# Element by element -----------------------------------------------------------------------------------------------

for name in (
    *("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "Identity", "LeakyRelu", "Neg", "Relu"),
    *("Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu"),
):
    case(node(name), opsets=(11, 22))
case(node("Celu", alpha=0.5), opsets=(13, 22))
case(node("HardSigmoid", alpha=1 / 6), label="_sixth")
case(node("HardSwish"), opsets=(14, 22))
case(node("Mish"), opsets=(18, 22))
case(node("Gelu"), opsets=(20,))
case(node("Gelu", approximate="tanh"), opsets=(20,), label="_tanh")
case(node("Swish", alpha=1.0), opsets=(24,))
case(node("Swish", alpha=1.5), opsets=(24,), label="_steep")
case(node("PRelu", "x s"), s=random(3, 1, 1), opsets=EVERY)
case(node("Clip", "x a b"), a=0.0, b=0.5, opsets=EVERY)
case(node("Clip", "x a"), a=-0.1, label="_low")
case(node("Clip", "x - a"), a=0.1, label="_high")
for name in ("Add", "Div", "Mul", "Sub"):
    case(node(name, "x w"), w=random(3, 1, 1) + 3, opsets=EVERY)
    case(node(name, "w x"), w=random(3, 1, 1) + 3, label="_left")
    case(node(name, "w x"), w=2.0, label="_number")
    case(node(name, "x x"), label="_self")
case(node("Pow", "x e"), e=2.0, opsets=EVERY)
case(
    [
        *(node("Abs", "x", "a"), node("Sqrt", "a", "b"), node("Add", "b o", "c"), node("Reciprocal", "c", "d")),
        *(node("Log", "c", "e"), node("Max", "d e x", "f"), node("Min", "f x", "g"), node("Mean", "g x", "m")),
        node("Sum", "m x"),
    ],
    o=1.0,
)
case([node("Greater", "x o", "c"), node("Where", "c x o")], o=0.1)
case(
    [
        *(node("Less", "x o", "a"), node("GreaterOrEqual", "x p", "b"), node("And", "a b", "c"), node("Not", "c", "d")),
        *(node("Or", "d c", "e"), node("Xor", "e a", "f"), node("Cast", "f", to=1)),
    ],
    o=0.1,
    p=-0.1,
)
case([node("Cast", "x", "i", to=6), node("CastLike", "i x")])
case(node("Mod", "x o", fmod=1), o=0.7)
case(node("Dropout"), opsets=(11, 13))
case([node("Sigmoid", "x", "s"), node("Mul", "x s")], label="_silu")
case([node("HardSigmoid", "x", "s", alpha=1 / 6), node("Mul", "s x")], label="_hardswish")
case(
    [node("Add", "x three", "a"), node("Clip", "a low six", "c"), node("Mul", "x c", "m"), node("Div", "m six")],
    three=3.0, low=0.0, six=6.0, label="_hardswish",
)  # fmt: skip
case(
    [
        *(node("Div", "x root", "d"), node("Erf", "d", "e"), node("Add", "e one", "a"), node("Mul", "x a", "m")),
        node("Mul", "m half"),
    ],
    root=2**0.5, one=1.0, half=0.5, label="_gelu",
)  # fmt: skip

# Windows --------------------------------------------------------------------------------------------------------------

WINDOWS = (([3, 3], [2, 2]), ([2, 3], [3, 2]))
PADS = ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1])
for (kernel, strides), pads, ceil in itertools.product(WINDOWS, PADS, (0, 1)):
    window = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": ceil}
    label = f"_{kernel[0]}{pads[0]}{pads[1]}{ceil}"
    case(node("MaxPool", **window), opsets=(12, 22), shape=("n", 3, 8, 9), label=label)
    for count in (0, 1):
        average = node("AveragePool", count_include_pad=count, **window)
        case(average, opsets=(11, 22), shape=("n", 3, 8, 9), label=f"{label}{count}")
case(node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), label="_dilated")
for automatic in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    options = {"auto_pad": automatic, "strides": [2, 2]}
    for name in ("MaxPool", "AveragePool"):
        case(node(name, kernel_shape=[2, 3], **options), shape=("n", 3, 7, 9), label=f"_{automatic}")
    case(node("Conv", "x w", **options), w=random(4, 3, 2, 3), shape=("n", 3, 7, 9), label=f"_{automatic}")
case(node("Conv", "x w b", pads=[1, 1, 1, 1]), w=random(4, 3, 3, 3), b=random(4), opsets=EVERY)
case(node("Conv", "x w", pads=[0, 1, 1, 2], dilations=[2, 1]), w=random(4, 3, 2, 3), label="_uneven")
case(node("Conv", "x w", group=3), w=random(6, 1, 3, 3), label="_grouped")
case([node("Conv", "x w", "c"), node("Add", "b c")], w=random(4, 3, 3, 3), b=random(1, 4, 1, 1), label="_bias")
case(
    node("ConvTranspose", "x w b", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    w=random(3, 4, 3, 3), b=random(4), opsets=EVERY,
)  # fmt: skip
case(node("ConvTranspose", "x w", strides=[2, 2], pads=[0, 1, 1, 0]), w=random(3, 4, 3, 3), label="_uneven")
case(node("GlobalAveragePool"), opsets=EVERY)
case(node("GlobalMaxPool"), opsets=EVERY)

# Norms, reductions ----------------------------------------------------------------------------------------------------

case(
    node("BatchNormalization", "x s b m v"),
    s=random(3), b=random(3, seed=1), m=random(3, seed=2), v=np.abs(random(3, seed=3)) + 0.5, opsets=(11, 14, 15, 22),
)  # fmt: skip
case(
    [
        *(node("Reshape", "w flat", "v"), node("BatchNormalization", "v s b m m", "u p q", training_mode=1)),
        *(node("Reshape", "u back", "k"), node("Conv", "x k")),
    ],
    w=random(4, 3, 3, 3), flat=[1, 4, 27], back=[4, 3, 3, 3],
    s=random(4), b=random(4, seed=1), m=random(4, seed=2) ** 2, opsets=(17,), label="_of_a_weight",
)  # fmt: skip
case(
    [
        *(node("BatchNormalization", "w s b m m", "u p q", training_mode=1), node("Reshape", "u back", "k")),
        node("Conv", "x k"),
    ],
    w=random(1, 4, 27), back=[4, 3, 3, 3], s=np.ones(4, np.float32), b=np.zeros(4, np.float32),
    m=random(4, seed=2) ** 2, opsets=(17,), label="_of_a_weight_without_gain_and_shift",
)  # fmt: skip
case(node("LayerNormalization", "x s b"), s=random(8), b=random(8, seed=1), opsets=(17, 22))
case(node("LayerNormalization", "x s", axis=1, epsilon=1e-3), s=random(3, 6, 8), label="_3d")
case(node("InstanceNormalization", "x s b"), s=random(3), b=random(3, seed=1), opsets=EVERY)
case(
    node("GroupNormalization", "x s b", num_groups=2), s=random(2), b=random(2, seed=1), opsets=(18,),
    shape=("n", 4, 6, 8),
)  # fmt: skip
case(
    node("GroupNormalization", "x s b", num_groups=2), s=random(4), b=random(4, seed=1), opsets=(21,),
    shape=("n", 4, 6, 8),
)  # fmt: skip
case(node("RMSNormalization", "x s"), s=random(8), opsets=(23,))
case(
    [
        *(node("ReduceMean", "x", "m", axes=[-1]), node("Sub", "x m", "c"), node("Pow", "c two", "p")),
        *(node("ReduceMean", "p", "v", axes=[-1]), node("Add", "v eps", "e"), node("Sqrt", "e", "r")),
        *(node("Div", "c r", "n"), node("Mul", "n s", "t"), node("Add", "t b")),
    ],
    two=2.0, eps=1e-5, s=random(8), b=random(8, seed=1), opsets=(11, 13), label="_layer_norm",
)  # fmt: skip
case(node("LRN", size=3, alpha=0.1), opsets=(11, 13))
case(node("LpNormalization", axis=1, p=2), opsets=(11, 22))
for axis in (1, 2, -1):
    case(node("Softmax", axis=axis), opsets=(11, 13), label=f"_{axis}")
    case(node("LogSoftmax", axis=axis), opsets=(11, 13), label=f"_{axis}")
for name in (
    *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
):
    case(node(name, axes=[2, -1], keepdims=0), opsets=(11, 13))
    case(node(name, "x a", keepdims=1), a=[1, 3], opsets=(18, 22))
case(node("ReduceSum", axes=[1]), opsets=(11,))
case(node("ReduceSum", "x a"), a=[1], opsets=(13, 22))
case([node("ArgMax", "x", "a", axis=1), node("Cast", "a", to=1)])
case(node("CumSum", "x a"), a=2)

# Products -------------------------------------------------------------------------------------------------------------

case([node("MatMul", "x w", "m"), node("Add", "b m")], w=random(8, 5), b=random(5), opsets=EVERY)
case([node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("MatMul", "x t")])
FLAT = node("Flatten", "x", "f")
case([FLAT, node("Gemm", "f w b", alpha=0.5, beta=2.0)], w=random(144, 5), b=random(5), opsets=EVERY)
case([FLAT, node("Gemm", "f w b", transB=1)], w=random(5, 144), b=random(1, 5), opsets=EVERY, label="_plain")
case([FLAT, node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "f t")], w=random(5, 144))
case(node("Einsum", "x w", equation="nchw,cd->ndhw"), w=random(3, 5))
case(
    [node("Reshape", "x s", "q"), node("Attention", "q q q", q_num_heads=2, kv_num_heads=2)], s=[0, 18, 8], opsets=(23,)
)
case(node("Attention", "x x x", is_causal=1), opsets=(23, 24))

# Shapes ---------------------------------------------------------------------------------------------------------------

case(node("Concat", "x x w", axis=2), w=random(1, 3, 1, 8), shape=(1, 3, 6, 8))
case([node("Split", "x", "a b", axis=3, split=[3, 5]), node("Concat", "b a", axis=-1)], opsets=(11,))
case([node("Split", "x s", "a b", axis=3), node("Concat", "b a", axis=-1)], s=[3, 5], opsets=(13,))
case([node("Split", "x", "a b c", axis=3, num_outputs=3), node("Concat", "b a c", axis=-1)], opsets=(18,))
case(node("Slice", "x s e a t"), s=[1, -1], e=[2**62, -9], a=[2, 3], t=[2, -2])
case(node("Gather", "x i", axis=3), i=[[0, -1], [2, 3]])
case(node("Gather", "x i", axis=1), i=-1, label="_one")
case(
    [node("ReduceMean", "x", "m", axes=[2]), node("Squeeze", "m", "q", axes=[2]), node("Unsqueeze", "q", axes=[1, -1])],
    opsets=(11,),
)
case(
    [node("ReduceMean", "x", "m", axes=[2]), node("Squeeze", "m a", "q"), node("Unsqueeze", "q b")],
    a=[2],
    b=[1, -1],
    opsets=(13,),
)
case(node("Reshape", "x s"), s=[0, -1, 4], opsets=EVERY)
case(
    [
        *(node("Shape", "x", "sh"), node("Gather", "sh zero", "n"), node("Unsqueeze", "n first", "v")),
        *(node("Concat", "v two rest", "t", axis=0), node("Reshape", "x t")),
    ],
    zero=0, first=[0], two=[2], rest=[-1], label="_of_shape",
)  # fmt: skip
case(
    [
        *(node("Shape", "x", "n", start=0, end=1), node("Mul", "n two", "twice")),
        *(node("Concat", "twice rest", "t", axis=0), node("Reshape", "x t", "r")),
        *(node("Div", "twice two", "half"), node("Concat", "half rest", "u", axis=0)),
        node("Reshape", "r u"),
    ],
    two=[2], rest=[-1], label="_there_and_back",
)  # fmt: skip
case([node("Flatten", "x", "f", axis=2), node("Reshape", "f s")], s=[-1, 144])
case(node("Transpose", perm=[0, 2, 3, 1]), opsets=EVERY)
case([node("ReduceMean", "x", "m", axes=[1]), node("Shape", "x", "s"), node("Expand", "m s")])
TOKEN = [node("Shape", "x", "n", start=0, end=1), node("Concat", "n r", "t", axis=0)]
case([*TOKEN, node("Expand", "w t", "p"), node("Concat", "x p", axis=2)], r=[3, 1, 8], w=random(1, 3, 1, 8))
case(
    [
        *TOKEN,
        node("ConstantOfShape", "t", "o", value=helper.make_tensor("v", 1, [1], [2.0])),
        *(node("Mul", "o w", "p"), node("Concat", "x p", axis=2)),
    ],
    r=[3, 1, 8], w=random(1, 3, 1, 8),
)  # fmt: skip
case(
    [
        *TOKEN,
        node("ConstantOfShape", "t", "o", value=helper.make_tensor("v", 1, [1], [1.0])),
        *(node("CumSum", "o axis", "grid"), node("Conv", "grid w", "p"), node("Concat", "x p", axis=1)),
    ],
    r=[1, 6, 8], axis=2, w=random(3, 1, 1, 1), label="_the_same_for_each_image",
)  # fmt: skip
case(
    [
        *(*TOKEN, node("Shape", "t", "rank")),
        node("ConstantOfShape", "rank", "ones", value=helper.make_tensor("v", 7, [1], [1])),
        *(node("Mul", "ones minus", "negative"), node("Equal", "t negative", "kept")),
        *(node("Where", "kept ones t", "u"), node("Expand", "w u", "p"), node("Concat", "x p", axis=2)),
    ],
    r=[3, -1, 8], minus=-1, w=random(1, 3, 1, 8), label="_as_torch",
)  # fmt: skip
case(
    [
        *(node("Shape", "x", "n", start=0, end=1), node("Squeeze", "n", "count")),
        *(node("Range", "zero count one", "rows"), node("Mul", "rows size", "starts")),
        *(node("Unsqueeze", "starts axis", "column"), node("Add", "column i", "places")),
        *(node("Reshape", "x minus", "flat"), node("Gather", "flat places")),
    ],
    zero=0, one=1, size=144, axis=[1], minus=[-1], i=[[5, 3, 3, 140]], label="_strided",
)  # fmt: skip
case(node("ScatterND", "x i u"), i=[[0, 1], [2, 0]], u=random(2, 6, 8), shape=(3, 3, 6, 8), opsets=(11, 16, 18))
case(node("Tile", "x r"), r=[1, 2, 1, 3], opsets=EVERY)
for mode in ("constant", "reflect", "edge"):
    case(node("Pad", "x p", mode=mode), p=[0, 0, 1, 2, 0, 0, 2, 1], opsets=(11, 18), label=f"_{mode}")
case(node("Pad", "x p v a"), p=[1, 2], v=1.5, a=[-1], opsets=(18,), label="_axes")
for mode, place in itertools.product(
    ("nearest", "linear", "cubic"), ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
):
    options = {"mode": mode, "coordinate_transformation_mode": place}
    case(node("Resize", "x - s", **options), s=[1.0, 1.0, 2.0, 1.5], opsets=(13, 19), label=f"_{mode}_{place}")
    case(
        node("Resize", "x - - s", nearest_mode="floor", **options), s=[3, 3, 4, 13], opsets=(13,), shape=(3, 3, 6, 8),
        label=f"_sizes_{mode}_{place}",
    )  # fmt: skip
case(
    [node("Range", "a b c", "r"), node("Cast", "r", "f", to=1), node("Add", "x f")], a=0, b=8, c=1
)  # fmt: skip
case(
    [
        *(
            node("Constant", "", "a", value_float=2.0),
            node("Constant", "", "b", value_floats=[float(i) for i in range(8)]),
        ),
        *(node("Mul", "x a", "m"), node("Add", "m b")),
    ],
    opsets=(12, 22),
)
for mode in ("DCR", "CRD"):
    case(node("DepthToSpace", blocksize=2, mode=mode), opsets=(11, 13), shape=("n", 8, 4, 6), label=f"_{mode}")
case(node("SpaceToDepth", blocksize=2), opsets=(11, 13))
case(node("Trilu", upper=0), opsets=(14,))


@pytest.mark.parametrize(("nodes", "initializers", "opset", "shape"), CASES)
def test_an_operator_computes_what_the_runtime_computes(nodes, initializers, opset, shape, tmp_path):
    model = classifier(nodes, initializers, opset=opset, shape=shape)
    images = random(shape[0] if isinstance(shape[0], int) else 4, *shape[1:], seed=5)
    program = onnx_import.to_program(onnx_file.read(save(model, tmp_path / "m.onnx"))).program
    with torch.no_grad():
        found = program.graph(torch.from_numpy(images))
    torch.testing.assert_close(found, torch.from_numpy(run(model, images)), rtol=TOLERANCE, atol=TOLERANCE)
