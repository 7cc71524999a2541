"""One contract for every kind of object store, and what it does about servers and networks that fail."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roost.errors import Conflict, Invalid, NotFound
from roost.node.sync import Layer, Store, Vault, check, open_store, restore, save
from roost.node.sync.store import PAGE, StoreUnavailable
from tests.node.sync.conftest import s3_options
from tests.node.sync.proxy import Proxy
from tests.node.sync.trees import snapshot


def test_what_was_created_is_read_whole_and_in_ranges(store: Store) -> None:
    store.create("a/b/one", b"0123456789")
    assert store.read("a/b/one", 10) == b"0123456789"
    assert store.read_range("a/b/one", 3, 4) == b"3456"
    assert store.size("a/b/one") == 10


def test_a_name_is_given_once(store: Store) -> None:
    store.create("one", b"first")
    with pytest.raises(Conflict):
        store.create("one", b"other")
    with pytest.raises(Conflict):
        store.create("one", b"longer than it")
    assert store.read("one", 100) == b"first"


def test_creating_the_same_again_counts_as_done(store: Store) -> None:
    store.create("one", b"same")
    store.create("one", b"same")


def test_of_many_creators_one_wins(store: Store) -> None:
    def create(number: int) -> bool:
        try:
            store.create("contested", str(number).encode())
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


def test_what_is_missing_or_too_short_is_not_found(store: Store) -> None:
    store.create("short", b"12345")
    with pytest.raises(NotFound):
        store.read("nothing", 10)
    with pytest.raises(NotFound):
        store.size("nothing")
    with pytest.raises(NotFound):
        store.read_range("nothing", 0, 1)
    with pytest.raises((NotFound, StoreUnavailable)):
        store.read_range("short", 2, 10)


def test_an_object_larger_than_allowed_is_not_read(store: Store) -> None:
    store.create("large", bytes(1000))
    with pytest.raises(StoreUnavailable):
        store.read("large", 999)


def test_listing_is_whole_beyond_one_page_and_stays_below_the_prefix(store: Store) -> None:
    count = PAGE + 30
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.create(f"list/{number:05}", b"x"), range(count)))
    store.create("listless", b"x")
    listed = sorted(one.name for one in store.list("list"))
    assert listed == [f"list/{number:05}" for number in range(count)]
    assert all(one.size == 1 and one.modified > 1.7e9 for one in store.list("list"))
    assert list(store.list("empty")) == []


def test_deleting_is_done_once_and_may_be_repeated(store: Store) -> None:
    store.create("one", b"x")
    store.delete("one")
    store.delete("one")
    with pytest.raises(NotFound):
        store.read("one", 10)


def test_a_tree_survives_a_store(store: Store, layer: Path, tmp_path: Path) -> None:
    vault = Vault(store, "account", b"k" * 32)
    made = save(vault, None, [Layer(layer, 0)], "image", "job")
    target = tmp_path / "restored"
    target.mkdir()
    restore(vault, made, target, 0)
    assert snapshot(target) == snapshot(layer)
    assert check(vault, read_data=True) == []


@pytest.mark.parametrize("url", ["ftp://x/y", "file://relative", "s3:///prefix", "nothing"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Invalid):
        open_store(url)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    layer = tmp_path / "layer"
    (layer / "directory").mkdir(parents=True)
    (layer / "directory" / "large").write_bytes(bytes(range(256)) * 8192)
    for number in range(50):
        (layer / "directory" / f"small{number}").write_text(f"file {number}")
    return layer


FAULTS = ["slow down", "too many", "error", "refuse", "lost", "cut", "slow"]


@pytest.mark.parametrize("what", FAULTS)
def test_a_save_and_a_restore_get_through(what: str, endpoint: str, bucket: str, layer: Path, tmp_path: Path) -> None:
    """Every other request fails in this way, whatever it asks."""
    slow = what == "slow"
    every = 4 if slow else 2
    with Proxy(endpoint, lambda _, number: what if number % every == 0 else None) as proxy:
        store = open_store(f"s3://{bucket}/x", s3_options(proxy.endpoint, timeout=1.0 if slow else 20.0))
        vault = Vault(store, "account")
        made = save(vault, None, [Layer(layer, 0)], "image", "job")
        target = tmp_path / "restored"
        target.mkdir()
        restore(vault, made, target, 0)
        assert {method for method, fault in proxy.seen if fault} >= {"GET", "PUT"}
    assert snapshot(target) == snapshot(layer)
    direct = Vault(open_store(f"s3://{bucket}/x", s3_options(endpoint)), "account")
    assert check(direct, read_data=True) == []
    assert direct.names("revision") == [made.id]


def test_a_lost_answer_to_a_write_is_success_only_for_what_we_wrote(endpoint: str, bucket: str) -> None:
    with Proxy(endpoint, lambda method, number: "lost" if (method, number) == ("PUT", 0) else None) as proxy:
        store = open_store(f"s3://{bucket}/x", s3_options(proxy.endpoint))
        store.create("mine", b"mine")
        assert proxy.seen[0] == ("PUT", "lost")
        assert store.retried == 1
        assert store.read("mine", 10) == b"mine"


def test_a_server_that_never_recovers_ends_the_attempt(endpoint: str, bucket: str) -> None:
    with Proxy(endpoint, lambda *_: "slow down") as proxy:
        store = open_store(f"s3://{bucket}/x", s3_options(proxy.endpoint, attempts=3))
        with pytest.raises(StoreUnavailable, match="3 times"):
            store.create("one", b"x")
        assert len(proxy.seen) == 3


def test_wrong_keys_and_a_missing_bucket_are_told_at_once(endpoint: str, bucket: str) -> None:
    refused = open_store(f"s3://{bucket}/x", s3_options(endpoint, secret_key="wrong"))
    with pytest.raises(StoreUnavailable, match=r"keys|refuses"):
        refused.create("one", b"x")
    nowhere = open_store("s3://no-such-bucket-here/x", s3_options(endpoint))
    with pytest.raises((NotFound, StoreUnavailable)):
        nowhere.create("one", b"x")
    assert refused.retried == nowhere.retried == 0
