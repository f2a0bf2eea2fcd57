"""A decomposed program has the layers, the sites and the logits of the program that it came from."""

import pytest
import torch
from torch import nn

from worker.sanitizer import checkpoint
from worker.sanitizer.network import NetworkRefusedError, from_graph
from worker.sanitizer.spec import InputSpec

PLAIN_8 = InputSpec(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.group = nn.GroupNorm(2, 8)
        self.norm = nn.LayerNorm(8)
        self.bare = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        maps = nn.functional.max_pool2d(torch.relu(self.bn(self.stem(x))), 2)
        tokens = self.norm(torch.relu(self.group(self.conv(maps))).flatten(2).transpose(1, 2))
        heads = self.bare(tokens).unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads).squeeze(1)
        return self.head((mixed * tokens.softmax(-1)).mean(1))


# torch's own decompositions use what torch has deprecated.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_decomposed_program_is_the_same_network(dynamic, tmp_path):
    torch.manual_seed(2)
    module = Mixed().eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "whole.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "parts.pt2")
    whole, parts = (
        from_graph(found.graph, PLAIN_8, found.batch_size)
        for found in (checkpoint.read(tmp_path / f"{name}.pt2").program for name in ("whole", "parts"))
    )
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(parts(images), module(images), rtol=1e-5, atol=1e-5)
    assert [(site.name, site.kind, site.owned) for site in parts.sites] == [
        (site.name, site.kind, site.owned) for site in whole.sites
    ]
    assert {"stem", "conv"} <= {site.name for site in parts.sites}
    assert not any("native" in str(node.target) or "addmm" in str(node.target) for node in parts.graph.graph.nodes)


class Detached(nn.Module):
    """A convolution that is cut off from the images, as a frozen preprocessing may be."""

    def __init__(self, cut):
        super().__init__()
        self.conv, self.head, self.cut = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), cut

    def forward(self, x):
        return self.head(torch.relu(self.conv(self.cut(x))).mean((2, 3)))


def sent(module, path):
    torch.manual_seed(3)
    example = (torch.zeros(2, 3, 8, 8),)
    torch.export.save(
        torch.export.export(module.eval(), example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), path
    )
    found = checkpoint.read(path).program
    return from_graph(found.graph, PLAIN_8, found.batch_size)


@pytest.mark.parametrize(
    "cut", [lambda x: (2 * x).detach(), lambda x: (2 * x).detach_(), lambda x: torch.round(255 * x) / 255]
)
def test_what_cuts_or_hides_gradients_is_looked_behind(cut, tmp_path):
    module = Detached(cut)
    network = sent(module, tmp_path / "cut.pt2")
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    answers = network(images)
    torch.testing.assert_close(answers, module(images), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(answers.square().sum(), images)
    assert float(gradient.abs().mean()) > 1e-6


def test_a_cast_to_whole_numbers_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(NetworkRefusedError, match="prepare the images before it"):
        sent(Detached(lambda x: (255 * x).to(torch.uint8).float() / 255), tmp_path / "cut.pt2")
