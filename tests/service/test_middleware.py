import asyncio
import json

import httpx
import pytest
import structlog

from service import middleware


def test_a_sane_request_id_is_kept_and_any_other_replaced(api):
    assert api.http.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for offered in ("", "a b", "x" * 101, "<script>"):
        given = api.http.get("/healthz", headers={"X-Request-ID": offered}).headers["x-request-id"]
        assert given != offered
        assert len(given) == 32


def test_each_log_line_of_a_request_has_its_id(api):
    api.http.get("/healthz")
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        api.http.get("/nothing", headers={"X-Request-ID": "abc-2"})
    (line,) = [line for line in lines if line["event"] == "request.finished"]
    assert (line["request_id"], line["status"], line["path"], line["method"]) == ("abc-2", 404, "/nothing", "GET")


def test_a_path_brings_no_control_characters_into_the_log(api):
    with structlog.testing.capture_logs() as lines:
        api.http.get("/%1b[31m%00%0aforged")
    (line,) = [line for line in lines if line["event"] == "request.finished"]
    assert line["path"] == r"'/\x1b[31m\x00\nforged'"


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_our_own_names_are_served(api, host):
    assert api.http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", ""])
def test_another_name_that_points_here_is_refused(api, refused, host):
    refused(api.http.get("/v1/models", headers={"Host": host}), 421, "host_not_allowed")


def test_further_names_can_be_allowed(connect, refused):
    api = connect(allowed_hosts=("lustrate.example",))
    assert api.http.get("/healthz", headers={"Host": "lustrate.example"}).status_code == 200
    refused(api.http.get("/healthz", headers={"Host": "evil.example"}), 421, "host_not_allowed")


def test_a_service_that_is_open_by_choice_checks_no_names(connect):
    api = connect(host="0.0.0.0", allow_remote=True)
    assert api.http.get("/healthz", headers={"Host": "anything.example"}).status_code == 200


@pytest.mark.parametrize(("address", "status"), [("192.0.2.1", 403), ("127.0.0.1", 200), ("::1", 200)])
def test_a_server_bound_past_the_settings_serves_no_one(api, address, status):
    async def ask():
        transport = httpx.ASGITransport(app=Bound(api.app, address))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/healthz")

    assert asyncio.run(ask()).status_code == status


class Bound:
    """An application as a server that is bound to this address calls it."""

    def __init__(self, app, address):
        self.app, self.address = app, address

    async def __call__(self, scope, receive, send):
        await self.app(scope | {"server": (self.address, 8000)}, receive, send)


def test_a_browser_changes_nothing_for_another_site(api, refused):
    headers = {"Sec-Fetch-Site": "cross-site"}
    refused(api.http.post("/v1/jobs/x/cancel", headers=headers), 403, "cross_site_request")
    assert api.http.get("/healthz", headers=headers).status_code == 200


def test_a_json_body_has_a_limit_declared_or_not(api, refused):
    body = json.dumps({"name": "x" * middleware.MAX_JSON_BYTES}).encode()
    headers = {"Content-Type": "application/json"}
    for content in (body, iter([body[:1000], body[1000:]])):
        document = refused(api.http.post("/v1/models", content=content, headers=headers), 413, "body_too_large")
        assert document["max_bytes"] == middleware.MAX_JSON_BYTES
    refused(api.http.put("/v1/models/x/content/y", content=body), 413, "body_too_large")
    bad = headers | {"Content-Length": "-1"}
    refused(api.http.post("/v1/models", content=iter([b"{}"]), headers=bad), 400, "invalid_content_length")
