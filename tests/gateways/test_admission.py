"""Who is let through, and that what lets through never reaches a sandbox."""

import http.cookies
import urllib.parse

import pytest

from roost.gateways import admission
from roost.gateways.admission import Access, Admission
from roost.gateways.http.request import Origin, Request, RequestReader
from roost.gateways.http.routing import Denial, Passed

HOST = "shop.apps.localhost"
DOOR = Admission(b"k" * 32)
TOKEN, TOKEN_HASH = admission.new_token()
BY_TOKEN = Access("token", TOKEN_HASH, 1)
SIGNED = Access("signed", None, 1)
BROWSER = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate"}


def asks(target: str = "/", method: str = "GET", origin: Origin | None = None, **headers: str) -> Request:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return RequestReader(origin or Origin("127.0.0.1")).read(("\r\n".join(lines) + "\r\n\r\n").encode())


def link(access: Access = SIGNED, seconds: int = 60, host: str = HOST) -> str:
    """The target of a signed link."""
    signed = urllib.parse.urlsplit(DOOR.sign(f"http://{host}", host, access, admission.expiry(60) - 60 + seconds))
    return f"{signed.path}?{signed.query}"


def passed(answer: Passed | Denial) -> Passed:
    assert isinstance(answer, Passed), answer
    return answer


def denied(answer: Passed | Denial) -> str:
    assert isinstance(answer, Denial) and answer.status == 401, answer
    return answer.text


def welcomed(answer: Passed | Denial) -> dict[bytes, bytes]:
    assert isinstance(answer, Denial) and answer.status == 302, answer
    return dict(answer.headers)


def test_a_public_address_lets_everybody_in_with_all_they_bring() -> None:
    request = asks("/x?a=1", Cookie="a=b", X_Other="1")
    answer = passed(DOOR.decide(Access(), HOST, request))
    assert answer.target == request.target
    assert answer.headers is request.headers


def test_a_token_is_taken_from_header_or_cookie_and_taken_off() -> None:
    for shown in ({"X_Roost_Token": TOKEN}, {"Cookie": f"a=b; roost_access={TOKEN}; c=d"}):
        answer = passed(DOOR.decide(BY_TOKEN, HOST, asks("/x?a=1", X_Other="1", **shown)))
        assert TOKEN.encode() not in b"".join(value for _, value in answer.headers)
        assert (b"x-other", b"1") in answer.headers
        assert answer.target == b"/x?a=1"
        if "Cookie" in shown:
            assert (b"cookie", b"a=b; c=d") in answer.headers


@pytest.mark.parametrize(
    "shown",
    [
        {}, {"X_Roost_Token": ""}, {"X_Roost_Token": "wrong"}, {"X_Roost_Token": "x" * 5000}, {"X_Roost_Token": "ü"},
        {"Cookie": "roost_access="}, {"Cookie": "roost_access=wrong"}, {"Cookie": f"other={TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}"},
    ],
)  # fmt: skip
def test_without_the_token_nobody_passes_and_is_told_how(shown: dict[str, str]) -> None:
    assert "X-Roost-Token" in denied(DOOR.decide(BY_TOKEN, HOST, asks(**shown)))


def test_a_cookie_that_another_sandbox_planted_does_not_hide_the_right_one() -> None:
    request = asks(Cookie=f"roost_access=planted; roost_access={TOKEN}")
    assert passed(DOOR.decide(BY_TOKEN, HOST, request)).headers == []


def test_a_token_without_a_stored_hash_opens_nothing() -> None:
    denied(DOOR.decide(Access("token", None, 1), HOST, asks(X_Roost_Token=TOKEN)))


def test_a_program_with_a_signed_link_is_served_at_once() -> None:
    answer = passed(DOOR.decide(SIGNED, HOST, asks(link() + "&page=2")))
    assert answer.target == b"/?page=2"
    assert passed(DOOR.decide(SIGNED, HOST, asks("/x?a=1&" + link()[2:]))).target == b"/x?a=1"


def test_a_browser_with_a_signed_link_gets_a_cookie_and_a_clean_address() -> None:
    answer = welcomed(DOOR.decide(SIGNED, HOST, asks("/x?a=1&" + link()[2:], **BROWSER)))
    assert answer[b"location"] == b"/x?a=1"
    jar = http.cookies.SimpleCookie(answer[b"set-cookie"].decode())
    cookie = jar["roost_access"]
    assert (cookie["httponly"], cookie["samesite"], cookie["domain"], cookie["secure"]) == (True, "Lax", "", "")
    assert 0 < int(cookie["max-age"]) <= 60
    back = asks("/x?a=1", Cookie=f"roost_access={cookie.value}", **BROWSER)
    assert passed(DOOR.decide(SIGNED, HOST, back)).target == b"/x?a=1"


@pytest.mark.parametrize(
    ("origin", "secure"),
    [(Origin("1.2.3.4", secure=True), True), (Origin("::1", trusted=True), True), (Origin("1.2.3.4"), False)],
)
def test_the_cookie_is_for_tls_alone_where_the_visitor_came_by_tls(origin: Origin, secure: bool) -> None:
    request = asks(link(), origin=origin, X_Forwarded_Proto="https", **BROWSER)
    assert welcomed(DOOR.decide(SIGNED, HOST, request))[b"set-cookie"].endswith(b"Secure") is secure


def test_a_redirect_never_leads_to_another_host() -> None:
    for path in ("//evil.org/x", "/\\evil.org"):
        answer = welcomed(DOOR.decide(SIGNED, HOST, asks(path + "?" + link()[2:], **BROWSER)))
        place = urllib.parse.urljoin(f"http://{HOST}/", answer[b"location"].decode())
        assert urllib.parse.urlsplit(place).hostname == HOST


def test_links_do_not_open_other_hosts_later_times_or_access_that_was_closed_meanwhile() -> None:
    good = link()
    expires = good.partition("roost_expires=")[2].partition("&")[0]
    for bad in (
        link(seconds=-1),
        link(host="other.apps.localhost"),
        link(Access("signed", None, 2)),
        good.replace(expires, str(int(expires) + 1)),
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good.replace("roost_expires", "expires"),
        "/?roost_expires=&roost_signature=",
        f"/?roost_expires={'9' * 40}&roost_signature=x",
        "/?roost_expires=%C2%B2&roost_signature=%00",
        "/",
    ):
        assert "signed link" in denied(DOOR.decide(SIGNED, HOST, asks(bad)))
    passed(DOOR.decide(SIGNED, HOST, asks(good)))


def test_a_link_does_not_stand_for_a_token_nor_a_token_for_a_link() -> None:
    denied(DOOR.decide(BY_TOKEN, HOST, asks(link(BY_TOKEN))))
    denied(DOOR.decide(SIGNED, HOST, asks(X_Roost_Token=TOKEN)))


def test_another_instance_does_not_accept_our_links() -> None:
    denied(Admission(b"o" * 32).decide(SIGNED, HOST, asks(link())))
