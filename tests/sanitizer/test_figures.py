"""The figures: their files, their bytes, and what of the data can be seen in them."""

import dataclasses
import hashlib
import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from worker.sanitizer import figures, plots
from worker.sanitizer.case import Images
from worker.sanitizer.exhibits import Exhibits, Looks, Suspected
from worker.sanitizer.figures import _examples, write_all
from worker.sanitizer.network import from_module
from worker.sanitizer.report import CurvePoint, LayerBias
from worker.sanitizer.spec import InputSpec
from worker.sanitizer.trigger import ANYWHERE, Triggers

HOSTILE = "$\\frac{<script>\x00\u202e\U0001f600" + "x" * 300


def layer(name, linf=30.0):
    return LayerBias(name=name, num_channels=8, linf=linf, l1=2.0, l2=4.0, channel=1, source="synthetic")


def curve():
    accuracies = [0.94, 0.935, 0.92, 0.7]
    return [
        CurvePoint(num_pruned=8 * k, fraction=k / 8, accuracy=accuracy, admissible=accuracy >= 0.92)
        for k, accuracy in enumerate(accuracies)
    ]


def triggers(family="mask", channels=3):
    amount, pattern = torch.zeros(2, 1, 12, 12), torch.zeros(2, channels, 12, 12)
    amount[:, :, 9:, 9:] = 1
    pattern[:, 0, 9:, 9:] = 1
    if family != "mask":
        amount = torch.ones_like(amount)
    return Triggers(family, torch.tensor([2, 0]), amount, 0.1 * pattern if family != "mask" else pattern)


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip
    return from_module(module, InputSpec(height=12, width=12, mean=(0.0,) * 3, std=(1.0,) * 3))


@pytest.fixture
def exhibits(network):
    before = {name: tensor.detach().clone() for name, tensor in network.tensors.items()}
    after = before | {"2.weight": torch.zeros_like(before["2.weight"])}
    clean = Images(torch.rand(12, 3, 12, 12), torch.arange(12) % 3)
    return Exhibits(
        network=network,
        before=before,
        after=after,
        clean=clean,
        suspected=[Suspected(triggers=triggers(), which=0, success=0.97), Suspected(triggers=triggers("l2"), which=1)],
        bias=[layer("0"), layer("2")],
        curve=curve(),
        num_pruned=16,
        max_accuracy_drop=0.02,
    )


def pixels(data):
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    assert image.width == 1200
    return np.asarray(image.convert("RGB")).astype(int)


def shows(data, colour):
    """How many pixels have this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(data) - wanted).max(axis=2) <= 2).sum())


def test_every_file_is_as_its_entry_says_and_the_network_is_the_result(tmp_path, exhibits):
    infos = write_all(tmp_path / "figures", exhibits)
    names = ["curve", "bias", "trigger-1-class-2-mask", "trigger-2-class-0-l2", "gradcam"]
    assert [info.name for info in infos] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(f"{name}.png" for name in names)
    for info in infos:
        data = (tmp_path / "figures" / f"{info.name}.png").read_bytes()
        assert (info.media_type, info.size_bytes) == ("image/png", len(data))
        assert info.sha256 == hashlib.sha256(data).hexdigest()
        assert len(data) < 1024 * 1024
        assert pixels(data).std() > 5
    assert not exhibits.network.tensors["2.weight"].any()


def test_the_same_material_gives_the_same_bytes_and_says_nothing_of_the_machine(tmp_path, exhibits):
    first, second = (write_all(tmp_path / name, exhibits) for name in ("a", "b"))
    assert first == second
    for info in first:
        data = (tmp_path / "a" / f"{info.name}.png").read_bytes()
        assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME"))


def test_what_there_is_nothing_of_is_left_out(tmp_path, exhibits):
    bare = Exhibits(network=exhibits.network, before=exhibits.before, after=exhibits.after, clean=exhibits.clean)
    assert [info.name for info in write_all(tmp_path, bare)] == ["gradcam"]


def test_examples_show_many_classes_and_the_target_last():
    labels = torch.tensor([2, 2, 1, 1, 0, 1])
    images = Images(torch.arange(6.0).view(6, 1, 1, 1), labels)
    assert _examples(images, 2).labels.tolist() == [1, 0, 1, 1]
    assert _examples(images, None).labels.tolist()[:3] == [2, 1, 0]
    assert len(_examples(Images(images.pixels_NCHW[:2], None), 2)) == 2
    assert len(_examples(Images(images.pixels_NCHW[:0], labels[:0]), None)) == 0


def test_the_curve_marks_the_chosen_point_and_only_it():
    chosen = shows(plots.curve_plot(curve(), 16, 0.02), "#D55E00")
    assert chosen > 2 * 100  # in the plot and in the legend
    assert shows(plots.curve_plot(curve(), 5, 0.02), "#D55E00") == 0


def test_the_bias_plot_moves_with_the_numbers():
    def where(linf):
        image = pixels(plots.bias_plot([layer("layer", linf)]))
        found = (np.abs(image - [0xD5, 0x5E, 0x00]).max(axis=2) <= 2) & (np.arange(image.shape[1]) > 200)
        rows = np.arange(image.shape[0]) > 100  # below the legend
        return np.nonzero((found.T & rows).T)[1].mean() if found.any() else None

    assert where(5.0) < where(11.0)
    assert plots.bias_plot([layer("layer", -3.0)])


@pytest.mark.parametrize("count", [1, 200])
def test_a_hostile_or_endless_list_of_layers_is_drawn_all_the_same(count):
    image = pixels(plots.bias_plot([layer(HOSTILE, 1e5) for _ in range(count)]))
    assert image.shape[0] < 1800


@pytest.mark.parametrize("family", ["mask", "linf", "l2"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_trigger_of_each_family_and_colour_is_drawn(family, channels):
    suspected = Suspected(triggers=triggers(family, channels), which=0, success=0.5)
    assert pixels(plots.trigger_sheet(suspected, torch.rand(4, channels, 12, 12))).std() > 5
    assert pixels(plots.trigger_sheet(suspected, torch.rand(0, channels, 12, 12))).std() > 1


def test_a_trigger_is_seen_on_the_stamped_images():
    data = plots.trigger_sheet(Suspected(triggers=triggers(), which=0), torch.zeros(4, 3, 12, 12))
    assert shows(data, "#ff0000") > 5 * 30 * 30  # the pattern, and four small images


def test_grad_cam_without_any_heat_shows_the_image():
    look = Looks(
        caption="clean",
        pixels_NCHW=torch.full((2, 1, 8, 8), 0.5),
        heat_before_NHW=torch.zeros(2, 8, 8),
        heat_after_NHW=torch.full((2, 8, 8), float("nan")),
        classes_before=[1, 2],
        classes_after=[1, 0],
    )
    assert shows(plots.gradcam_sheet([look], HOSTILE), "#808080") > 6 * 100 * 100


def test_what_matplotlib_was_set_to_is_not_touched():
    with mpl.rc_context({"font.size": 3.0}):
        reference = plots.bias_plot([layer("a")])
        assert mpl.rcParams["font.size"] == 3.0
    assert plots.bias_plot([layer("a")]) == reference


def test_only_drawing_imports_matplotlib():
    program = "import sys, worker.sanitizer.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_figure_that_no_reader_would_take_is_left_out(exhibits, tmp_path, monkeypatch):
    named = {info.name for info in write_all(tmp_path / "all", exhibits)}
    monkeypatch.setattr(figures, "MAX_FIGURE_BYTES", 10)
    assert named
    assert write_all(tmp_path / "none", exhibits) == []
    assert list((tmp_path / "none").iterdir()) == []


def test_a_trigger_that_leads_anywhere_is_called_so(exhibits, tmp_path):
    found = triggers()
    anywhere = Triggers("mask", torch.tensor([ANYWHERE, 0]), found.amount_T1HW, found.pattern_TCHW)
    some = dataclasses.replace(exhibits, suspected=[Suspected(triggers=anywhere, which=0)])
    named = {info.name: info.title for info in write_all(tmp_path / "figures", some)}
    assert named["trigger-1-class-any-mask"] == "Synthesised trigger away from every label (mask)"
