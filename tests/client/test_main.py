import json

import pytest

from service.client.demo import bundled_inputs
from service.client.main import main

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("arguments", [[], ["job"], ["sanitize", "model"], ["models"], ["frobnicate"]])
def test_wrong_usage_ends_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["jobs", "list"], ["job", "x"], ["cancel", "x"], ["report", "x"]])
def test_a_service_that_is_not_there_is_one_line_and_status_one(arguments, capsys):
    assert main([*arguments, "--url", NOWHERE]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lustrate: connection_failed")
    assert "`lustrate up` starts one" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_metadata_that_is_no_json_object_is_named(text, tmp_path, capsys):
    meta = tmp_path / "meta.json"
    meta.write_text(text)
    arguments = ["sanitize", "m", "--meta", str(meta), "--clean", "c", "-o", str(tmp_path / "o"), "--url", NOWHERE]
    assert main(arguments) == 1
    assert "meta.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sanitize", "preview"])
@pytest.mark.parametrize("missing", ["suspect.pth", "clean.npz"])
def test_a_missing_file_is_named_before_anything_is_sent(command, missing, tmp_path, capsys):
    for name in {"suspect.pth", "clean.npz"} - {missing}:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "meta.json").write_text("{}")
    paths = {name: str(tmp_path / name) for name in ("suspect.pth", "clean.npz", "meta.json", "out/put")}
    output = ["-o", paths["out/put"]] if command == "sanitize" else []
    arguments = [command, paths["suspect.pth"], "--meta", paths["meta.json"], "--clean", paths["clean.npz"], *output]
    assert main([*arguments, "--url", NOWHERE]) == 1
    error = capsys.readouterr().err
    assert missing in error
    assert "connection_failed" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_does_not_exist_is_one_line(port, tmp_path, capsys):
    assert main(["up", "--data-dir", str(tmp_path), "--port", port]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_bundled_example_is_whole():
    inputs = bundled_inputs()
    for path in (inputs.checkpoint, inputs.clean, inputs.triggered):
        assert path.stat().st_size > 0
    assert inputs.checkpoint.stat().st_size <= 4 * 1024 * 1024
    assert set(inputs.metadata) == {"name", "architecture", "input"}
    assert isinstance(inputs.target_class, int)
    json.dumps(inputs.metadata)


def test_a_preview_is_shown_with_what_needs_a_look(capsys):
    from rich.console import Console  # noqa: PLC0415

    from service.client import show  # noqa: PLC0415

    finding = {"severity": "refusal", "code": "too_few_per_class", "message": "class 1 [dog] has 2"}
    one = {"class_index": 1, "name": "[red]dog", "num_images": 2, "recall": 0.5, "mostly_predicted": 1}
    accuracy = {"value": 0.9, "low": 0.8, "high": 0.95, "num_images": 20}
    found = {"num_images": 20, "format": "npz", "classes": [one], "accuracy": accuracy, "findings": [finding]}
    show.print_preview(Console(width=200), found)
    text = capsys.readouterr().out
    assert "[red]dog" in text  # a name is no markup
    assert "refusal too_few_per_class: class 1 [dog] has 2" in text
    show.print_preview(Console(width=200), found | {"accuracy": None, "findings": []})
    assert "nothing stands in the way" in capsys.readouterr().out
