"""Which layers may lose channels."""

from __future__ import annotations

import math

from worker.sanitizer.network import Network, Site
from worker.sanitizer.sites.operators import shape


def in_scope(network: Network, scope: str | list[str]) -> tuple[Site, ...]:
    """The sites of a scope: all of whatever kind, the last convolution, the last stage, or those named.

    Raises:
        NetworkRefusedError: A name is not a site's, or there is neither a convolution nor a linear layer.
    """
    if scope == "all_convs":
        return network.sites
    if scope == "last_conv":
        return (network.last_conv(),)
    if scope == "last_stage":
        return last_stage(network)
    return tuple(network.site(name) for name in dict.fromkeys(scope))


def last_stage(network: Network) -> tuple[Site, ...]:
    """The convolutions whose maps have as many positions as that of `Network.last_conv`, shortcuts included.

    Those that make a gate do not count, nor do patch embeddings where there are linear layers or attention. Where that
    leaves no convolution, the stage is that of the linear layers and attention heads on as many tokens as the deepest:
    all of them in a vision transformer of one resolution, the last stage's in one of several, and every hidden layer of
    a plain multilayer perceptron.

    Raises:
        NetworkRefusedError: There is neither a convolution nor a linear layer.
    """
    last = network.last_conv()
    if last.kind == "conv":
        mixed = any(site.kind in {"linear", "head"} for site in network.sites)
        sites = [
            site
            for site in network.sites
            if site.kind == "conv" and not site.feeds_gate and not (mixed and site.is_patch_embedding)
        ]
    else:
        sites = [site for site in network.sites if site.kind in {"linear", "head"}]
    positions = _positions(network)
    return tuple(site for site in sites if positions[site.name] == positions[last.name])


def _positions(network: Network) -> dict[str, int]:
    """Per site how many positions an image's activation map has, from the example that the graph was made with."""
    shapes = {node.name: shape(node) or () for node in network.graph.graph.nodes}
    found = {}
    for site in network.sites:
        sizes = [size for axis, size in enumerate(shapes[site.tap]) if axis not in {0, site.axis}]
        if site.kind == "head":  # The last axis holds the features of the head.
            sizes = sizes[:-1]
        found[site.name] = site.parts * math.prod(sizes)
    return found
