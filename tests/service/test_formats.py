import io

import numpy as np
import onnx
import pytest
import torch

from service import formats
from service.errors import UnprocessableError


@pytest.fixture
def file(tmp_path):
    def _file(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        return path

    return _file


def saved(save, *arguments, **more):
    buffer = io.BytesIO()
    save(*arguments, buffer, **more) if arguments else save(buffer, **more)
    return buffer.getvalue()


def test_the_formats_that_are_taken_are_told_apart(file, safetensors, zipped):
    assert formats.of_model(file(safetensors())) == "safetensors"
    assert formats.of_model(file(saved(torch.save, {"w": torch.zeros(3)}))) == "torch_zip"
    assert formats.of_dataset(file(safetensors())) == "safetensors"
    assert formats.of_dataset(file(saved(np.savez, images=np.zeros(3), labels=np.zeros(3)))) == "npz"
    assert formats.of_dataset(file(saved(np.savez_compressed, images=np.zeros(3)))) == "npz"
    assert formats.of_dataset(file(zipped("0/a.png", "1/b.png"))) == "image_zip"
    assert formats.of_dataset(file(zipped("0/", "0/a.jpg"))) == "image_zip"
    assert formats.of_dataset(file(b"PAR1" + b"x" * 40 + b"PAR1")) == "parquet"


def test_an_exported_program_is_told_from_a_state_dict_by_its_directory(file, zipped):
    module = torch.nn.Linear(2, 2).eval()
    program = saved(torch.export.save, torch.export.export(module, (torch.zeros(1, 2),)))
    assert formats.of_model(file(program)) == "pt2"
    assert formats.of_model(file(zipped("m/byteorder", "m/models/model.json"))) == "pt2"
    assert formats.of_model(file(zipped("m/byteorder", "m/archive_format"))) == "pt2"
    assert formats.of_model(file(zipped("m/data.pkl", "m/data/0", "m/data/models.json"))) == "torch_zip"


def test_a_zip_of_a_hugging_face_repository_is_told_by_its_members(file, zipped):
    assert formats.of_model(file(zipped("config.json", "model.safetensors"))) == "hugging_face"
    assert (
        formats.of_model(file(zipped("vit/", "vit/preprocessor_config.json", "vit/model.safetensors")))
        == "hugging_face"
    )
    assert formats.of_model(file(zipped("m/data.pkl", "m/my_config.json", "m/config.json.txt"))) == "torch_zip"


def test_an_onnx_file_is_known_by_its_first_fields_and_its_length(file):
    graph = onnx.helper.make_graph([], "g", [], [])
    for more in ({}, {"ir_version": 4}, {"doc_string": "d" * 300}, {"producer_name": "p"}):
        whole = onnx.helper.make_model(graph, **more).SerializeToString()
        assert formats.of_model(file(whole)) == "onnx"
        with pytest.raises(UnprocessableError) as refused:
            formats.of_model(file(whole[:-1]))
        assert refused.value.code == "truncated_content"


def test_a_parquet_file_that_was_cut_off_is_refused(file):
    with pytest.raises(UnprocessableError) as refused:
        formats.of_dataset(file(b"PAR1" + b"x" * 40))
    assert refused.value.code == "truncated_content"
    with pytest.raises(UnprocessableError, match="a Parquet file"):
        formats.of_model(file(b"PAR1" + b"x" * 40 + b"PAR1"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before torch 1.6"),
        (b"\x80\x04\x95", "bare pickle"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar"),
        (b"\n  <!DOCTYPE html><html>", "HTML"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"PK\x05\x06" + b"\x00" * 18, "empty zip"),
        (b"\x89HDF\r\n", "Keras"),
        (b'{"a": 1}', "JSON"),
        (b"x", "unknown"),
        (b"\xff" * 100, "unknown"),
    ],
)
def test_anything_else_is_refused_with_what_to_do_instead(file, data, says):
    for look, code in (
        (formats.of_model, "unsupported_checkpoint_format"),
        (formats.of_dataset, "unsupported_dataset_format"),
    ):
        with pytest.raises(UnprocessableError) as refused:
            look(file(data))
        assert refused.value.code == code
        assert says in refused.value.detail
        assert "Save" in refused.value.detail


def test_images_are_no_weights_and_weights_no_images(file, zipped):
    for data in (saved(np.savez, images=np.zeros(3)), zipped("0/a.png")):
        with pytest.raises(UnprocessableError) as refused:
            formats.of_model(file(data))
        assert refused.value.code == "unsupported_checkpoint_format"
    with pytest.raises(UnprocessableError) as refused:
        formats.of_dataset(file(saved(torch.save, {"w": torch.zeros(3)})))
    assert refused.value.code == "unsupported_dataset_format"


def test_a_file_that_was_cut_off_is_called_that(file, safetensors):
    checkpoint = saved(torch.save, {"w": torch.zeros(300_000)})
    for data in (safetensors()[:40], checkpoint[: len(checkpoint) // 2]):
        with pytest.raises(UnprocessableError) as refused:
            formats.of_model(file(data))
        assert refused.value.code == "truncated_content"


def test_a_huge_safetensors_header_is_refused(file):
    data = (formats.MAX_SAFETENSORS_HEADER_BYTES + 1).to_bytes(8, "little") + b"{"
    with pytest.raises(UnprocessableError) as refused:
        formats.of_model(file(data))
    assert refused.value.code == "unsupported_checkpoint_format"
