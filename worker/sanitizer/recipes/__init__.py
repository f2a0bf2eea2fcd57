"""Everything that can be done to a suspect network, by name."""

from __future__ import annotations

from dataclasses import replace

from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.recipes.activation_caps import caps
from worker.sanitizer.recipes.anp import anp
from worker.sanitizer.recipes.auto import auto
from worker.sanitizer.recipes.awm import awm
from worker.sanitizer.recipes.estimate import estimated
from worker.sanitizer.recipes.fine_pruning import fine_pruning
from worker.sanitizer.recipes.fine_tuning import ft, ft_sam
from worker.sanitizer.recipes.i_bau import i_bau
from worker.sanitizer.recipes.judging import judge
from worker.sanitizer.recipes.layer_outliers import RecipeNotApplicableError, bnp, clp
from worker.sanitizer.recipes.nc_unlearn import nc_unlearn
from worker.sanitizer.recipes.prune import paper, prune
from worker.sanitizer.recipes.rnp import rnp
from worker.sanitizer.recipes.walk_back import is_finite
from worker.sanitizer.recipes.workbench import NOT_JUDGED, Outcome, Phase, Recipe, Workbench

RECIPES: dict[str, Recipe] = {
    "auto": auto,
    "judge": judge,
    "prune": prune,
    "paper": paper,
    "caps": caps,
    "fine_pruning": fine_pruning,
    "clp": clp,
    "bnp": bnp,
    "anp": anp,
    "rnp": rnp,
    "awm": awm,
    "ft": ft,
    "ft_sam": ft_sam,
    "nc_unlearn": nc_unlearn,
    "i_bau": i_bau,
}

__all__ = [
    "RECIPES",
    "Outcome",
    "Phase",
    "Recipe",
    "RecipeDivergedError",
    "RecipeNotApplicableError",
    "Workbench",
    "carry_out",
]


class RecipeDivergedError(SanitizerError):
    """A recipe's training ended in weights that are no numbers."""

    code = "recipe_diverged"


def carry_out(name: str, bench: Workbench) -> Outcome:
    """Run the recipe of this name; where it judges nothing and synthesised triggers, try them on what it left.

    Raises:
        RecipeDivergedError: The network is left with weights that are not finite.
        SanitizerError: The recipe refuses the network.
    """
    outcome = RECIPES[name](bench)
    if not is_finite(bench.network.parameters()):
        raise RecipeDivergedError(
            f"Recipe `{name}` diverged on this network: it left weights that are not finite, so nothing was written. "
            "Use another recipe."
        )
    if outcome.triggers and outcome.estimate is None and outcome.verdict is NOT_JUDGED:
        found = [one.trigger for one in outcome.triggers]
        outcome = replace(outcome, estimate=estimated(bench.network, outcome.triggers, found, bench.select))
    return outcome
