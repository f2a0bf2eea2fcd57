"""The pages of docs/: their links lead somewhere, their JSON is taken, their code and their exports run."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from worker.sanitizer.architectures import build
from worker.sanitizer.case import load_network
from worker.sanitizer.cli import main
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

ROOT = Path(__file__).resolve().parents[2]
# Lists are generated, and tested where they are made.
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem not in {"architectures", "refusals"})
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
# These explain, and have nothing to run.
EXPLAIN = {"baselines", "measured", "method"}
NEEDS = {"keras": "keras", "hugging-face": "transformers"}


def blocks(page, *languages):
    return [(kind, text) for kind, text in FENCE.findall(page.read_text()) if kind in languages]


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def write_state_dict():
    net = nn.Module()
    net.conv, net.norm, net.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 10)
    torch.save({"state_dict": net.state_dict()}, "weights.pth")


def write_attack_result():
    spec = ArchitectureSpec(name="preact_resnet18", num_classes=10)
    state = build(spec).state_dict()
    torch.save({"model_name": "preactresnet18", "num_classes": 10, "img_size": [32, 32, 3], "model": state}, "a.tmp")
    Path("a.tmp").rename("attack_result.pt")


def write_repository():
    from transformers import ViTConfig, ViTForImageClassification  # noqa: PLC0415

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**small, num_labels=5)).save_pretrained("repository")


def write_keras():
    import os  # noqa: PLC0415

    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # noqa: PLC0415

    pool = keras.layers.GlobalAveragePooling2D()
    convolution = keras.layers.Conv2D(4, 3, activation="relu")
    keras.Sequential([keras.Input((32, 32, 3)), convolution, pool, keras.layers.Dense(5)]).save("model.keras")


PRESUPPOSED = {
    "state-dict": write_state_dict,
    "pickled-model": lambda: torch.save(small_net(), "model.pth"),
    "torchscript": lambda: torch.jit.script(small_net()).save("model.pt"),
    "backdoorbench": write_attack_result,
    "hugging-face": write_repository,
    "keras": write_keras,
}


def test_each_page_is_tested():
    assert {page.stem for page in PAGES} == {*PRESUPPOSED, *EXPLAIN}
    assert not any(blocks(ROOT / "docs" / f"{name}.md", "python", "sh", "json") for name in EXPLAIN)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in PRESUPPOSED], ids=lambda page: page.stem)
def test_what_a_page_says_to_run_runs(page, tmp_path, monkeypatch, capsys):
    needed = NEEDS.get(page.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    PRESUPPOSED[page.stem]()
    exported = []
    for kind, text in blocks(page, "python", "sh"):
        if kind == "python":
            name = FILE_NAME.match(text)
            if name:
                Path(name[1]).write_text(text)
                # Another test's module of the same name must not stand in for it.
                monkeypatch.delitem(sys.modules, Path(name[1]).stem, raising=False)
            if not name or "def " not in text:
                exec(compile(text, page.name, "exec"), {"__name__": "page"})
            continue
        for line in text.splitlines():
            if not line.startswith("lustrate export"):
                continue
            command, _, meta = line.partition(" > ")
            arguments = shlex.split(command)[1:]
            capsys.readouterr()
            status = main(arguments)
            printed = capsys.readouterr()
            assert status == 0, printed.err
            Path(meta).write_text(printed.out)
            output = Path(arguments[arguments.index("-o") + 1])
            # What the job would give back, for the lines that use it.
            shutil.copy(output, "sanitized" + output.suffix)
            exported.append(output)
    made = [Path("weights.pth"), *exported]
    assert any(path.exists() for path in made)
    for name in list(sys.modules):
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_metadata_of_a_page_is_taken(page):
    for _, text in blocks(page, "json"):
        meta = json.loads(text)
        ArchitectureSpec(**meta["architecture"])
        InputSpec(**{name: tuple(v) if isinstance(v, list) else v for name, v in meta["input"].items()})


def test_an_attack_result_is_read_with_the_metadata_of_its_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_attack_result()
    meta = json.loads(blocks(ROOT / "docs" / "backdoorbench.md", "json")[0][1])
    architecture = ArchitectureSpec(**meta["architecture"])
    input_spec = InputSpec(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    checkpoint, _ = load_network(Path("attack_result.pt"), architecture, input_spec, torch.device("cpu"))
    assert checkpoint.wrapper == "model"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
    if page.stem == "README":
        assert all(f"docs/{other.name}" in page.read_text() for other in PAGES)
