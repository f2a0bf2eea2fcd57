import json
from pathlib import Path

import pytest
import torch
from torch import nn

from service.client.main import main as lustrate
from worker.sanitizer import checkpoint, exporting, registered
from worker.sanitizer.architectures import build
from worker.sanitizer.cli import main
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

INPUT = InputSpec(height=12, width=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, fixed=0):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, 5)
        self.fixed = fixed

    def forward(self, x):
        if self.fixed:
            assert x.shape[0] != 0 and (x.shape[0] == self.fixed or not torch.compiler.is_compiling())
        return self.head(self.conv(x).relu().mean((2, 3)))

class Wrapped(Net):
    def forward(self, x):
        return {"loss": None, "logits": super().forward(x)}

class Noisy(Net):
    def forward(self, x):
        return super().forward(x) + torch.rand(x.shape[0], 5)

calls = []

class Counting(Net):
    def forward(self, x):
        calls.append(1)
        return super().forward(x) + len(calls)

text = "no callable"
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "net.py").write_text(MODEL)
    return lambda name: f"{tmp_path / 'net.py'}:{name}"


def export(source, output, *, weights=None, **arguments):
    torch.manual_seed(0)
    return exporting.export(exporting.load_module(source, arguments, weights), output, INPUT)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_program_answers_as_the_module_does(model, tmp_path, suffix):
    exported = export(model("Net"), tmp_path / f"net.{suffix}", width=6)
    assert exported.difference <= 1e-5
    assert exported.batch == "free"
    assert checkpoint.read(tmp_path / f"net.{suffix}").format == suffix
    meta = exported.metadata("net")
    assert meta["architecture"] == {"source": "file", "num_classes": 5, "in_channels": 3}
    assert (meta["name"], meta["input"]["mean"], meta["input"]["height"]) == ("net", (0.5, 0.4, 0.3), 12)


def test_a_model_that_takes_one_size_of_batch_is_written_for_that_one(model, tmp_path):
    assert export(model("Net"), tmp_path / "net.pt2", fixed=16).batch == "fixed"


def test_logits_are_taken_out_of_what_hugging_face_returns(model, tmp_path):
    assert export(model("Wrapped"), tmp_path / "net.pt2").difference <= 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_becomes_onnx_alone(tmp_path):
    torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 12), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))).save(tmp_path / "s")
    script = torch.jit.load(tmp_path / "s")
    assert exporting.export(script, tmp_path / "net.onnx", INPUT).batch == "free"
    with pytest.raises(exporting.ExportError, match=r"\.onnx"):
        exporting.export(script, tmp_path / "net.pt2", INPUT)


def test_a_registered_module_becomes_safetensors_and_a_name(tmp_path):
    options = {"width": 3, "blocks": 2, "stem_stride": 2}
    asked = ArchitectureSpec(name="small_resnet", num_classes=4, in_channels=3, options=options)
    torch.manual_seed(0)
    exported = exporting.export(build(asked), tmp_path / "net.safetensors", INPUT)
    # The stride leaves no trace in the tensors: it is the answers that tell it.
    assert exported.architecture == asked
    assert exported.difference <= 1e-5
    assert exported.batch is None


def test_a_module_of_no_registered_architecture_is_sent_to_pt2(model, tmp_path):
    with pytest.raises(registered.NotRegisteredError, match=r"\.pt2"):
        export(model("Net"), tmp_path / "net.safetensors")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_weights_are_loaded_without_running_their_pickle(model, tmp_path, wrap):
    torch.manual_seed(5)
    state = exporting.load_module(model("Net"), {}, None).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pt")
    export(model("Net"), tmp_path / "net.pt2", weights=tmp_path / "weights.pt")
    assert torch.equal(checkpoint.read(tmp_path / "net.pt2").tensors["head.weight"], state["head.weight"])


def test_weights_that_are_a_pickled_module_are_refused(model, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "weights.pt")
    with pytest.raises(SanitizerError) as refusal:
        exporting.load_module(model("Net"), {}, tmp_path / "weights.pt")
    assert refusal.value.code == "pickled_module"


@pytest.mark.parametrize(
    ("name", "output", "code"),
    [
        ("Counting", "net.pt2", "export_differs"),
        ("Noisy", "net.pt2", "program_operator"),
        ("Net", "net.bin", "export_failed"),
        ("text", "net.pt2", "export_failed"),
        ("absent", "net.pt2", "export_failed"),
        ("nn.ReLU", "net.pt2", "export_failed"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_no_file(model, tmp_path, name, output, code):
    with pytest.raises(SanitizerError) as refusal:
        export(model(name), tmp_path / output)
    assert refusal.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["net.py"]


def test_the_command_prints_the_metadata_and_how_near_it_comes(model, tmp_path, capsys):
    options = ["--size", "12", "--mean", "0.5", "0.5", "0.5", "--std", "1", "1", "1", "-o", str(tmp_path / "net.pt2")]
    assert main(["export", model("Net"), "--arguments", '{"width": 2}', *options]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["architecture"]["num_classes"] == 5
    assert "differ by at most" in printed.err
    assert main(["export", model("absent"), *options]) == 1
    assert capsys.readouterr().err.startswith("export_failed: ")


def test_the_client_leaves_the_export_to_a_process_with_torch(tmp_path, monkeypatch, capfd):
    (tmp_path / "net.py").write_text(MODEL)
    # The folder's own `worker` must not stand in for ours.
    (tmp_path / "worker.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    arguments = ["net:Net", "--size", "12", "--mean", "0", "0", "0", "--std", "1", "1", "1", "-o", "out.pt2"]
    assert lustrate(["export", *arguments]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "out"
    assert Path("out.pt2").stat().st_size > 0
