import pytest

SPEC = "body.spec"


def complaint(api, spec):
    answer = api.http.post("/v1/jobs", json={"model_id": "m", "clean_dataset_id": "d", "spec": spec})
    assert answer.status_code == 422
    return [(error["field"], error["message"]) for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"criterion": []}, SPEC, "criterion must name at least one criterion; leave it out for linf"),
        ({"criterion": ["l1", "l1"]}, SPEC, "criterion must name each criterion once"),
        ({"repair": "maybe"}, f"{SPEC}.repair", "must be true or false"),
        ({"compare": "bnp"}, f"{SPEC}.compare", "must be a JSON list"),
        ({"seed": 1.5}, f"{SPEC}.seed", "must be a whole number"),
        ({"seed": "x"}, f"{SPEC}.seed", "must be a whole number"),
        ({"epochs": 3}, f"{SPEC}.epochs", "there is no such field here; /docs lists those there are"),
        ({"device": "tpu"}, f"{SPEC}.device", "must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_field_is_explained_in_the_terms_of_json(api, spec, field, message):
    assert complaint(api, spec) == [(field, message)]


def test_a_value_that_fits_no_alternative_is_told_all_of_them_at_once(api):
    ((field, message),) = complaint(api, {"scope": {}})
    assert (field, message) == (f"{SPEC}.scope", "must be 'last_conv', 'last_stage' or 'all_convs' or a JSON list")
    ((field, message),) = complaint(api, {"criterion": "l7"})
    assert field == f"{SPEC}.criterion"
    assert message.startswith("must be 'linf', ")
    assert message.endswith(" or a JSON list")


def test_a_list_with_one_wrong_name_is_told_which(api):
    ((field, message),) = complaint(api, {"criterion": ["l1", "l7"]})
    assert field == f"{SPEC}.criterion.1"
    assert "'linf'" in message


@pytest.mark.parametrize(
    ("selection", "field", "message"),
    [
        ({"kind": "fixed_fraction", "fraction": 1}, "", "selection.fraction must be above 0 and below 1"),
        ({"kind": "fixed_fraction"}, ".fraction", "is required"),
        ({"kind": "fixed_fraction", "fraction": "half"}, ".fraction", "must be a number"),
        ({"kind": "robust_deviations", "k": -1}, "", "selection.k must be above 0 and at most 1000"),
        (
            {"kind": "robust_deviations", "k": 2, "l": 1},
            ".l",
            "there is no such field here; /docs lists those there are",
        ),
        ({"max_accuracy_drop": 2}, "", "selection.max_accuracy_drop must be 0 to 1"),
        ({"kind": "best"}, ".kind", "must be 'accuracy_budget', 'fixed_fraction' or 'robust_deviations'"),
        ("accuracy_budget", "", "must be a JSON object"),
    ],
)
def test_of_several_kinds_the_one_that_was_meant_is_explained(api, selection, field, message):
    assert complaint(api, {"selection": selection}) == [(f"{SPEC}.selection{field}", message)]


def test_a_key_that_looks_like_a_type_is_still_a_key(api):
    body = {
        "input": {"height": 1, "width": 1, "mean": [0], "std": [1]},
        "architecture": {"name": "x", "num_classes": 2},
    }
    body["architecture"] |= {"in_channels": 1, "options": {"Depth": [1], "int": None}}
    errors = api.http.post("/v1/models", json=body).json()["errors"]
    assert [(error["field"], error["message"]) for error in errors] == [
        (f"body.architecture.options.{key}", "must be true or false, a whole number, a number or text")
        for key in ("Depth", "int")
    ]
    errors = api.http.post("/v1/models", json={"Name": 1}).json()["errors"]
    assert "body.Name" in [error["field"] for error in errors]


def test_at_most_twenty_are_told_and_each_is_short(api):
    errors = api.http.post("/v1/models", json={f"{'x' * 1000}{index}": 1 for index in range(50)}).json()["errors"]
    assert len(errors) == 20
    assert max(len(error["field"]) for error in errors) <= 300
