"""CLP and BNP: silence the channels whose score is an outlier among those of its layer, and train nothing.

CLP: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022. BNP: Zheng et al.,
"Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from worker.sanitizer import criteria, masks
from worker.sanitizer.activations import batched
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.network import Network, Site
from worker.sanitizer.norm_inputs import moments
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice

# How many standard deviations above its layer's mean a score must lie; both papers' default.
DEVIATIONS = 3.0


class RecipeNotApplicableError(SanitizerError):
    """The network has nothing that the recipe works on."""

    code = "recipe_not_applicable"


def clp(bench: Workbench) -> Outcome:
    """Prune convolution channels by their Lipschitz bound, batch norm folded in; it looks at no image.

    Raises:
        RecipeNotApplicableError: No convolution has a stored weight.
    """
    network = bench.network
    sites = [site for site in network.sites if site.weight is not None]
    if not sites:
        raise RecipeNotApplicableError("Recipe `clp` needs a convolution, and there is none. Use another recipe.")
    scores = lipschitz_bounds(network, sites)
    return _prune_outliers(bench, sites, scores, "channel Lipschitz bound")


def bnp(bench: Workbench) -> Outcome:
    """Prune channels by how far the batch norm's input on clean images diverges from its stored statistics.

    Raises:
        RecipeNotApplicableError: There is no batch norm.
    """
    network = bench.network
    sites = [site for site in network.sites if site.norm is not None]
    if not sites:
        raise RecipeNotApplicableError(
            "Recipe `bnp` compares images with the statistics that a batch norm stores, and this network has no batch "
            "norm. Use another recipe."
        )
    scores = norm_divergences(bench, sites)
    return _prune_outliers(bench, sites, scores, "divergence from the stored batch-norm statistics")


def lipschitz_bounds(network: Network, sites: Sequence[Site]) -> criteria.Scores:
    """The Lipschitz bound of each channel of these convolutions, whose weights are stored, per site (C,)."""
    return {site.name: criteria.lipschitz_bound(_weight(network, site), _gain(network, site)) for site in sites}


def norm_divergences(bench: Workbench, sites: Sequence[Site]) -> criteria.Scores:
    """How far clean images diverge from what the batch norms of these sites store, per site (C,) in nats."""
    with bench.phase("profile", len(bench.repair)) as advance:
        seen = moments(bench.network, batched(bench.repair.pixels_NCHW), sites, advance=advance)
    network, scores = bench.network, {}
    for site in sites:
        clean = seen[site.name]
        stored_mean_C = network.tensors[f"{site.norm}.running_mean"]
        stored_variance_C = network.tensors[f"{site.norm}.running_var"]
        scores[site.name] = criteria.norm_divergence(
            clean.mean(), clean.variance(), stored_mean_C, stored_variance_C, site.norm_eps
        )
    return scores


def _weight(network: Network, site: Site) -> Tensor:
    assert site.weight is not None
    return network.tensors[site.weight]


def _gain(network: Network, site: Site) -> Tensor | None:
    if site.norm is None:
        return None
    variance_C = network.tensors[f"{site.norm}.running_var"]
    return criteria.norm_gain(network.tensors.get(f"{site.norm}.weight"), variance_C, site.norm_eps)


def _prune_outliers(bench: Workbench, sites: Sequence[Site], scores: criteria.Scores, what: str) -> Outcome:
    """A layer is never silenced whole: most of its scores lie below mean + 3 std."""
    mask = {name: ~criteria.beyond_mean(score_C, DEVIATIONS).cpu() for name, score_C in scores.items()}
    masks.silence(bench.network, mask)
    return Outcome(
        choice=Choice(
            num_pruned=masks.num_pruned(mask),
            num_in_scope=sum(site.num_channels for site in sites),
            reason=f"The channels whose {what} exceeds their layer's mean by {DEVIATIONS:g} standard deviations.",
        ),
        mask=mask,
        scores=scores,
    )
