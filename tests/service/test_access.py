"""Who is let in."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from tests.service.served import BODY, refused

from lorahydra.errors import ConfigError
from lorahydra.service.access import Access, _network

TOKEN = "correct horse battery staple"


@pytest.fixture
def client(make_client: Callable[..., httpx.Client]) -> httpx.Client:
    return make_client(Access(token=TOKEN))


def test_without_the_token_nothing_is_answered(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    for path in ("/projects", "/openapi.json", "/metrics", "/docs", "/nothing"):
        answer = client.get(path)
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in (b"Bearer wrong", b"Bearer", f"Basic {TOKEN}".encode(), "Bearer кириллица".encode()):
        refused(client.get("/projects", headers={"Authorization": header}), 401, "unauthorized")
    assert client.get("/projects", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    models = client.get(client.base_url.copy_with(raw_path=b"/v1/models"))
    assert (models.status_code, models.json()["error"]["code"]) == (401, "unauthorized")
    page = client.get(client.base_url.copy_with(raw_path=b"/"), headers={"Accept": "text/html"})
    assert page.status_code == 303
    assert page.headers["location"] == "/login"


def test_a_cookie_stands_for_the_token(client: httpx.Client) -> None:
    login = client.base_url.copy_with(raw_path=b"/login")
    refused(client.post(login, data={"token": "wrong"}), 401, "unauthorized")
    answer = client.post(login, data={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert client.get("/projects").status_code == 200
    assert client.post("/fine-tunes", json=BODY).status_code == 202
    client.post(client.base_url.copy_with(raw_path=b"/logout"))
    assert client.get("/projects").status_code == 401


def test_failures_of_one_client_count_for_no_other() -> None:
    assert _network("::ffff:192.0.2.1") == _network("192.0.2.1") == "192.0.2.1"
    assert _network("2001:db8::1") == _network("2001:db8::ffff") != _network("2001:db8:0:1::1")


def test_sessions_are_signed_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    access, now = Access(token=TOKEN), [1_000_000_000]
    monkeypatch.setattr("time.time", lambda: now[0])
    session = access.new_session()
    assert access.is_session(session)
    assert not Access(token="another").is_session(session)
    nonce, began, signature = session.split(".")
    now[0] += 10
    later = access.new_session().split(".")[1]
    for forged in (f"{nonce}.{later}.{signature}", f"{nonce}.{began}.", "", "..", f"{nonce}.{began}.é"):
        assert not access.is_session(forged)
    now[0] += 13 * 3600
    assert not access.is_session(session)
    assert not Access().is_session(Access().new_session())


def test_guessing_is_limited(client: httpx.Client) -> None:
    login = client.base_url.copy_with(raw_path=b"/login")
    codes = [client.post(login, data={"token": str(n)}).status_code for n in range(12)]
    assert codes == [401] * 10 + [429] * 2
    # A right guess is not found either; whoever has the token can still send it.
    assert client.post(login, data={"token": TOKEN}).status_code == 429
    assert client.get("/projects", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_odd_forms_and_cookies(client: httpx.Client) -> None:
    login = client.base_url.copy_with(raw_path=b"/login")
    assert client.post(login, content="&".join("a=1" for _ in range(6))).status_code == 401
    answer = client.post(login, data={"token": TOKEN}, headers={"Origin": str(login.copy_with(raw_path=b"/"))[:-1]})
    assert "Secure" not in answer.headers["set-cookie"]
    session = answer.headers["set-cookie"].partition(";")[0]
    # Another program of this host has set a cookie that is not valid.
    assert client.get("/projects", headers={"Cookie": f'theme={{"a": 1}}; {session}'}).status_code == 200
    secure = client.post(login, data={"token": TOKEN}, headers={"Origin": f"https://{login.netloc.decode()}"})
    assert "Secure" in secure.headers["set-cookie"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:{port}", 200),
        ("127.0.0.1", 200),
        ("[::1]:{port}", 200),
        ("evil.test", 400),
        ("127.0.0.1.evil.test:{port}", 400),
        ("localhost@evil.test", 400),
        ("", 400),
        ("lab.example", 200),
    ],
)
def test_foreign_hosts(make_client: Callable[..., httpx.Client], host: str, status: int) -> None:
    client = make_client(Access(names=("lab.example",)))
    answer = client.get("/projects", headers={"Host": host.format(port=client.base_url.port)})
    assert answer.status_code == status


def test_pages_of_other_sites_change_nothing(make_client: Callable[..., httpx.Client]) -> None:
    client = make_client()
    here = f"http://{client.base_url.netloc.decode()}"
    for headers in (
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": here},
    ):
        refused(client.post("/fine-tunes", json=BODY, headers=headers), 403, "cross_site")
    # A form of another site cannot send JSON, and what it can send is not taken.
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/fine-tunes", content=b'{"project_id": 123}', headers={"Content-Type": kind})
        refused(answer, 415, "unsupported_media_type")
    good = {"Origin": here, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/fine-tunes", json=BODY, headers=good).status_code == 202
    assert client.get("/projects", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_other_machines_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "lab.example"):
        with pytest.raises(ConfigError, match="LORAHYDRA_API_TOKEN"):
            Access(host=host)
        Access(host=host, token=TOKEN)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        Access(host=host)
    with pytest.raises(ConfigError, match="is empty"):
        Access(token="")
    assert TOKEN not in repr(Access(token=TOKEN))


def test_any_address_of_this_machine_but_no_foreign_name() -> None:
    access = Access(host="0.0.0.0", token=TOKEN)
    assert access.knows_host("192.168.0.7:8000")
    assert not access.knows_host("evil.test:8000")
