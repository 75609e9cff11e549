"""Who is answered: programs and the page of this machine, and whoever has the token; not the pages of other sites."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ensemble.web.access import AccessMiddleware, AccessRules

TOKEN = "a-token-of-24-characters"
LOOPBACK, OPEN = AccessRules(), AccessRules(TOKEN, "0.0.0.0")


def answer(_):
    return PlainTextResponse("answered")


def make_client(rules):
    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/docs", "/api/search")]
    app = AccessMiddleware(Starlette(routes=routes), rules)
    return TestClient(app, "http://127.0.0.1:8000", follow_redirects=False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("127.0.0.1", 200),
        ("localhost:9000", 200), ("example.org:8000", 421), ("127.0.0.1.example.org", 421), ("192.168.1.5:8000", 421),
        ("localhost.example.org", 421), ("", 421), ("[::1", 421), ("user@example.org", 421),
    ],
)  # fmt: skip
def test_a_server_on_the_loopback_interface_is_reached_by_its_names_only(host, status):
    assert make_client(LOOPBACK).get("/api/search", headers={"Host": host}).status_code == status


def test_a_server_for_others_is_reached_by_addresses_and_its_own_name():
    client = make_client(AccessRules(TOKEN, "sounds.example.org"))
    for host, status in (
        ("192.168.1.5:8000", 200), ("sounds.example.org:8000", 200), ("localhost", 200), ("other.example.org", 421),
    ):  # fmt: skip
        headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
        assert client.get("/api/search", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "http://localhost:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_from_other_sites_are_refused(headers, status, method):
    assert make_client(LOOPBACK).request(method, "/api/search", headers=headers).status_code == status


def test_links_on_other_sites_may_lead_to_the_page():
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    client = make_client(LOOPBACK)
    assert client.get("/", headers=headers).status_code == 200
    assert client.post("/", headers=headers).status_code == 403


def test_a_token_is_needed_on_every_path():
    client = make_client(OPEN)
    for path in ("/", "/docs", "/api/search", "/static/page.css", "/nothing"):
        for headers in (
            {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"x={TOKEN}"},
            {"Authorization": "Bearer \xe9".encode("latin-1")}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
        ):  # fmt: skip
            refused = client.get(path, headers=headers)
            assert refused.status_code == 401
            assert "token" in refused.json()["error"]
        assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)
    assert client.get("/api/search", params={"token": TOKEN}).status_code == 401
    assert client.get("/", params={"token": "wrong"}).status_code == 401


def test_a_link_with_the_token_sets_a_cookie_and_leads_to_the_page_without_it():
    client = make_client(OPEN)
    response = client.get("/", params={"token": TOKEN, "q": "rain & wind"})
    assert (response.status_code, response.headers["location"]) == (303, "/?q=rain+%26+wind")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/api/search").status_code == 200
    assert make_client(AccessRules("another-token-of-characters", "0.0.0.0")).get("/").status_code == 401


def test_a_link_on_another_site_leads_to_the_page_too():
    """A browser sends no strict cookie after a redirect that another site began, so a page of its own leads on."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    response = make_client(OPEN).get("/", params={"token": TOKEN, "q": '"><script>'}, headers=headers)
    assert response.status_code == 200
    assert 'content="0; url=/?q=%22%3E%3Cscript%3E"' in response.text
    assert "<script>" not in response.text


def test_every_response_forbids_scripts_frames_and_files_from_elsewhere():
    for response in (make_client(OPEN).get("/"), make_client(LOOPBACK).get("/"), make_client(LOOPBACK).get("/no")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
