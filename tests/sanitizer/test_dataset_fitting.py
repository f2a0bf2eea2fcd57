"""Sizes and channels: against Pillow, whose results a model's training pipeline has seen."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.sanitizer.test_dataset import npz, read_bytes, zipped
from worker.sanitizer.dataset.fitting import fit_channels, fit_size
from worker.sanitizer.refusals import DatasetRefusedError
from worker.sanitizer.spec import InputSpec

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def rule(height=8, width=8, **changes):
    return InputSpec(height=height, width=width, mean=(0.5,), std=(0.5,), **changes)


def photo(height, width, channels=3, seed=0):
    """Smooth colours and some noise, CHW."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / (3 + c)) * np.cos(y / (5 + c)) for c in range(channels)]
    return torch.from_numpy((np.stack(waves) + generator.normal(0, 9, (channels, height, width))).clip(0, 255)).byte()


def png(image_CHW, mode=None):
    array = image_CHW.permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(50, 37), (37, 50), (9, 40), (24, 24), (6, 5)])
def test_resizing_and_cropping_is_what_pillow_and_torchvision_do(interpolation, height, width):
    image = photo(height, width)
    fitted = fit_size(image[None], rule(16, 14, resize=20, crop="center", interpolation=interpolation))[0]
    # torchvision's Resize(20) and CenterCrop((16, 14)), by hand on a Pillow image.
    shorter = min(height, width)
    target = (int(20 * width / shorter), int(20 * height / shorter))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(target, PILLOW[interpolation])
    left, top = round((target[0] - 14) / 2), round((target[1] - 16) / 2)
    expected = np.asarray(resized.crop((left, top, left + 14, top + 16))).astype(int)
    assert np.abs(fitted.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_stretching_gives_the_models_size_whatever_the_proportions():
    image = photo(10, 50)
    expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((8, 12), PILLOW["bilinear"]))
    fitted = fit_size(image[None], rule(12, 8, resize="stretch"))[0].permute(1, 2, 0)
    assert np.abs(fitted.numpy().astype(int) - expected).max() <= 1


def test_floating_images_are_fitted_as_bytes_are():
    image = photo(30, 40)
    how = rule(16, 16, resize=16, crop="center", interpolation="bicubic")
    whole = fit_size(image[None], how)
    floating = fit_size(image[None].float() / 255, how)
    assert (floating * 255 - whole).abs().max() <= 1
    assert float(floating.min()) >= 0
    assert float(floating.max()) <= 1


def test_a_wrong_range_is_still_seen_after_resizing():
    fitted = fit_size(photo(30, 40)[None].float(), rule(16, 16, resize=16, crop="center"))
    assert float(fitted.max()) > 100


def test_nothing_is_declared_and_nothing_is_changed():
    images = photo(30, 40)[None]
    assert fit_size(images, rule()) is images
    assert fit_size(images[:, :, :6], rule(crop="center")).shape == (1, 3, 6, 40)  # too small to crop: left to checks


def test_an_absurdly_long_image_is_not_blown_up():
    with pytest.raises(DatasetRefusedError) as caught:
        fit_size(torch.zeros(1, 3, 1, 4000, dtype=torch.uint8), rule(resize=256))
    assert caught.value.code == "image_too_large"
    assert "lower input.resize" in caught.value.message


def test_a_flood_of_small_images_is_not_blown_up():
    with pytest.raises(DatasetRefusedError) as caught:
        fit_size(torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(10**6, 1, 1, 1), rule(resize=4096))
    assert caught.value.code in {"dataset_too_large", "image_too_large"}


def test_gray_is_repeated_for_a_colour_model():
    gray = photo(6, 7, 1)[None]
    assert torch.equal(fit_channels(gray, 3, grayscale=False), gray.repeat(1, 3, 1, 1))


def test_colour_becomes_gray_only_where_that_is_declared():
    colour = photo(20, 30)
    with pytest.raises(DatasetRefusedError) as caught:
        fit_channels(colour[None], 1, grayscale=False)
    assert caught.value.code == "colour_images"
    expected = np.asarray(Image.fromarray(colour.permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(fit_channels(colour[None], 1, grayscale=True)[0, 0].numpy(), expected)
    floating = fit_channels(colour[None] / 255, 1, grayscale=True)[0, 0] * 255
    assert np.abs(floating.numpy() - expected).max() <= 1


def test_three_equal_channels_are_gray_already():
    gray = photo(6, 7, 1)[None]
    assert torch.equal(fit_channels(gray.repeat(1, 3, 1, 1), 1, grayscale=False), gray)


@pytest.mark.parametrize(("found", "wanted"), [(2, 3), (4, 3), (3, 4), (1, 2)])
def test_a_difference_that_is_not_unmistakable_is_left_to_the_checks(found, wanted):
    images = torch.zeros(1, found, 4, 4, dtype=torch.uint8)
    assert fit_channels(images, wanted, grayscale=True) is images


def test_files_of_many_sizes_become_one_size(tmp_path):
    sizes = [(30, 20), (20, 30), (16, 16), (64, 17)]
    data = zipped({f"{i % 2}/{i}.png": png(photo(*size, seed=i)) for i, size in enumerate(sizes)})
    found = read_bytes(tmp_path, data, in_channels=3, rule=rule(resize=10, crop="center"))
    assert found.images_NCHW.shape == (4, 3, 8, 8)
    assert found.sizes == dict.fromkeys(sizes, 1)
    assert found.num_left_out == 0


def test_images_of_a_wrong_size_can_be_counted_instead_of_refused(tmp_path):
    data = zipped({f"{i % 2}/{i}.png": png(photo(8, 8 + (i == 3), seed=i)) for i in range(5)})
    found = read_bytes(tmp_path, data, in_channels=3, rule=rule(), leave_out_wrong_sizes=True)
    assert (len(found.images_NCHW), found.num_left_out) == (4, 1)
    assert found.labels_N.tolist() == [0, 0, 0, 1]  # of 0, 2, 4 and 1: the class that comes first is first
    assert found.sizes == {(8, 8): 4, (8, 9): 1}
    arrays = read_bytes(
        tmp_path, npz(images=np.zeros((5, 9, 9), np.uint8), labels=np.arange(5)),
        rule=rule(), leave_out_wrong_sizes=True,
    )  # fmt: skip
    assert (len(arrays.images_NCHW), len(arrays.labels_N), arrays.num_left_out) == (0, 0, 5)


def test_arrays_are_fitted_too(tmp_path):
    images = torch.stack([photo(20, 30, 1, seed) for seed in range(3)])
    data = npz(images=images.numpy(), labels=np.arange(3))
    found = read_bytes(tmp_path, data, in_channels=3, rule=rule(resize=10, crop="center"))
    assert found.images_NCHW.shape == (3, 3, 8, 8)
    files = zipped({f"{i}/x.png": png(image) for i, image in enumerate(images)})
    assert torch.equal(
        read_bytes(tmp_path, files, in_channels=3, rule=rule(resize=10, crop="center")).images_NCHW, found.images_NCHW
    )


def deep_png(values):
    buffer = io.BytesIO()
    Image.fromarray(np.array(values, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_of_16_bits_the_high_8_are_kept(tmp_path, in_channels):
    data = zipped({"0/1.png": deep_png([[0, 255, 256], [4660, 65279, 65535]])})
    images = read_bytes(tmp_path, data, in_channels=in_channels).images_NCHW
    assert images.shape == (1, in_channels, 2, 3)
    assert images[0, 0].tolist() == [[0, 0, 1], [18, 254, 255]]


def test_alpha_is_dropped_and_not_composed(tmp_path):
    colour = photo(8, 8)
    clear = torch.cat([colour, torch.zeros(1, 8, 8, dtype=torch.uint8)])
    data = zipped({"0/1.png": png(clear)})
    assert torch.equal(read_bytes(tmp_path, data, in_channels=3).images_NCHW[0], colour)
    assert torch.equal(read_bytes(tmp_path, data, in_channels=4).images_NCHW[0], clear)


def test_a_palette_becomes_its_colours(tmp_path):
    colour = torch.tensor([[[255, 0], [0, 51]], [[0, 255], [0, 51]], [[0, 0], [255, 51]]], dtype=torch.uint8)
    data = zipped({"0/1.png": png(colour, "P")})
    assert torch.equal(read_bytes(tmp_path, data, in_channels=3).images_NCHW[0], colour)
