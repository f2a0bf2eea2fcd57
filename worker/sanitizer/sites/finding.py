"""All sites of a graph in the order in which they are computed, and by name what is left out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from worker.sanitizer.sites import attention, gated, layers, operators
from worker.sanitizer.sites.layers import Skipped
from worker.sanitizer.sites.site import Site


def find_sites(graph: fx.GraphModule) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The sites of a graph whose nodes know their values' shapes (`meta["val"]`), and why each other layer has none."""
    heads = _heads(graph)
    makers_of_values = {maker for _, maker in heads.values()}
    found: list[Site | Skipped] = []
    claimed: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node in heads:
            found.append(heads[node][0])
        elif node.target in operators.OTHER_CONVOLUTIONS:
            found.append(_other_convolution(node))
        elif (layer := operators.layer(node)) is not None:
            if layers.layer_name(layer) in makers_of_values:
                continue
            site, norm = layers.of_layer(layer)
            if isinstance(site, Site) and norm is not None:
                claimed.add(norm.node)
            is_open = isinstance(site, Skipped) and layer.kind == "linear"
            found.append((gated.of_layer(layer) if is_open else None) or site)
        elif node not in claimed and (norm := operators.norm(node)) is not None:
            found.append(layers.of_norm(norm))
    return _sorted_out(graph, found)


def layer_depths(graph: fx.GraphModule, *, convolutions_only: bool) -> dict[str, int]:
    """Per node the largest number of layers on a path from the input to it, itself included."""
    depths: dict[str, int] = {}
    for node in graph.graph.nodes:
        before = max((depths[source.name] for source in node.all_input_nodes), default=0)
        is_layer = node.target in operators.CONVOLUTIONS
        if not convolutions_only and node.op == "call_function" and not is_layer:
            is_layer = node.target in operators.ATTENTIONS or operators.layer(node) is not None
        depths[node.name] = before + is_layer
    return depths


def _heads(graph: fx.GraphModule) -> dict[fx.Node, tuple[Site | Skipped, str]]:
    found = ((node, attention.of_product(node)) for node in graph.graph.nodes)
    return {node: pair for node, pair in found if pair is not None}


def _other_convolution(node: fx.Node) -> Skipped:
    weight = operators.parameter(node.args[1] if isinstance(node.args[1], fx.Node) else None)
    reason = "transposed convolution" if "transpose" in str(node.target) else "not a two-dimensional convolution"
    return Skipped((weight or node.name).removesuffix(".weight"), reason)


def _sorted_out(graph: fx.GraphModule, found: Sequence[Site | Skipped]) -> tuple[tuple[Site, ...], dict[str, str]]:
    sites = [one for one in found if isinstance(one, Site)]
    skipped = {one.name: one.reason for one in found if isinstance(one, Skipped)}
    # A tensor used at two places would be silenced at both while only one was profiled.
    readers: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(operators.readers(node))
    shared = {site.name for site in sites if any(readers[name] > 1 for name in site.tensors)}
    names = [site.name for site in sites]
    shared |= {name for name in names if names.count(name) > 1}
    skipped.update(dict.fromkeys(shared, "its tensors are shared with another layer"))
    sites = [site for site in sites if site.name not in shared]
    if any(site.kind == "conv" for site in sites):
        flat = {site.name for site in sites if site.kind == "linear" and _is_flat(graph, site)}
        skipped.update(dict.fromkeys(flat, "a hidden layer of the classifier, behind all convolutions"))
        sites = [site for site in sites if site.name not in flat]
    return tuple(sites), skipped


def _is_flat(graph: fx.GraphModule, site: Site) -> bool:
    node = next(node for node in graph.graph.nodes if node.name == site.tap)
    return site.parts == 1 and len(operators.shape(node) or ()) == 2
