"""TLS of the gateway: certificates from files, and how connections begin. Clients: Python's, openssl's and curl."""

import asyncio
import contextlib
import datetime
import random
import socket
import ssl
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from roost.errors import Invalid
from roost.gateways.tls.certificates import Certificate, CertificateFiles, certificate_of
from roost.gateways.tls.gateway import Certificates
from roost.gateways.tls.hello import MAX_HELLO, ClientHello, NotTls, read_hello
from roost.gateways.tls.listener import Contexts
from roost.settings import ServeSettings
from tests.gateways.tls_world import DAY, NOW, Lab, ask, pem_of, program, serving, trusting

DOMAINS = ("apps.localhost",)


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def always(certificate: Certificate) -> Contexts:
    async def contexts(hello: ClientHello) -> ssl.SSLContext:
        return certificate.context

    return contexts


def a_hello(host: str | None, *protocols: str) -> bytes:
    """What Python's client says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# ---- what a client says first -------------------------------------------------------------------------------


def test_a_hello_tells_the_name_and_the_protocols() -> None:
    assert read_hello(a_hello("App.Apps.Localhost", "h2", "http/1.1")) == ClientHello(
        "app.apps.localhost", (b"h2", b"http/1.1")
    )
    assert read_hello(a_hello(None)) == ClientHello(None)


def test_a_hello_that_is_not_complete_waits_for_more() -> None:
    hello = a_hello("a.apps.localhost", "h2")
    assert all(read_hello(hello[:length]) is None for length in range(len(hello)))


def test_a_hello_in_several_records_is_read() -> None:
    hello = a_hello("a.apps.localhost", "h2")
    body = hello[5:]
    pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
    split = b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    assert read_hello(split) == read_hello(hello)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\x00\x01\x01" * (MAX_HELLO // 6 + 1),
    ],
)
def test_what_is_no_hello_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(NotTls):
        read_hello(data)


def test_no_changed_byte_of_a_hello_breaks_the_reader() -> None:
    hello = a_hello("a.apps.localhost", "h2", "http/1.1")
    for at in range(len(hello)):
        for value in (0, 1, 255):
            try:
                read_hello(hello[:at] + bytes([value]) + hello[at + 1 :])
            except NotTls:
                continue


# ---- files ---------------------------------------------------------------------------------------------------


def test_a_key_of_another_certificate_is_refused_with_the_cure(lab: Lab) -> None:
    pair, other = lab.files("*.apps.localhost"), lab.files("*.apps.localhost", name="other")
    with pytest.raises(Invalid, match=r"key does not belong to the first certificate .*must come first"):
        CertificateFiles(pair.chain, other.key, DOMAINS)


def test_an_expired_certificate_is_refused_with_its_date(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost", begins=NOW - 9 * DAY, ends=NOW - DAY)
    with pytest.raises(Invalid, match=rf"ended on {(NOW - DAY):%Y-%m-%d}.*renew it"):
        CertificateFiles(pair.chain, pair.key, DOMAINS)


def test_a_certificate_of_the_future_is_refused(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost", begins=NOW + DAY)
    with pytest.raises(Invalid, match="clock"):
        CertificateFiles(pair.chain, pair.key, DOMAINS)


@pytest.mark.parametrize(("content", "says"), [(b"", "no certificate"), (b"junk", "no certificate")])
def test_a_file_without_a_certificate_is_refused(lab: Lab, content: bytes, says: str) -> None:
    pair = lab.files("*.apps.localhost")
    pair.chain.write_bytes(content)
    with pytest.raises(Invalid, match=says):
        CertificateFiles(pair.chain, pair.key, DOMAINS)


@pytest.mark.filterwarnings("ignore")
def test_no_damage_to_a_certificate_breaks_its_reader(lab: Lab) -> None:
    chain, key = lab.issue("*.apps.localhost")
    good = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)
    chance = random.Random(1)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(good)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        pem = ssl.DER_cert_to_PEM_cert(bytes(damaged)).encode()
        try:
            certificate_of(pem, key, "a file")
        except Invalid:
            refused += 1
    assert 0 < refused < 2000


def test_a_missing_file_is_named(lab: Lab) -> None:
    with pytest.raises(Invalid, match=r"nowhere.pem cannot be read: No such file"):
        CertificateFiles(lab.place / "nowhere.pem", None, DOMAINS)


def test_a_huge_file_is_not_read_whole(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    with pair.chain.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(Invalid, match="larger than"):
        CertificateFiles(pair.chain, pair.key, DOMAINS)


def test_a_key_with_a_password_is_refused_with_the_cure(lab: Lab) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    pair = lab.files("*.apps.localhost")
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    pair.key.write_bytes(locked)
    with pytest.raises(Invalid, match="openssl pkey"):
        CertificateFiles(pair.chain, pair.key, DOMAINS)
    assert b"secret" not in pem_of(key)


def test_chain_and_key_may_be_one_file(lab: Lab) -> None:
    chain, key = lab.issue("*.apps.localhost")
    both = lab.place / "both.pem"
    both.write_bytes(key + chain)
    assert CertificateFiles(both, None, DOMAINS).certificate.covers("a.apps.localhost")


def test_a_wildcard_covers_one_label(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost", "other.example")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    names = ("a.apps.localhost", "apps.localhost", "a.b.apps.localhost", "other.example", "x.other.example")
    assert [certificate.covers(name) for name in names] == [True, False, False, True, False]


def test_a_certificate_that_lacks_a_domain_is_taken_with_a_warning(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    with capture_logs() as said:
        CertificateFiles(pair.chain, pair.key, ("apps.localhost", "apps.example.org"))
    assert [event["needed"] for event in said if event["event"] == "certificate.uncovered"] == ["*.apps.example.org"]


async def test_changed_files_serve_new_connections(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    files = CertificateFiles(pair.chain, pair.key, DOMAINS)

    async def contexts(hello: ClientHello) -> ssl.SSLContext:
        return files.certificate.context

    async def serial(port: int) -> str:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(lab), server_hostname="a.apps.localhost"
        )
        try:
            return writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        finally:
            writer.close()

    async with serving(contexts) as port:
        first = await serial(port)
        files.refresh()
        assert await serial(port) == first
        lab.replace(pair, "*.apps.localhost")
        files.refresh()
        assert await serial(port) != first


def test_files_that_become_unusable_leave_the_last_good_ones(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    files = CertificateFiles(pair.chain, pair.key, DOMAINS)
    good = files.certificate
    key = pair.key.read_bytes()
    lab.replace(pair, "*.apps.localhost", ends=NOW - datetime.timedelta(hours=1))
    files.refresh()
    assert files.certificate is good
    lab.replace(pair, "*.apps.localhost")
    whole = pair.key.read_bytes()
    pair.key.write_bytes(key)  # half of a renewal
    files.refresh()
    assert files.certificate is good
    pair.key.unlink()
    files.refresh()
    assert files.certificate is good
    pair.key.write_bytes(whole)
    files.refresh()
    assert files.certificate is not good


def test_tls_without_any_certificate_is_refused_with_the_cure(tmp_path: Path) -> None:
    async def known(host: str) -> bool:
        return True

    with pytest.raises(Invalid, match="--certificate"):
        Certificates(ServeSettings(tmp_path, tmp_path / "node.sock"), known)
    with pytest.raises(Invalid, match="https://"):
        Certificates(ServeSettings(tmp_path, tmp_path / "node.sock", acme="http://authority.example"), known)


# ---- connections ---------------------------------------------------------------------------------------------


async def test_a_client_gets_the_protocol_that_both_prefer(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        for offered, agreed in ((("http/1.1", "h2"), b"h2"), (("http/1.1",), b"http/1.1"), ((), b"nothing")):
            answer = await ask(port, "a.apps.localhost", trusting(lab, *offered))
            assert answer == agreed + b" from 127.0.0.1"


async def test_openssl_gets_tls_1_3_and_1_2_and_nothing_older(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "a.apps.localhost"]
        words += ["-CAfile", str(lab.root), "-verify_return_error", "-alpn", "h2,http/1.1"]
        for option, version in (("-tls1_3", b"TLSv1.3"), ("-tls1_2", b"TLSv1.2")):
            status, printed = await program(*words, option)
            assert status == 0 and version in printed and b"ALPN protocol: h2" in printed
        for option in ("-tls1_1", "-tls1"):
            status, _ = await program(*words, option, "-cipher", "ALL:@SECLEVEL=0")
            assert status != 0
        status, _ = await program(*words, "-tls1_2", "-cipher", "AES128-SHA:AES256-GCM-SHA384")
        assert status != 0


async def test_a_session_is_resumed(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    kept = lab.place / "session"
    async with serving(always(certificate)) as port:
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "a.apps.localhost", "-tls1_2"]
        await program(*words, "-sess_out", str(kept))
        _, printed = await program(*words, "-sess_in", str(kept))
        assert b"Reused" in printed


async def test_a_name_without_a_certificate_is_told_so(lab: Lab) -> None:
    async def nothing(hello: ClientHello) -> None:
        return None

    async with serving(nothing) as port:
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized_name"):
            await ask(port, "a.apps.localhost", trusting(lab))


async def test_plain_http_on_the_tls_port_is_told_to_use_https(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        status, printed = await program("curl", "-s", f"http://127.0.0.1:{port}/")
        assert status == 0 and b"use https" in printed


async def test_a_hello_that_comes_in_single_bytes_is_served(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    context = trusting(lab, "h2")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.apps.localhost")
    async with serving(always(certificate)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                incoming.write(await asyncio.wait_for(reader.read(65536), 10))
        assert client.selected_alpn_protocol() == "h2"
        writer.close()


async def test_silent_connections_do_not_keep_others_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.gateways.tls.listener.MOST_HANDSHAKES", 20)
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        assert await ask(port, "a.apps.localhost", trusting(lab)) == b"nothing from 127.0.0.1"
        assert await asyncio.wait_for(silent[0][0].read(), 10) == b""  # the oldest had to go
        for _, writer in silent:
            writer.close()


async def test_a_connection_that_says_nothing_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.gateways.tls.listener.HELLO_SECONDS", 0.05)
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        for first in (b"", b"\x16", a_hello("a.apps.localhost")[:100]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()


async def test_a_burst_of_clients_waits_and_is_served(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.gateways.tls.listener.MOST_HANDSHAKES", 10)
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        trust = trusting(lab)
        answers = await asyncio.gather(*(ask(port, "a.apps.localhost", trust) for _ in range(150)))
        assert len(answers) == 150


async def test_clients_that_stop_within_the_handshake_do_not_keep_others_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.gateways.tls.listener.MOST_HANDSHAKES", 10)
    monkeypatch.setattr("roost.gateways.tls.listener.SLOW_SECONDS", 0.05)
    pair = lab.files("*.apps.localhost")
    certificate = CertificateFiles(pair.chain, pair.key, DOMAINS).certificate
    async with serving(always(certificate)) as port:
        writers: list[asyncio.StreamWriter] = []
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(a_hello("a.apps.localhost"))
            writers.append(writer)
        assert await ask(port, "a.apps.localhost", trusting(lab)) == b"nothing from 127.0.0.1"
        for writer in writers:
            writer.close()
