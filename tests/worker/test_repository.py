"""A Hugging Face repository through the confined child: read, built, pruned, given back."""

import importlib
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.protocol import Request
from worker.results import read_report
from worker.sanitizer.spec import ArchitectureSpec, FixedFraction, InputSpec, SanitizeSpec
from worker.supervisor import Kind, Limits, Tick

PER_CLASS = 40
MEMBERS = ("config.json", "model.safetensors")
SPEC = SanitizeSpec(recipe="prune", inputs="clean", scope="last_conv", selection=FixedFraction(fraction=0.25))


@pytest.fixture(scope="module")
def transformers():
    # The child knows nothing of PYTHONPATH.
    if subprocess.run([sys.executable, "-I", "-c", "import transformers"], capture_output=True, check=False).returncode:
        pytest.skip("transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("transformers")


@pytest.fixture
def model(transformers):
    """A small vision transformer that is right about the images: they get the labels that it gives."""
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(num_labels=2, image_size=16, patch_size=4, **fields)
    return transformers.ViTForImageClassification(config).eval()


def upload(model, staging):
    """Model and clean set where the child may read them; returns the images as the model takes them."""
    images = np.random.default_rng(0).integers(0, 256, (2 * PER_CLASS, 3, 16, 16), dtype=np.uint8)
    pixels_NCHW = torch.from_numpy(images) / 255
    with torch.no_grad():
        margin_N = model(pixels_NCHW).logits.diff(dim=1).flatten()
        model.classifier.bias[1] -= margin_N.median()
        labels_N = model(pixels_NCHW).logits.argmax(1)
    np.savez(staging / "clean.npz", images=images, labels=labels_N.numpy().astype(np.int64))
    (staging / "clean.npz").rename(staging / "in" / "clean")
    zipped(model, staging / "in" / "checkpoint", staging)
    return pixels_NCHW


def zipped(model, path, staging):
    model.save_pretrained(staging / "saved")
    with zipfile.ZipFile(path, "w") as archive:
        for name in MEMBERS:
            archive.write(staging / "saved" / name, name)


@pytest.mark.filterwarnings("ignore")
def test_a_whole_job_of_a_repository_runs_in_the_child_and_loads_again(model, staging, supervisor, transformers):
    pixels_NCHW = upload(model, staging)
    request = Request(
        checkpoint_path=str(staging / "in" / "checkpoint"),
        clean_path=str(staging / "in" / "clean"),
        triggered_path=None,
        target_class=None,
        output_path=str(staging / "out" / "output"),
        report_path=str(staging / "out" / "report.json"),
        figures_path=str(staging / "out" / "figures"),
        architecture=ArchitectureSpec(source="transformers", num_classes=2),
        input=InputSpec(height=16, width=16, mean=(0.0,) * 3, std=(1.0,) * 3),
        spec=SPEC,
        threads=1,
        max_file_bytes=64 << 20,
    )
    limits = Limits(deadline_seconds=120, memory_bytes=8 << 30)
    outcome = supervisor.run(request.to_payload(), limits=limits, on_tick=lambda _: Tick.CONTINUE)
    assert outcome.kind is Kind.SUCCEEDED, (outcome.code, outcome.message, outcome.log_tail)
    report = read_report(staging / "out" / "report.json")
    assert report.accuracy.before.value == 1
    assert any(layer.pruned_channels for layer in report.layers)
    assert report.environment.packages["transformers"] == transformers.__version__

    with zipfile.ZipFile(staging / "out" / "output") as archive:
        assert archive.testzip() is None
        archive.extractall(staging / "back")
    assert (staging / "back" / MEMBERS[0]).read_bytes() == Path(staging / "saved" / MEMBERS[0]).read_bytes()
    back = type(model).from_pretrained(staging / "back", local_files_only=True).eval()
    with torch.no_grad():
        assert not torch.equal(back(pixels_NCHW).logits, model(pixels_NCHW).logits)
