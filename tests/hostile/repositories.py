"""Hostile zips of a Hugging Face repository: the configuration, the weights and what lies beside them."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from tests.hostile import zips
from tests.hostile.case import Case, Format, case
from tests.hostile.zips import Entry, archive
from tests.sanitizer.test_checkpoint_hostile import safetensors, torch_bytes

KIND: Format = "hugging_face"
CONFIG: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8, "num_labels": 3,
}  # fmt: skip
_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

# Fields set to what they must not be.
FIELDS: list[tuple[str, Any, str]] = [
    ("auto_map", {"AutoModelForImageClassification": "modeling.Evil"}, "config_carries_code"),
    ("auto_map", "someone/else--modeling.Evil", "config_carries_code"),
    ("auto_map", [["AutoConfig"]], "config_carries_code"),
    ("trust_remote_code", True, "config_carries_code"),
    ("trust_remote_code", "yes", "config_carries_code"),
    ("custom_pipelines", {"image-classification": {"impl": "evil.Pipe"}}, "config_carries_code"),
    ("custom_generate", "someone/else", "config_carries_code"),
    *(("hidden_size", value, "invalid_config_field")
      for value in (0, -1, 10**9, 2**70, "8", 8.0, True, None, [8], {"a": 8}, [], "__import__('os')")),
    *(("num_hidden_layers", value, "invalid_config_field") for value in (0, 10**6, 10**300, [1], "12")),
    *(("num_attention_heads", value, "invalid_config_field") for value in (0, 10**9, [2, 2], False)),
    *(("intermediate_size", value, "invalid_config_field") for value in (0, 2**40)),
    *(("image_size", value, "invalid_config_field")
      for value in (0, 10**5, [224], [224, 224, 224], [[224, 224]], [224, "224"], {"height": 224, "width": 224}, 1e9)),
    *(("patch_size", value, "invalid_config_field") for value in (0, 10**5, -16, [16, 0])),
    *(("num_channels", value, "invalid_config_field") for value in (0, 10**6, "3", None, [3])),
    *(("layer_norm_eps", value, "invalid_config_field") for value in (-1, 2, "1e-12", None, True)),
    *(("hidden_act", value, "invalid_config_field")
      for value in ("xielu", "kernels-community/evil", "__import__('os').system", None, 3, ["gelu"], {"gelu": 1})),
    ("qkv_bias", 1, "invalid_config_field"),
    ("qkv_bias", "false", "invalid_config_field"),
    ("pooler_output_size", 10**9, "invalid_config_field"),
    *(("num_labels", value, "invalid_config_field") for value in (0, 1, 10**9, "3", 3.0, [3], True)),
    *(("id2label", value, "invalid_config_field")
      for value in ({}, [], "cat", {"0": "a"}, {"0": "a", "2": "b"}, {"a": "a", "b": "b"}, {"0": ["a"], "1": {}},
                    {"0": "a", "1": "b"}, {str(index): "x" for index in range(100_001)})),
    *(("model_type", value, "unknown_model_type")
      for value in (None, 3, "", "bert", "../vit", "vit/../../evil", "vit.evil", "ViT", ["vit"], {"vit": 1}, "vit\0",
                    "timm_wrapper", "__main__", "x" * 10_000)),
    *(("architectures", value, "unknown_model_type")
      for value in ("ViTForImageClassification", [], ["ViTModel"], ["EvilModel"], ["__init__"], [["ViTModel"]], {}, 1,
                    ["ViTForImageClassification", "ViTForImageClassification"], ["BeitForImageClassification"])),
    ("_attn_implementation", "kernels-community/evil", "unknown_config_field"),
    ("attn_implementation", "kernels-community/evil", "unknown_config_field"),
    ("transformers_weights", "../../../etc/passwd", "unknown_config_field"),
    ("quantization_config", {"quant_method": "evil"}, "unknown_config_field"),
    ("backbone", "someone/else", "unknown_config_field"),
    ("use_timm_backbone", True, "unknown_config_field"),
    ("pruned_heads", {"0": [1]}, "unknown_config_field"),
    ("__class__", "Evil", "unknown_config_field"),
    ("__init__", [], "unknown_config_field"),
    ("depths", [1, 1], "unknown_config_field"),
    ("x" * 100_000, 1, "unknown_config_field"),
    ("\u202egnp", 1, "unknown_config_field"),
]  # fmt: skip
# Of other families: their fields, and what only the sum of them shows.
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "swin", "depths": [128, 128, 128]}, "invalid_config_field"),
    ({"model_type": "swin", "depths": [1] * 17}, "invalid_config_field"),
    ({"model_type": "swin", "depths": 2}, "invalid_config_field"),
    ({"model_type": "swin", "window_size": 10_000}, "invalid_config_field"),
    ({"model_type": "efficientnet", "depth_coefficient": 8, "num_block_repeats": [64]}, "invalid_config_field"),
    ({"model_type": "efficientnet", "depth_coefficient": 10**12}, "invalid_config_field"),
    ({"model_type": "levit", "image_size": 4096}, "invalid_config_field"),
    ({"model_type": "levit", "patch_size": 1}, "invalid_config_field"),
    ({"model_type": "dinov2", "use_swiglu_ffn": True}, "invalid_config_field"),
    ({"model_type": "resnet", "layer_type": "evil"}, "invalid_config_field"),
    ({"model_type": "cvt", "depth": [[1]]}, "invalid_config_field"),
]
# A configuration that is no configuration.
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "cut-off": json.dumps(CONFIG).encode()[:-5],
    "field-twice": b'{"model_type": "vit", "model_type": "bert"}',
    "field-twice-within": b'{"model_type": "vit", "id2label": {"0": "a", "0": "b"}}',
    "two-objects": b"{}{}",
    "python": b"__import__('os').system('true')",
    "pickle": b"\x80\x04.",
    "not-a-number": b'{"model_type": "vit", "layer_norm_eps": NaN}',
    "infinity": b'{"model_type": "vit", "layer_norm_eps": -Infinity}',
    "many-digits": b'{"model_type": "vit", "hidden_size": ' + b"9" * 100_000 + b"}",
    "deep": b'{"a":' * 200_000,
    "deep-list": b'{"id2label": ' + b"[" * 200_000,
    "utf-16": json.dumps(CONFIG).encode("utf-16"),
    "no-utf8": b'{"model_type": "\xff"}',
    "byte-order-mark": b"\xef\xbb\xbf{}",
    "nine-megabytes": b'{"label2id": "' + b"x" * 9 * 2**20 + b'"}',
}


def config(**changes: Any) -> bytes:
    """A configuration that would be taken, with these fields set."""
    return json.dumps({**CONFIG, **changes}).encode()


def weights() -> bytes:
    """Weights that would be read."""
    return safetensors({"a": _ENTRY}, bytes(8))


def members(**files: bytes) -> dict[str, bytes]:
    """A repository that would be read, with these files in it; double underscores stand for dots."""
    found = {"config.json": config(), "model.safetensors": weights()}
    return {**found, **{name.replace("__", "."): data for name, data in files.items()}}


def zipped(files: dict[str, bytes]) -> bytes:
    """These files, stored."""
    return archive([Entry(name.encode(), data) for name, data in files.items()])


def _deflated(name: str, unpacked: int | None = None) -> bytes:
    """The repository with one member compressed, which says that it has so many bytes."""
    entries = []
    for member, data in members().items():
        packing = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        packed = packing.compress(data) + packing.flush()
        lie = {} if unpacked is None else {"unpacked": unpacked}
        chosen = {"method": 8, "packed": packed, "local": lie, "central": lie} if member == name else {}
        entries.append(Entry(member.encode(), data, **chosen))
    return archive(entries)


def _layouts() -> list[tuple[str, bytes, str]]:
    one = members()
    nested = {f"a/b/{name}": data for name, data in one.items()}
    shards = {"model-00001-of-00002.safetensors": weights(), "model-00002-of-00002.safetensors": weights()}
    return [
        ("no-config", zipped({"model.safetensors": weights()}), "incomplete_repository"),
        ("no-weights", zipped({"config.json": config()}), "incomplete_repository"),
        ("config-elsewhere", zipped({"a/config.json": config(), "model.safetensors": weights()}),
         "unknown_archive_member"),
        ("two-configs", zipped({**one, "old/config.json": config()}), "unknown_archive_member"),
        ("two-repositories", zipped({f"{folder}/{name}": data for folder in "ab" for name, data in one.items()}),
         "unknown_archive_member"),
        ("two-folders-deep", zipped(nested), "unknown_archive_member"),
        ("empty-folder", zipped({**one, "empty/": b""}), "unknown_archive_member"),
        ("python-file", zipped(members(modeling_evil__py=b"raise SystemExit")), "unknown_archive_member"),
        ("pickle", zipped(members(pytorch_model__bin=torch_bytes())), "unknown_archive_member"),
        ("pickle-alone", zipped({"config.json": config(), "pytorch_model.bin": torch_bytes()}),
         "unknown_archive_member"),
        ("read-me", zipped(members(README__md=b"hello")), "unknown_archive_member"),
        ("archive-within", zipped(members(more__zip=zipped(one))), "unknown_archive_member"),
        ("shards", zipped({"config.json": config(), "model.safetensors.index.json": b"{}", **shards}),
         "unknown_archive_member"),
        ("many-members", zipped({**one, **{f"{index}.json": b"" for index in range(300)}}), "unknown_archive_member"),
        ("preprocessor-code", zipped(members(preprocessor_config__json=b'{"auto_map": {"AutoImageProcessor": "e.E"}}')),
         "config_carries_code"),
        ("preprocessor-no-json", zipped(members(preprocessor_config__json=b"\x80\x04.")), "corrupt_config"),
        ("preprocessor-large", zipped(members(preprocessor_config__json=b" " * 9 * 2**20)), "corrupt_config"),
        ("weights-compressed", _deflated("model.safetensors"), "deflated_member"),
        ("config-bomb", _deflated("config.json", 2**31), "corrupt_config"),
        ("config-longer-than-it-says", _deflated("config.json", 10), "corrupt_archive"),
        ("config-shorter-than-it-says", _deflated("config.json", 10_000), "corrupt_archive"),
        ("weights-empty", zipped(members(model__safetensors=b"")), "corrupt_safetensors"),
        ("weights-of-nothing", zipped(members(model__safetensors=safetensors({}))), "no_state_dict"),
        ("weights-cut-off", zipped(members(model__safetensors=weights()[:-1])), "corrupt_safetensors"),
        ("weights-reach-on", zipped(members(model__safetensors=safetensors({"a": {**_ENTRY, "shape": [9],
                                                                                  "data_offsets": [0, 36]}}))),
         "corrupt_safetensors"),
        ("weights-header-reaches-on", zipped(members(model__safetensors=struct.pack("<Q", 100) + b"{}")),
         "corrupt_safetensors"),
        ("weights-huge-header", zipped(members(model__safetensors=struct.pack("<Q", 2**62) + b"{}")),
         "header_too_large"),
        ("weights-pickle", zipped(members(model__safetensors=torch_bytes())), "header_too_large"),
        ("weights-not-finite", zipped(members(model__safetensors=safetensors({"a": _ENTRY}, b"\0\0\xc0\x7f" * 2))),
         "non_finite_weights"),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [
        *zips.cases(KIND, members),
        *(case(f"hugging_face-{name}", KIND, data, code) for name, data, code in _layouts()),
        *(case(f"hugging_face-config-{name}", KIND, zipped(members(config__json=data)), "corrupt_config")
          for name, data in TEXTS.items()),
        *(case(f"hugging_face-field-{index}", KIND, zipped(members(config__json=config(**{name: value}))), code)
          for index, (name, value, code) in enumerate(FIELDS)),
        *(case(f"hugging_face-other-{index}", KIND, zipped(members(config__json=json.dumps(value).encode())), code)
          for index, (value, code) in enumerate(OTHERS)),
    ]  # fmt: skip
