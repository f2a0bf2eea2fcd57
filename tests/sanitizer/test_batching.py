"""A graph made for one batch size gives, in padded chunks, what the free network gives; observers never see padding."""

import pytest
import torch
from torch import nn

from worker.sanitizer.gradcam import grad_cam
from worker.sanitizer.network import NetworkRefusedError, from_graph, from_module
from worker.sanitizer.spec import InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,))


class Written(nn.Module):
    """Writes its batch size into the graph, as `x.reshape(x.shape[0], -1)` does once it is traced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        maps = torch.relu(self.bn(self.conv(x)))
        return self.head(maps.reshape(x.shape[0], 4, -1).amax(2))


class Unwritten(Written):
    """The same network without a word of its batch size."""

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).flatten(2).amax(2))


def module(kind=Written):
    torch.manual_seed(3)
    return kind().eval()


def traced(source, batch_size):
    graph = torch.export.export(source, (torch.zeros(batch_size, 1, 8, 8),)).module()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            graph.graph.erase_node(node)
        node.meta.clear()
    graph.recompile()
    return graph


@pytest.fixture
def pixels():
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_chunks_give_the_logits_and_maps_of_the_free_network(batch_size, pixels):
    free = from_module(module(), GRAY_8)
    fixed = from_graph(traced(module(), batch_size), GRAY_8, batch_size)
    assert fixed.batch_size == batch_size
    assert [site.name for site in fixed.sites] == [site.name for site in free.sites] == ["conv"]
    torch.testing.assert_close(fixed(pixels), free(pixels), rtol=1e-5, atol=1e-6)
    seen = []
    observed = fixed.observe(pixels, {fixed.sites[0].tap: lambda maps: seen.append(maps.clone())})
    free.observe(pixels, {free.sites[0].tap: lambda maps: seen.append(maps.clone())})
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(observed, free(pixels), rtol=1e-5, atol=1e-6)


def test_a_replaced_value_goes_on_through_the_chunks(pixels):
    free = from_module(module(), GRAY_8)
    fixed = from_graph(traced(module(), 3), GRAY_8, 3)
    assert not torch.allclose(free(pixels), fixed.observe(pixels, {fixed.sites[0].tap: torch.zeros_like}))
    torch.testing.assert_close(
        fixed.observe(pixels, {fixed.sites[0].tap: lambda maps: 2 * maps}),
        free.observe(pixels, {free.sites[0].tap: lambda maps: 2 * maps}),
    )


def test_gradients_and_substituted_tensors_pass_through_the_chunks(pixels):
    free = from_module(module(), GRAY_8)
    fixed = from_graph(traced(module(), 3), GRAY_8, 3)
    labels = torch.zeros(7, dtype=torch.int64)
    torch.testing.assert_close(
        grad_cam(fixed, fixed.sites[0], pixels, labels), grad_cam(free, free.sites[0], pixels, labels)
    )
    substitute = {"head.bias": torch.tensor([1.0, 2.0, 3.0], requires_grad=True)}
    logits = fixed(pixels, substitute)
    torch.testing.assert_close(logits, free(pixels, substitute))
    (gradient,) = torch.autograd.grad(logits.sum(), substitute["head.bias"])
    assert gradient.tolist() == [7.0, 7.0, 7.0]


def test_a_graph_that_never_wrote_its_batch_size_runs_freely(pixels):
    network = from_graph(traced(module(Unwritten), 1), GRAY_8, 1)
    assert network.batch_size is None
    torch.testing.assert_close(network(pixels), from_module(module(Unwritten), GRAY_8)(pixels))


def test_another_image_size_is_refused_with_the_fields_to_check():
    with pytest.raises(NetworkRefusedError, match=r"input\.height"):
        from_graph(traced(module(), 2), InputSpec(height=9, width=9, mean=(0.5, 0.5), std=(1.0, 1.0)), 2)


def test_a_value_of_terabytes_is_refused_before_it_is_computed():
    graph = traced(module(Unwritten), 1)
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(image):
        graph.graph.call_function(torch.ops.aten.full.default, ([10**12], 0.0))
    graph.recompile()
    with pytest.raises(NetworkRefusedError, match="larger than any network needs"):
        from_graph(graph, GRAY_8, 1)
