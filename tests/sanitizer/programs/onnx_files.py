"""ONNX files for tests: exported by torch as users do it, or one operator at a time, and run by ONNX Runtime."""

import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

RUNTIME_OPSET = 25  # the newest that the installed ONNX Runtime knows without a warning


def export(module, path, *, shape, batch_size=2, free=True, dynamo=False, **options):
    """Save as a user would, by either of torch's exporters."""
    images = (torch.zeros(batch_size, *shape),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            if free:
                options["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(module, images, path, dynamo=True, external_data=False, verbose=False, **options)
        else:
            if free:
                options.update(input_names=["images"], dynamic_axes={"images": {0: "n"}})
            torch.onnx.export(module, images, path, dynamo=False, **options)
    return path


def shake(module, seed=0):
    """Give every norm statistics, scales and shifts of its own, so that no exporter can share or drop them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                positive = name.endswith(("running_var", "weight"))
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + (0.75 if positive else -0.25))
    return module.eval()


def initializer(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(nodes, initializers=(), *, shape=("n", 3, 6, 8), output="y", opset=17, inputs=(), **options):
    """A model whose input is `x`."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), *inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            list(initializers),
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10 if opset <= 22 else 11,
        **options,
    )


def classifier(nodes, initializers=(), *, last="z", **options):
    """A model that ends in logits: everything behind the batch flattened."""
    tail = [helper.make_node("Flatten", [last], ["y"], axis=1)]
    return graph([*nodes, *tail], initializers, **options)


def run(model, images):
    """What ONNX Runtime computes; the reference of the onnx package where the opset is newer than the runtime."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset > RUNTIME_OPSET:
        return ReferenceEvaluator(model).run(None, {"x": images})[0]
    return session(model.SerializeToString()).run(None, {"x": images})[0]


def session(source):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def save(model, path):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


__all__ = [
    "classifier",
    "export",
    "graph",
    "helper",
    "initializer",
    "onnx",
    "random",
    "run",
    "save",
    "session",
    "shake",
]
