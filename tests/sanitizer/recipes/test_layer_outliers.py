"""CLP and BNP on planted outliers, against NumPy; and the refusal where there is no batch norm."""

import numpy as np
import pytest
import torch

from worker.sanitizer.recipes.layer_outliers import RecipeNotApplicableError, bnp, clp


def test_clp_prunes_exactly_what_numpys_rule_names(suspect):
    made = suspect()
    network = made.bench.network
    with torch.no_grad():
        network.tensors["features.8.weight"][5] *= 50
    named = {}
    for site in network.sites:
        weight = network.tensors[site.weight].detach().double().numpy()
        spectral = np.array([np.linalg.svd(w.reshape(len(w), -1), compute_uv=False)[0] for w in weight])
        gamma = network.tensors[f"{site.norm}.weight"].detach().double().numpy()
        bound = spectral * np.abs(gamma) / np.sqrt(network.tensors[f"{site.norm}.running_var"].double().numpy() + 1e-5)
        named[site.name] = np.flatnonzero(bound > bound.mean() + 3 * bound.std(ddof=1)).tolist()
    outcome = clp(made.bench)
    assert {name: (~keep).nonzero().flatten().tolist() for name, keep in outcome.mask.items()} == named
    assert named["features.8"] == [5]
    assert made.silent(outcome.mask)


def test_clp_needs_no_batch_norm(suspect):
    made = suspect(batch_norm=False)
    last = made.bench.network.last_conv()
    with torch.no_grad():
        made.bench.network.tensors[last.weight][3] *= 50
    assert (~clp(made.bench).mask[last.name]).nonzero().flatten().tolist() == [3]


def test_bnp_prunes_the_channel_whose_stored_statistics_saw_other_images(suspect):
    made = suspect()
    site = made.bench.network.last_conv()
    clean = bnp(suspect().bench)
    with torch.no_grad():
        made.bench.network.tensors[f"{site.norm}.running_mean"][7] += 30
    outcome = bnp(made.bench)
    assert (~outcome.mask[site.name]).nonzero().flatten().tolist() == [7]
    assert int(outcome.scores[site.name].argmax()) == 7
    assert outcome.scores[site.name][7] > 10 * clean.scores[site.name].max()
    assert made.silent(outcome.mask)


def test_bnp_refuses_a_network_without_batch_norm_and_leaves_it_alone(suspect):
    made = suspect(batch_norm=False)
    before = made.tensors()
    with pytest.raises(RecipeNotApplicableError) as refused:
        bnp(made.bench)
    assert refused.value.code == "recipe_not_applicable"
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
