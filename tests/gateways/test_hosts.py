"""Which host names are ours, what may be chosen, and how addresses are told."""

from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.gateways.hosts import Hosts, Name, chosen, hosts_of, is_prefix, is_subdomain, made_up
from roost.settings import ServeSettings

HOSTS = Hosts(("apps.localhost", "example.org"))


def settings(**more: object) -> ServeSettings:
    return ServeSettings(Path("/s"), Path("/n"), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["", ".", ".:80", ":8485", ":"])
@pytest.mark.parametrize("host", ["shop.apps.localhost", "SHOP.Apps.LOCALHOST"])
def test_case_port_and_final_dot_do_not_matter(host: str, end: str) -> None:
    assert HOSTS.name(host + end) == Name("shop", "apps.localhost")


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "localhost", "apps.localhost", ".apps.localhost", "a.b.apps.localhost", "shop.apps.localhost.evil.org",
        "shopapps.localhost", "[::1]", "[::1]:80", "shop.apps.localhost:80:80", "shop.apps.localhost:x",
        "a" * 400 + ".apps.localhost",
    ],
)  # fmt: skip
def test_other_names_are_not_ours(host: str) -> None:
    assert HOSTS.name(host) is None


def test_several_domains_are_served_at_once() -> None:
    assert HOSTS.name("shop.example.org") == Name("shop", "example.org")


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({}, "http://a.apps.localhost:8485"),
        ({"gateway": "0.0.0.0:80"}, "http://a.apps.localhost"),
        ({"gateway_tls": "0.0.0.0:443"}, "https://a.apps.localhost"),
        ({"gateway_tls": "[::]:8443"}, "https://a.apps.localhost:8443"),
        ({"gateway_url": "https"}, "https://a.apps.localhost"),
        ({"gateway_url": "https:8443"}, "https://a.apps.localhost:8443"),
        ({"gateway_url": "http:443"}, "http://a.apps.localhost:443"),
        ({"domains": ("Example.ORG.", "b.org")}, "http://a.example.org:8485"),
    ],
)
def test_addresses_are_told_as_the_world_reaches_them(more: dict[str, object], url: str) -> None:
    assert hosts_of(settings(**more)).url("a") == url


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"domains": ()}, "--domain"),
        ({"domains": ("no_domain",)}, "--domain 'no_domain'"),
        ({"domains": ("a..b",)}, "not a domain name"),
        ({"domains": ("x" * 64 + ".org",)}, "not a domain name"),
        ({"gateway_url": "ftp"}, r"SCHEME\[:PORT\]"),
        ({"gateway_url": "https://x"}, r"SCHEME\[:PORT\]"),
    ],
)
def test_settings_that_are_no_domains_are_refused(more: dict[str, object], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        hosts_of(settings(**more))


def test_documented_domains_mean_the_first_configured_one() -> None:
    for told in ("apps.magpiecloud.com", "app.lfg.run", "APPS.magpiecloud.com.", None, "apps.localhost"):
        assert HOSTS.domain(told) == "apps.localhost"
    assert HOSTS.domain("Example.org") == "example.org"
    assert Hosts(("apps.localhost", "app.lfg.run")).domain("app.lfg.run") == "app.lfg.run"
    with pytest.raises(Invalid, match=r"'evil.org' is not served here; configured are apps.localhost, example.org"):
        HOSTS.domain("evil.org")


@pytest.mark.parametrize("label", ["a", "7", "my-shop", "lfg-0123456789ab", "preview-0123456789abcdef0123", "x" * 63])
def test_labels_of_dns_may_be_chosen(label: str) -> None:
    assert chosen(label) == label
    assert chosen(label.upper()) == label


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", "DNS label"), ("-a", "DNS label"), ("a-", "DNS label"), ("a.b", "DNS label"), ("a_b", "DNS label"),
        ("ü", "DNS label"), ("a\n", "DNS label"), ("x" * 64, "DNS label"), ("www", "operator"), ("API", "operator"),
        ("ns1", "operator"), ("mx20", "operator"), ("0123456789ab", "12 hex"), ("0123456789AB", "12 hex"),
        ("eab1e214-39c", "request id"), ("xn--bcher-kva", "RFC 5891"), ("target-0123456789ab", "name none"),
    ],
)  # fmt: skip
def test_labels_that_nobody_may_have_are_refused_with_the_reason(label: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        chosen(label)


def test_labels_that_are_made_up_are_none_of_the_other_shapes() -> None:
    label = made_up()
    assert label != made_up()
    assert not is_prefix(label) and not is_subdomain(label)
