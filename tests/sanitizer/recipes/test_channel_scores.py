"""Criteria by name: each scores what its recipe does, turned so that the most suspicious channel comes first."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from worker.sanitizer.criteria import peak_entropy, standardise
from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.network import from_module
from worker.sanitizer.recipes import RECIPES
from worker.sanitizer.recipes.channel_scores import CriterionNotApplicableError
from worker.sanitizer.recipes.prune import prune
from worker.sanitizer.spec import FixedFraction, InputSpec, SanitizeSpec, parse_spec

CRITERIA = (
    *("linf", "l1", "l2", "linf_over_l1", "linf_over_l2", "l2_over_l1", "mean"),
    *("lipschitz", "bn_divergence", "entropy", "adversarial_mask", "weight_mask", "unlearn_recover"),
    "logit_contribution",
)
SHORT = {"inversion": {"SYNTHESIS_STEPS": 20}, "anp": {"STEPS": 8}, "rnp": {"MAX_STEPS": 8}, "awm": {"ROUNDS": 2}}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for module, values in SHORT.items():
        for name, value in values.items():
            monkeypatch.setattr(sys.modules[f"worker.sanitizer.recipes.{module}"], name, value)


def spec(criterion, **changes):
    return SanitizeSpec(
        **({"recipe": "prune", "inputs": "clean", "selection": FixedFraction(fraction=0.1)} | changes),
        criterion=criterion,
    )


def scores(suspect, criterion, *, batch_norm=True, **changes):
    return prune(suspect(batch_norm=batch_norm, spec=spec(criterion, **changes)).bench).scores


@pytest.mark.parametrize(
    ("criterion", "recipe", "sign"),
    [
        ("lipschitz", "clp", 1),
        ("bn_divergence", "bnp", 1),
        ("adversarial_mask", "anp", -1),
        ("mean", "fine_pruning", -1),
        ("unlearn_recover", "rnp", -1),
    ],
)
def test_a_criterion_is_its_recipes_score_with_the_most_suspicious_largest(
    suspect, criterion, recipe, sign, monkeypatch
):
    if recipe == "fine_pruning":
        monkeypatch.setattr(sys.modules["worker.sanitizer.recipes.fine_pruning"], "fine_tune", lambda *_, **__: None)
    outcome = RECIPES[recipe](suspect().bench)
    found = scores(suspect, criterion)
    for name, score in outcome.scores.items():
        torch.testing.assert_close(found[name], standardise(sign * score).cpu())
    assert outcome.scores


def test_the_weight_mask_is_the_mean_of_what_awm_leaves_of_the_channels_weights(suspect):
    made = suspect()
    before = made.tensors()
    RECIPES["awm"](made.bench)
    after, found = made.tensors(), scores(suspect, "weight_mask")
    for site in made.bench.network.sites:
        mask = (after[site.weight] / before[site.weight]).double().flatten(1).mean(dim=1)
        torch.testing.assert_close(found[site.name], standardise(-mask), rtol=1e-3, atol=1e-3)


def test_entropy_is_low_where_clean_and_triggered_images_part(suspect):
    made = suspect(spec=spec("entropy", inputs="difference"))
    guide = made.stamped()
    found = prune(dataclasses.replace(made.bench, guide=guide)).scores
    network, seen = suspect().bench.network, {}
    pixels = torch.cat([made.bench.repair.pixels_NCHW, guide.pixels_NCHW])
    with torch.no_grad():
        network.observe(pixels, {site.norm_input: lambda a, n=site.name: seen.update({n: a}) for site in network.sites})
    for name, maps in seen.items():
        torch.testing.assert_close(found[name], standardise(-peak_entropy(maps.amax(dim=(2, 3)))), rtol=1e-3, atol=1e-3)


def test_the_contribution_is_to_the_class_that_the_trigger_leads_to(suspect, planted):
    made = suspect(spec=spec("logit_contribution", inputs="triggered"))
    guide = made.stamped()
    outcome = prune(dataclasses.replace(made.bench, guide=guide))
    network = suspect().bench.network
    last = network.last_conv()
    strongest = int(outcome.scores[last.name].argmax())
    with torch.no_grad():
        before = network(guide.pixels_NCHW)[:, planted.target].mean()
        for rows in last.owned:
            network.tensors[rows.tensor][strongest] = 0
        assert network(guide.pixels_NCHW)[:, planted.target].mean() < before


@pytest.mark.parametrize("criterion", ["entropy", "logit_contribution"])
def test_a_criterion_on_triggered_images_synthesises_them_where_the_norms_need_none(suspect, criterion):
    outcome = prune(suspect(spec=spec(criterion)).bench)
    assert len(outcome.triggers) == 1
    assert outcome.triggered == {}
    assert outcome.choice.num_pruned > 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_its_largest_scores_and_needs_a_batch_norm_only_where_it_says_so(suspect, criterion):
    made = suspect(batch_norm=False, spec=spec(criterion))
    if criterion in ("bn_divergence", "entropy"):
        before = made.tensors()
        with pytest.raises(CriterionNotApplicableError, match=f"`{criterion}`.*batch norm") as refused:
            prune(made.bench)
        assert refused.value.code == "criterion_not_applicable"
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
        return
    outcome = prune(made.bench)
    assert all(bool(score.isfinite().all()) for score in outcome.scores.values())
    gone = torch.cat([outcome.scores[name][~keep] for name, keep in outcome.mask.items()])
    kept = [outcome.scores[name][keep] for name, keep in outcome.mask.items()]
    assert all(int((score > gone.min()).sum()) <= 1 for score in kept)
    assert len(gone) == outcome.choice.num_pruned > 0


@pytest.mark.parametrize("criterion", ["lipschitz", "weight_mask"])
def test_what_needs_stored_convolution_weights_refuses_a_network_without_them(suspect, criterion):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 4))
    network = from_module(module, InputSpec(height=12, width=12, mean=(0.5,), std=(0.25,)))
    bench = dataclasses.replace(suspect(spec=spec(criterion)).bench, network=network)
    with pytest.raises(CriterionNotApplicableError, match=f"`{criterion}`"):
        prune(bench)


def test_several_criteria_rank_by_the_mean_of_their_standardised_scores(suspect):
    one, other = scores(suspect, "linf"), scores(suspect, "lipschitz")
    both = scores(suspect, ["linf", "lipschitz"])
    assert set(both) == set(one)
    for name, score in both.items():
        torch.testing.assert_close(score, standardise((one[name] + other[name]) / 2))


def test_a_layer_that_a_criterion_does_not_apply_to_is_left_alone_or_ranked_by_the_others(suspect):
    made = suspect(spec=spec("lipschitz"))
    network = made.bench.network
    network.sites = (dataclasses.replace(network.sites[0], weight=None), *network.sites[1:])
    total = sum(site.num_channels for site in network.sites[1:])
    outcome = prune(made.bench)
    assert set(outcome.scores) == {site.name for site in network.sites[1:]}
    assert outcome.choice.num_in_scope == total
    both = suspect(spec=spec(["lipschitz", "linf"]))
    both.bench.network.sites = network.sites
    first = network.sites[0].name
    torch.testing.assert_close(prune(both.bench).scores[first], scores(suspect, "linf")[first])


@pytest.mark.parametrize("criterion", [[], ["linf", "linf"], ["linf", "nothing"], "nothing", 3, None, [["linf"]]])
def test_a_criterion_that_is_none_is_refused(criterion):
    with pytest.raises(InvalidSpecError, match="criterion"):
        parse_spec({"criterion": criterion})


def test_every_criterion_can_be_asked_for_alone_and_together():
    assert parse_spec({"criterion": list(CRITERIA)}).criteria == CRITERIA
    assert all(parse_spec({"criterion": name}).criteria == (name,) for name in CRITERIA)
