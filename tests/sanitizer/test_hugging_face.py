"""Repositories of Hugging Face: read as data, built from allow-listed fields, written with only weights changed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from tests.hostile import repositories
from worker.sanitizer import checkpoint, evidence, masks
from worker.sanitizer.architectures import ArchitectureNotInstalledError, hugging_face
from worker.sanitizer.architectures.hugging_face.families import FAMILIES, INERT, READ
from worker.sanitizer.case import load_network
from worker.sanitizer.errors import InvalidSpecError, SanitizerError
from worker.sanitizer.refusals import (
    ArchitectureMismatchError,
    ConfigMismatchError,
    InvalidConfigFieldError,
    NoConfigInFileError,
    NotFromTransformersError,
)
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

CPU = torch.device("cpu")
CLASSES = 5
PLAIN_VIT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PLAIN_DINO = {name: value for name, value in PLAIN_VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
FOUR = {"depths": [1, 1, 1, 1]}
# model_type, side, the fields that make it small, the kinds of sites that it must have.
FAMILY_CASES = [
    ("beit", 16, {**PLAIN_VIT, "use_relative_position_bias": True}, {"conv", "head", "linear"}),
    ("bit", 32, {**FOUR, "embedding_size": 32, "hidden_sizes": [128] * 4}, {"conv", "norm"}),
    ("convnext", 32, {**FOUR, "hidden_sizes": [8, 16, 16, 16]}, {"conv", "linear"}),
    ("convnextv2", 32, {**FOUR, "hidden_sizes": [8, 16, 16, 16]}, {"conv", "linear"}),
    ("cvt", 32, {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, {"conv", "linear"}),
    ("data2vec-vision", 16, {**PLAIN_VIT, "use_shared_relative_position_bias": True}, {"conv", "head", "linear"}),
    ("deit", 16, PLAIN_VIT, {"conv", "head", "linear"}),
    ("dinov2", 16, PLAIN_DINO, {"conv", "head", "linear"}),
    ("dinov2_with_registers", 16, PLAIN_DINO, {"conv", "head", "linear"}),
    ("efficientnet", 32, {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
                          "depth_divisor": 4}, {"conv"}),
    ("focalnet", 32, {"image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
                      "focal_levels": [2, 2], "focal_windows": [3, 3]}, {"conv", "linear"}),
    ("hiera", 64, {**FOUR, "image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 2, 2, 4]}, {"conv", "linear"}),
    ("levit", 64, {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4],
                   "depths": [1, 1, 1]}, {"conv", "linear"}),
    ("mobilenet_v1", 32, {"image_size": 32, "depth_multiplier": 0.125}, {"conv"}),
    ("mobilenet_v2", 32, {"image_size": 32, "depth_multiplier": 0.2}, {"conv"}),
    ("mobilevit", 64, {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": 2,
                       "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]}, {"conv", "head", "linear"}),
    ("mobilevitv2", 64, {"image_size": 64, "width_multiplier": 0.25, "base_attn_unit_dims": [16, 32, 32],
                         "n_attn_blocks": [1, 1, 1]}, {"conv", "norm"}),
    ("poolformer", 64, {**FOUR, "hidden_sizes": [8, 16, 16, 32]}, {"conv", "norm"}),
    ("pvt_v2", 64, {**FOUR, "image_size": 64, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 4]},
     {"conv", "head"}),
    ("regnet", 32, {**FOUR, "embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "groups_width": 8}, {"conv"}),
    ("resnet", 32, {**FOUR, "embedding_size": 8, "hidden_sizes": [16, 16, 32, 32]}, {"conv"}),
    ("segformer", 64, {**FOUR, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 4]},
     {"conv", "head"}),
    ("swiftformer", 64, {**FOUR, "image_size": 64, "embed_dims": [8, 16, 16, 32]}, {"conv"}),
    ("swin", 16, {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
                  "window_size": 4}, {"conv", "head", "linear"}),
    ("swinv2", 16, {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
                    "window_size": 4, "pretrained_window_sizes": [0, 0]}, {"conv", "head", "linear"}),
    ("vit", 16, PLAIN_VIT, {"conv", "head", "linear"}),
    ("vit_msn", 16, PLAIN_VIT, {"conv", "head", "linear"}),
]  # fmt: skip


def spec(**changes) -> ArchitectureSpec:
    return ArchitectureSpec(**{"source": "transformers", "num_classes": CLASSES, **changes})


def plain(side: int, channels: int = 3) -> InputSpec:
    return InputSpec(height=side, width=side, mean=(0.0,) * channels, std=(1.0,) * channels)


def zip_of(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


# What needs no transformers -------------------------------------------------------------------------------------------


def test_only_changed_weights_and_their_checksum_differ_in_the_archive_that_goes_out(tmp_path):
    files = repositories.members(preprocessor_config__json=b'{"size": 16}')
    path = zip_of(tmp_path / "in.zip", files)
    found = checkpoint.read(path)
    assert (found.format, list(found.tensors)) == ("hugging_face", ["a"])
    found.write(tmp_path / "same.zip", {})
    assert (tmp_path / "same.zip").read_bytes() == path.read_bytes()
    found.write(tmp_path / "out.zip", {"a": torch.tensor([1.0, -2.0])})
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.testzip() is None
        out = {name: file.read(name) for name in file.namelist()}
    assert list(out) == list(files)
    assert {name for name in files if out[name] != files[name]} == {"model.safetensors"}
    pairs = zip(path.read_bytes(), (tmp_path / "out.zip").read_bytes(), strict=True)
    assert sum(before != after for before, after in pairs) <= 8 + 2 * 4
    assert checkpoint.read(tmp_path / "out.zip").tensors["a"].tolist() == [1.0, -2.0]


class Pipe:
    """A file that cannot be sought, so that zipfile writes the checksum behind the data."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += bytes(data)
        return len(data)

    def flush(self):
        pass


def test_a_zip_that_was_streamed_is_written_with_all_its_checksums(tmp_path):
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as file:
        for name, data in repositories.members().items():
            file.writestr(f"vit/{name}", data)
    (tmp_path / "in.zip").write_bytes(pipe.data)
    found = checkpoint.read(tmp_path / "in.zip")
    found.write(tmp_path / "out.zip", {"a": torch.tensor([3.0, 4.0])})
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.testzip() is None
    # Both places that follow the data name it, whichever of them a reader believes.
    assert checkpoint.read(tmp_path / "out.zip").tensors["a"].tolist() == [3.0, 4.0]


def test_a_compressed_configuration_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        file.writestr("config.json", repositories.config(), zipfile.ZIP_DEFLATED)
        file.writestr("model.safetensors", repositories.weights())
    assert checkpoint.read(tmp_path / "in.zip").source.described.num_classes == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"num_classes": 4}, "num_classes"), ({"num_classes": 3, "in_channels": 1}, "in_channels"),
     ({"num_classes": 3, "name": "swin"}, "name")],
)  # fmt: skip
def test_a_declaration_that_the_configuration_contradicts_is_refused(tmp_path, changes, named):
    path = zip_of(tmp_path / "in.zip", repositories.members())
    with pytest.raises(ConfigMismatchError, match=f"architecture.{named} is"):
        load_network(path, spec(**changes), plain(16, changes.get("in_channels", 3)), CPU)


def test_source_and_file_must_fit_each_other(tmp_path):
    path = zip_of(tmp_path / "in.zip", repositories.members())
    with pytest.raises(NotFromTransformersError):
        load_network(path, ArchitectureSpec(name="resnet18_32", num_classes=3), plain(16), CPU)
    (tmp_path / "in.safetensors").write_bytes(repositories.weights())
    with pytest.raises(NoConfigInFileError):
        load_network(tmp_path / "in.safetensors", spec(num_classes=3), plain(16), CPU)


def test_a_declaration_takes_no_options_and_needs_no_name():
    assert spec().name == ""
    with pytest.raises(InvalidSpecError, match="no options"):
        spec(options={"hidden_size": 8})


def test_an_absent_library_is_the_refusal_that_names_it(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "transformers", None)
    path = zip_of(tmp_path / "in.zip", repositories.members())
    with pytest.raises(ArchitectureNotInstalledError, match=r"lustrate\[transformers\]"):
        load_network(path, spec(num_classes=3), plain(16), CPU)


def test_reading_a_repository_imports_no_library(tmp_path):
    path = zip_of(tmp_path / "in.zip", repositories.members())
    code = (
        "import sys, pathlib; from worker.sanitizer import case, checkpoint;"
        f"checkpoint.read(pathlib.Path({str(path)!r}));"
        "assert not {'transformers', 'huggingface_hub', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("changes", "classes"),
    [({"num_labels": 7}, 7), ({"num_labels": None}, 2), ({"id2label": {"0": "cat", "1": "dog"}, "num_labels": 2}, 2),
     ({"num_labels": None, "id2label": {str(index): "x" for index in range(21_841)}}, 21_841)],
)  # fmt: skip
def test_classes_are_counted_as_the_library_counts_them(changes, classes):
    assert hugging_face.parse(repositories.config(**changes)).num_classes == classes


def test_what_cannot_change_a_prediction_is_ignored_whatever_it_says():
    plain_one = hugging_face.parse(repositories.config())
    odd = {name: {"nested": [None, "junk"]} for name in INERT}
    assert hugging_face.parse(repositories.config(**odd)) == plain_one


def test_no_field_is_both_handed_on_and_ignored():
    for name, family in FAMILIES.items():
        handed_on = set(family.fields) | family.derived
        assert not handed_on & (family.inert | INERT), name
        assert handed_on & READ <= {"num_channels"}, name
        assert "num_channels" in family.fields, name
    assert {name for name, *_ in FAMILY_CASES} == set(FAMILIES)


# What transformers answers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("transformers")
        except (ImportError, RuntimeError):
            pytest.skip("transformers does not fit what is installed beside it")


def saved(transformers, folder: Path, model_type: str, fields: dict, class_name: str = "", **more):
    """A random model and the folder that save_pretrained makes of it."""
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name or FAMILIES[model_type].classes[0])
    model = model_class(model_class.config_class(num_labels=CLASSES, **fields, **more)).eval()
    with torch.no_grad():
        for tensor in model.buffers():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def zipped(folder: Path, path: Path) -> Path:
    return zip_of(path, {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")})


def logits(model, images_NCHW):
    with torch.inference_mode():
        return model(pixel_values=images_NCHW).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "side", "fields", "kinds"), FAMILY_CASES, ids=[c[0] for c in FAMILY_CASES])
def test_a_family_goes_through(transformers, tmp_path, model_type, side, fields, kinds):
    model = saved(transformers, tmp_path / "in", model_type, fields)
    images_NCHW = torch.rand(3, 3, side, side)
    expected_NK = logits(model, images_NCHW)
    found, network = load_network(zipped(tmp_path / "in", tmp_path / "in.zip"), spec(), plain(side), CPU)
    with torch.inference_mode():
        assert (network(images_NCHW) - expected_NK).abs().max() <= 1e-5
    assert kinds <= {site.kind for site in network.sites}
    assert {name for site in network.sites for name in site.tensors} <= set(found.tensors)
    assert network.last_conv() in network.sites

    before = {name: tensor.detach().clone() for name, tensor in network.tensors.items()}
    chosen = {site.kind: site for site in network.sites}
    keep = {site.name: torch.arange(site.num_channels) > 0 for site in chosen.values()}
    masks.silence(network, keep)
    seen = {}
    with torch.inference_mode():
        observers = {site.tap: (lambda value, site=site: seen.update({site.name: value})) for site in chosen.values()}
        silenced_NK = network.observe(images_NCHW, observers)
    for site in chosen.values():
        assert not site.maps(seen[site.name])[:, 0].any(), site.name

    found.write(tmp_path / "out.zip", evidence.changed(found.tensors, before, network.tensors))
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        file.extractall(tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "in/config.json").read_bytes()
    loaded, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True, local_files_only=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits(loaded.eval(), images_NCHW) - silenced_NK).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_distilled_deit_answers_with_both_its_heads(transformers, tmp_path):
    model = saved(transformers, tmp_path / "in", "deit", PLAIN_VIT, "DeiTForImageClassificationWithTeacher")
    images_NCHW = torch.rand(2, 3, 16, 16)
    _, network = load_network(zipped(tmp_path / "in", tmp_path / "in.zip"), spec(name="deit"), plain(16), CPU)
    with torch.inference_mode():
        assert (network(images_NCHW) - logits(model, images_NCHW)).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_one_channel_and_half_precision_go_through(transformers, tmp_path):
    model = saved(transformers, tmp_path / "in", "vit", PLAIN_VIT, num_channels=1).half()
    model.save_pretrained(tmp_path / "in")
    path = zipped(tmp_path / "in", tmp_path / "in.zip")
    found, network = load_network(path, spec(in_channels=1), plain(16, 1), CPU)
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}
    images_NCHW = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        assert (network(images_NCHW) - logits(model.float(), images_NCHW)).abs().max() <= 1e-5


def rewritten(folder: Path, path: Path, **changes) -> Path:
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    return zip_of(path, {"config.json": json.dumps(config).encode(),
                         "model.safetensors": (folder / "model.safetensors").read_bytes()})  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"hidden_size": 16_384}, ArchitectureMismatchError),
        ({"hidden_size": 16_384, "intermediate_size": 65_536, "num_hidden_layers": 128}, InvalidConfigFieldError),
        ({"num_hidden_layers": 2}, ArchitectureMismatchError),
        ({"num_attention_heads": 3}, ArchitectureMismatchError),
        ({"qkv_bias": False}, ArchitectureMismatchError),
        ({"image_size": 4096, "patch_size": 1}, ArchitectureMismatchError),
    ],
)
def test_a_configuration_that_the_weights_do_not_fit_is_refused_without_making_the_network(
    transformers, tmp_path, changes, refusal
):
    saved(transformers, tmp_path / "in", "vit", PLAIN_VIT)
    path = rewritten(tmp_path / "in", tmp_path / "in.zip", **changes)
    made = []
    original = torch.nn.Linear.__init__

    def watched(self, *args, **keywords):
        original(self, *args, **keywords)
        made.append(self.weight.device.type)

    torch.nn.Linear.__init__ = watched
    try:
        with pytest.raises(refusal):
            load_network(path, spec(), plain(16), CPU)
    finally:
        torch.nn.Linear.__init__ = original
    assert set(made) <= {"meta"}


@pytest.mark.filterwarnings("ignore")
def test_tables_that_no_file_holds_are_bounded_too(transformers, tmp_path):
    fields = dict(next(case for case in FAMILY_CASES if case[0] == "swin")[2])
    saved(transformers, tmp_path / "in", "swin", fields)
    # A window of 64 by 64 has a table of 4096 by 4096 positions, in each of the 16 blocks.
    path = rewritten(tmp_path / "in", tmp_path / "in.zip", image_size=4096, window_size=64, depths=[8, 8])
    with pytest.raises(InvalidConfigFieldError, match="tables"):
        load_network(path, spec(), plain(16), CPU)


@pytest.mark.filterwarnings("ignore")
def test_a_derived_field_must_be_what_the_others_make_it(transformers, tmp_path):
    fields = dict(next(case for case in FAMILY_CASES if case[0] == "swin")[2])
    saved(transformers, tmp_path / "in", "swin", fields)
    path = rewritten(tmp_path / "in", tmp_path / "in.zip", num_layers=1)
    with pytest.raises(InvalidConfigFieldError, match="num_layers"):
        load_network(path, spec(), plain(16), CPU)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ['vit.encoder"layer.0.output.dense.weight', "graph.x", "vit.layernorm.weight.twice"])
def test_a_name_that_is_no_tensors_path_is_a_mismatch(transformers, tmp_path, name):
    from safetensors.torch import load_file, save  # noqa: PLC0415

    saved(transformers, tmp_path / "in", "vit", PLAIN_VIT)
    state = load_file(tmp_path / "in/model.safetensors")
    first = next(iter(state))
    state = {name if key == first else key: value for key, value in state.items()}
    files = {"config.json": (tmp_path / "in/config.json").read_bytes(), "model.safetensors": save(state)}
    with pytest.raises(ArchitectureMismatchError, match="1 missing, 1 unexpected"):
        load_network(zip_of(tmp_path / "in.zip", files), spec(), plain(16), CPU)


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_under_its_old_and_its_new_name_is_one_too_many(transformers, tmp_path):
    from safetensors.torch import load_file, save  # noqa: PLC0415

    saved(transformers, tmp_path / "in", "vit", PLAIN_VIT)
    state = load_file(tmp_path / "in/model.safetensors")
    old = "vit.encoder.layer.0.attention.attention.query.weight"
    state["vit.layers.0.attention.q_proj.weight"] = state[old].clone()
    files = {"config.json": (tmp_path / "in/config.json").read_bytes(), "model.safetensors": save(state)}
    with pytest.raises(SanitizerError, match="0 missing, 1 unexpected") as refused:
        load_network(zip_of(tmp_path / "in.zip", files), spec(), plain(16), CPU)
    assert refused.value.code == "architecture_mismatch"
