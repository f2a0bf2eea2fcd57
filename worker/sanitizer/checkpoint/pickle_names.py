"""Which Python objects a checkpoint's pickle may name, as `module name`, and why all others are refused."""

from __future__ import annotations

from dataclasses import dataclass

from worker.sanitizer.refusals import PickledModuleError, UnsupportedTensorError

STORAGE_ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
ENCODE = "_codecs encode"
_DTYPES = tuple(
    f"torch {name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
)
# What these calls return, where it can be filled later; any other call returns a plain value.
FILLABLE = {
    _ORDERED_DICT: "ordered",
    "collections Counter": "counter",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
}
CALLABLE = (
    *FILLABLE,
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    REBUILD_TENSOR,
    REBUILD_PARAMETER,
    ENCODE,
    "torch Size",
    "torch device",
)
_ALLOWED = frozenset(("numpy ndarray", *CALLABLE, *_DTYPES, *(f"torch {name}" for name in STORAGE_ITEM_BYTES)))
_OTHER_TENSORS = (
    "torch._utils _rebuild_",
    "torch._tensor _rebuild_from_type",
    "torch.sparse",
    "torch.serialization _get_layout",
    "torch.storage ",
    "torch.nested",
    "torch.distributed",
)


@dataclass(frozen=True, slots=True)
class Global:
    """An object that a pickle names, and that nothing here ever imports."""

    name: str


def allowed(name: str) -> Global:
    """The object of this name, if a state dict has any use for it.

    Raises:
        CheckpointRefusedError: unsupported_tensor, pickled_module.
    """
    if name in _ALLOWED:
        return Global(name)
    dotted = name.replace(" ", ".")[:100]
    if name.startswith(_OTHER_TENSORS) or name.startswith("torch "):
        raise UnsupportedTensorError(
            f"the checkpoint holds {dotted}; only dense, strided CPU tensors are accepted "
            "(no sparse, quantized, nested or meta tensors, no float8): convert them before saving the state dict"
        )
    raise PickledModuleError(
        f"the checkpoint is a pickle that names the Python object {dotted}, and loading it could run code; "
        "save the weights alone with torch.save(model.state_dict(), path), or as safetensors (docs/pickled-model.md)"
    )
