"""The curve of a ranking: what each nested mask does, and that it leaves no trace."""

import pytest
import torch

from tests.sanitizer.conftest import answered
from worker.sanitizer.evaluate import accuracy
from worker.sanitizer.masks import from_ranking, rank, silenced
from worker.sanitizer.sweep import sweep, worst_recall_drop


def test_the_worst_class_is_found_by_hand_and_classes_without_images_do_not_count():
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 5])
    before = torch.tensor([0, 0, 0, 1, 2, 2, 0])
    assert worst_recall_drop(before, torch.tensor([0, 0, 1, 1, 2, 3, 0]), labels) == 0.5
    assert worst_recall_drop(before, before, labels) == 0
    assert worst_recall_drop(before[:4], labels[:4], labels[:4]) == -0.25
    assert worst_recall_drop(before, torch.tensor([7, 7, 7, 7, 2, 2, 5]), labels) == 0.75


def test_each_point_is_the_network_under_its_mask_and_the_network_is_left_alone(suspect):
    made = suspect()
    network, images = made.bench.network, made.bench.select
    before = made.tensors()
    generator = torch.Generator().manual_seed(0)
    scores = {site.name: torch.rand(site.num_channels, generator=generator) for site in network.sites}
    ranking, steps = rank(scores), []
    _, first = answered(network, images)
    points = sweep(
        network, network.sites, ranking, [0, 3, 10_000], images.pixels_NCHW, images.labels, advance=steps.append
    )
    assert [point.count for point in points] == [0, 3, len(ranking)]
    assert [point.success for point in points] == [None] * 3
    assert points[0].recall_drop == 0
    assert points[-1].recall_drop >= points[0].accuracy - points[-1].accuracy - 1e-9
    for point in points:
        with silenced(network, from_ranking(network.sites, ranking, point.count)):
            assert point.accuracy == pytest.approx(accuracy(network, images.pixels_NCHW, images.labels))
            fall = first - answered(network, images)[1]
        assert point.label_drop == pytest.approx(float(fall.mean()), abs=1e-6)
        assert point.label_error == pytest.approx(float(fall.std(correction=0)) / len(images) ** 0.5, abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    assert steps == [1, 1, 1]
