"""The bundled suspect in every format: the same decision, the same accuracy, the same network."""

import pytest
import torch

from benchmarks.formats import RECIPES
from benchmarks.trips import suspect
from benchmarks.trips.runtimes import FORMATS
from benchmarks.trips.trip import TOLERANCES, difference
from worker.sanitizer.case import load_network


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return {kind: suspect.run(kind, tmp_path_factory.mktemp(kind), RECIPES["fixed"]) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_suspect_gives_the_same_decision(kind, outcomes):
    found, wanted = outcomes[kind], outcomes["safetensors"]
    assert sum(map(len, wanted.pruned)) >= 40
    assert found.pruned == wanted.pruned
    assert found.report.choice == wanted.report.choice
    assert found.report.accuracy == wanted.report.accuracy
    assert found.report.attack_success == wanted.report.attack_success
    assert difference(found.before_NK, wanted.before_NK) <= TOLERANCES[kind]
    assert difference(found.after_NK, wanted.after_NK) <= TOLERANCES[kind]
    # The download is another network than the upload, or all of this says nothing.
    assert difference(found.after_NK, found.before_NK) > 0.1


def test_the_table_holds_each_format_against_the_first(outcomes):
    rows = suspect.page(outcomes, dict.fromkeys(FORMATS, 1.0))
    assert [len(row) for row in rows] == [len(suspect.HEADER)] * len(FORMATS)
    column = suspect.HEADER.index("same answers")
    assert rows[0][column] == "100.0%"


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_twin_of_a_program_gives_the_same_answers_from_tensors_of_its_own(kind, tmp_path):
    path = suspect.write(kind, tmp_path)
    _, network = load_network(path, suspect.FROM_FILE, suspect.INPUT, torch.device("cpu"))
    pixels = suspect.images()[:4]
    twin, before = network.twin(), network(pixels)
    assert torch.equal(twin(pixels), before)
    assert list(twin.parameters()) == list(network.parameters())
    with torch.no_grad():
        for tensor in twin.parameters().values():
            tensor.zero_()
    assert torch.equal(network(pixels), before)
    assert float(twin(pixels).detach().std()) == 0.0
