import hashlib

import pytest

ARCHITECTURE = {"name": "small_resnet", "num_classes": 10, "in_channels": 1}
INPUT = {"height": 28, "width": 28, "mean": [0.5], "std": [0.5]}


def test_a_model_is_declared_uploaded_read_and_deleted(any_api, safetensors, refused):
    created = any_api.http.post("/v1/models", json={"name": "n", "architecture": ARCHITECTURE, "input": INPUT})
    model = created.json()
    assert (created.status_code, model["state"]) == (201, "awaiting_content")
    assert created.headers["location"] == f"/v1/models/{model['id']}"
    assert model["architecture"] == {"source": "builtin", "options": {}, "class_names": []} | ARCHITECTURE
    assert model["created_at"].endswith("Z")

    data = safetensors(b"weights")
    uploaded = any_api.http.put(f"/v1/models/{model['id']}/content", content=data)
    assert uploaded.status_code == 200
    ready = uploaded.json()
    assert (ready["state"], ready["size"], ready["format"]) == ("ready", len(data), "safetensors")
    assert ready["sha256"] == hashlib.sha256(data).hexdigest()
    assert any_api.http.get(f"/v1/models/{model['id']}").json() == ready

    assert any_api.http.delete(f"/v1/models/{model['id']}").status_code == 204
    refused(any_api.http.get(f"/v1/models/{model['id']}"), 404, "model_not_found")
    refused(any_api.http.delete(f"/v1/models/{model['id']}"), 404, "model_not_found")
    refused(any_api.http.put(f"/v1/models/{model['id']}/content", content=data), 404, "model_not_found")
    assert any_api.http.get("/v1/models").json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "body.surprise"),
        ({"name": ""}, "body.name"),
        ({"name": "x" * 201}, "body.name"),
        ({"architecture": None}, "body.architecture"),
        ({"architecture": ARCHITECTURE | {"num_classes": 1}}, "body.architecture"),
        ({"architecture": ARCHITECTURE | {"layers": 3}}, "body.architecture.layers"),
        ({"architecture": ARCHITECTURE | {"source": "pickle"}}, "body.architecture.source"),
        ({"architecture": ARCHITECTURE | {"in_channels": 3}}, "body"),
        ({"input": INPUT | {"std": [0]}}, "body.input"),
        ({"input": INPUT | {"height": 0}}, "body.input"),
        ({"input": INPUT | {"mean": [0.5, 0.5]}}, "body.input"),
        ({"input": INPUT | {"resize": 8, "crop": "center"}}, "body.input"),
        ({"input": INPUT | {"resize": True}}, "body.input"),
        ({"architecture": ARCHITECTURE | {"num_classes": True}}, "body.architecture"),
        ({"input": INPUT | {"interpolation": "guess"}}, "body.input.interpolation"),
        ({"architecture": ARCHITECTURE | {"class_names": ["cat", "dog"]}}, "body.architecture"),
        ({"architecture": ARCHITECTURE | {"class_names": ["cat"] * 10}}, "body.architecture"),
        ({"name": "nul\x00"}, "body"),
    ],
)
def test_a_bad_declaration_is_refused_by_field(api, refused, changes, field):
    body = {"name": "n", "architecture": ARCHITECTURE, "input": INPUT} | changes
    document = refused(api.http.post("/v1/models", json=body), 422, "invalid_request")
    assert document["errors"][0]["field"] == field
    assert api.http.get("/v1/models").json()["items"] == []


def test_a_missing_body_is_named(api, refused):
    answer = api.http.post("/v1/models", headers={"Content-Type": "application/json"})
    assert "send a JSON object" in refused(answer, 422, "invalid_request")["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"name": "\\ud800"}', b'{"name": NaN}', b"null", b"[]"])
def test_a_body_that_is_no_object_is_refused(any_api, body):
    answer = any_api.http.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["code"] in {"bad_request", "invalid_request"}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 422, "not valid JSON"),
        (b"[" * 100_000, 400, "nests too deeply"),
        (b"9" * 5000, 400, "too many digits"),
        (b'{"surprise": 1}', 422, "no such field"),
        (b'{"architecture": {"layers": 3}}', 422, "no such field"),
        (b'{"architecture": []}', 422, "must be a JSON object"),
        (b"[]", 422, "must be a JSON object"),
    ],
)
def test_a_refused_body_is_explained_in_terms_of_json(api, body, status, says):
    answer = api.http.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    messages = [answer.json()["detail"], *(error["message"] for error in answer.json().get("errors", []))]
    assert any(says in message for message in messages)


def test_not_a_finite_number_is_refused_wherever_it_hides(any_api, refused):
    body = (
        b'{"architecture": {"name": "x", "num_classes": 2, "in_channels": 1, "options": {"a": Infinity}},'
        b'"input": {"height": 1, "width": 1, "mean": [0], "std": [1]}}'
    )
    answer = any_api.http.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 422, "invalid_request")


def test_a_huge_value_is_not_echoed(api, refused):
    body = {"name": "n" * 500_000, "architecture": ARCHITECTURE, "input": INPUT, "k" * 100_000: 1}
    answer = api.http.post("/v1/models", json=body)
    refused(answer, 422, "invalid_request")
    assert len(answer.content) < 5000


def test_a_declaration_must_be_json(api, refused):
    refused(
        api.http.post("/v1/models", content=b"name=x", headers={"Content-Type": "text/plain"}), 415, "json_required"
    )


def test_an_architecture_from_the_file_has_no_name_of_its_own(api, refused):
    declared = {"source": "file", "num_classes": 2, "in_channels": len(INPUT["mean"])}
    made = api.http.post("/v1/models", json={"architecture": declared, "input": INPUT})
    assert made.status_code == 201
    assert made.json()["architecture"]["source"] == "file"
    assert made.json()["architecture"]["name"] == ""
    for more in ({"name": "resnet18_32"}, {"options": {"width": 4}}):
        answer = api.http.post("/v1/models", json={"architecture": declared | more, "input": INPUT})
        refused(answer, 422, "invalid_request")


def test_pages_are_newest_first_and_stable_under_insertion(any_api):
    made = [any_api.model()["id"] for _ in range(5)]
    first = any_api.http.get("/v1/models", params={"limit": 2}).json()
    any_api.model()
    second = any_api.http.get("/v1/models", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = any_api.http.get("/v1/models", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    assert [item["id"] for page in (first, second, third) for item in page["items"]] == made[::-1]
    assert third["next_cursor"] is None


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"cursor": "c" * 201}])
def test_a_page_has_bounds(api, refused, params):
    refused(api.http.get("/v1/models", params=params), 422, "invalid_request")


@pytest.mark.parametrize("cursor", ["x", "!!", "ZHN0XzAw", "\u00fc"])
def test_a_foreign_cursor_is_refused(api, refused, cursor):
    document = refused(api.http.get("/v1/models", params={"cursor": cursor}), 422, "invalid_cursor")
    assert "leave it out" in document["detail"]


def test_an_id_of_another_kind_is_recognised(api, refused):
    dataset = api.dataset()["id"]
    document = refused(api.http.get(f"/v1/models/{dataset}"), 404, "model_not_found")
    assert document["detail"].endswith("which is that of a data set")


@pytest.mark.parametrize("name", ["mdl_0", "job_00000000000000000000000000", "%00", "mdl_" + "0" * 26])
def test_an_id_of_nothing_is_not_found(any_api, refused, name):
    refused(any_api.http.get(f"/v1/models/{name}"), 404, "model_not_found")
    refused(any_api.http.put(f"/v1/models/{name}/content", content=b"x"), 404, "model_not_found")


def test_a_dataset_has_a_kind_and_a_trigger_a_target(any_api, refused, safetensors):
    dataset = any_api.dataset(safetensors(b"t"), kind="triggered", target_class=3, name="patch")
    assert (dataset["kind"], dataset["target_class"], dataset["state"]) == ("triggered", 3, "ready")
    assert any_api.http.get("/v1/datasets").json()["items"] == [dataset]
    for body in (
        {"kind": "poisoned"},
        {},
        {"kind": "clean", "target_class": 1},
        {"kind": "triggered", "target_class": -1},
    ):
        refused(any_api.http.post("/v1/datasets", json=body), 422, "invalid_request")
    assert any_api.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    refused(any_api.http.get(f"/v1/datasets/{dataset['id']}"), 404, "dataset_not_found")
