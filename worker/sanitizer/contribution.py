"""What each channel adds to a class's logit.

Shapes: N images, B images of a batch, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.sanitizer.activations import batched
from worker.sanitizer.network import Network, Site, frozen

# Gradients of all sites are held at once.
BATCH_SIZE = 32


def logit_contribution(
    network: Network, sites: Sequence[Site], pixels_NCHW: Tensor, class_index: int | None
) -> dict[str, Tensor]:
    """To first order what a logit would lose without the channel, mean over images: (C,) float64 per site, CPU.

    Σ over positions of A_c · ∂y/∂A_c, which is exact where the network is linear behind the site (Taylor criterion of
    Molchanov et al., ICLR 2017, with its sign).

    Args:
        network: The network; its parameters get no gradient.
        sites: Whose channels are asked.
        pixels_NCHW: Images in [0, 1].
        class_index: Whose logit y is; None for the class that the network gives each image.
    """
    total = {site.name: torch.zeros(site.num_channels, dtype=torch.float64) for site in sites}
    for pixels_BCHW in batched(pixels_NCHW, BATCH_SIZE):
        seen: dict[str, Tensor] = {}
        with frozen(network), torch.enable_grad():
            observers = {site.tap: _keep(seen, site.name) for site in sites}
            logits_BK = network.observe(pixels_BCHW.to(network.device), observers)
            chosen_B = logits_BK.amax(dim=1) if class_index is None else logits_BK[:, class_index]
            if not chosen_B.requires_grad:  # Behind a detach: to first order no channel adds anything.
                continue
            # Images do not mix in inference mode, so that the sum's gradient is each image's own.
            gradients = torch.autograd.grad(chosen_B.sum(), [seen[site.name] for site in sites], materialize_grads=True)
        for site, gradient in zip(sites, gradients, strict=True):
            added_BC = site.maps(seen[site.name].detach() * gradient).double().flatten(2).sum(dim=2)
            total[site.name] += added_BC.sum(dim=0).cpu()
    return {name: total_C / len(pixels_NCHW) for name, total_C in total.items()}


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def keep(value: Tensor) -> Tensor:
        seen[name] = value if value.requires_grad else value.detach().requires_grad_(True)
        return seen[name].clone()  # For an in-place operation behind it.

    return keep
