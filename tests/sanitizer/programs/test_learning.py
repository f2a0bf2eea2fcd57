"""What layers read as weights is trained, whatever a file calls it; nothing else becomes trainable."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import prune  # noqa: F401 - nn.utils.prune

from tests.sanitizer.programs.conftest import WEIGHTS, export, zipped
from worker.sanitizer import checkpoint
from worker.sanitizer.network import from_graph
from worker.sanitizer.spec import InputSpec

PLAIN_8 = InputSpec(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)


class Buffered(nn.Module):
    """A network that keeps its weights as buffers, one of them worked on before it is used; a table is no weight."""

    def __init__(self):
        super().__init__()
        conv, head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        for name, tensor in (
            ("kernel", conv.weight), ("offset", conv.bias), ("turned", head.weight.t().contiguous()),
            ("gain", torch.ones(8)), ("shift", torch.zeros(8)), ("mean", torch.zeros(8)), ("variance", torch.ones(8)),
            ("table", torch.rand(8, 8, 8)),
        ):  # fmt: skip
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, x):
        maps = nn.functional.conv2d(x, self.kernel, self.offset, padding=1)
        maps = nn.functional.batch_norm(maps, self.mean, self.variance, self.gain, self.shift)
        return (torch.relu(maps + self.table).mean((2, 3)) * 2) @ (1.5 * self.turned)


def read(path):
    found = checkpoint.read(path)
    return found, from_graph(found.program.graph, PLAIN_8, found.program.batch_size)


def test_weights_that_a_file_calls_buffers_are_trained_and_written_back(tmp_path):
    torch.manual_seed(0)
    module = Buffered().eval()
    found, network = read(export(module, tmp_path / "suspect.pt2"))
    assert set(network.parameters()) == {"kernel", "offset", "turned", "gain", "shift"}
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(images), module(images))
    # The sum of a table of positions is no weight; two statistics of the batch norm count neither way.
    weights = 8 * 27 + 8 + 32 + 8 + 8
    assert abs(network.fixed_share() - 512 / (512 + weights)) < 1e-9
    optimizer = torch.optim.Adam(network.parameters().values(), lr=0.1)
    network(images).square().sum().backward()
    optimizer.step()
    changed = {name: network.tensors[name].detach() for name in network.parameters()}
    found.write(tmp_path / "out.pt2", changed, {})
    again = torch.export.load(tmp_path / "out.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(again(images), network(images), rtol=1e-4, atol=1e-4)


def test_a_program_that_flags_no_parameter_is_the_same_network(exported, tmp_path):
    whole, flat = tmp_path / "whole.pt2", tmp_path / "flat.pt2"
    config = json.loads(exported[WEIGHTS])
    for payload in config["config"].values():
        payload["is_param"] = False
    whole.write_bytes(zipped(exported))
    flat.write_bytes(zipped(exported | {WEIGHTS: json.dumps(config).encode()}))
    expected, network = read(whole)[1], read(flat)[1]
    assert set(network.parameters()) == set(expected.parameters())
    assert [site.name for site in network.sites] == [site.name for site in expected.sites]


class Filtered(nn.Module):
    """A network with a fixed filter before it, and a convolution some of whose weights are masked away."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 4)
        nn.utils.prune.l1_unstructured(self.conv, "weight", 0.5)
        self.register_buffer("blur", torch.full((3, 1, 3, 3), 1 / 9))

    def forward(self, x):
        blurred = nn.functional.conv2d(x, self.blur, padding=1, groups=3)
        return self.head(torch.relu(self.conv(blurred)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
def test_masks_and_fixed_filters_stay_as_they_are(tmp_path):
    _, network = read(export(Filtered().eval(), tmp_path / "filtered.pt2"))
    assert not any("mask" in name or "blur" in name for name in network.parameters())
    assert {"conv.weight_orig", "conv.bias", "head.weight", "head.bias"} == set(network.parameters())
