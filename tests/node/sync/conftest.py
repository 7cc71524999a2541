"""Stores to test against: a directory, a real S3 gateway where Ceph is installed, and Azurite where npm reaches it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.node.sync import Options, Store, Vault, open_store
from tests.node.sync import azurite, radosgw
from tests.node.sync.bucket import create_bucket


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if radosgw.missing():
        pytest.skip(f"needs {', '.join(radosgw.missing())}: scripts/system-packages --test installs them")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "radosgw"
    shared.mkdir(exist_ok=True)
    with radosgw.gateway(shared) as found:
        yield found


def s3_options(endpoint: str, **more: object) -> Options:
    keys = {"endpoint": endpoint, "access_key": radosgw.ACCESS, "secret_key": radosgw.SECRET}
    return Options(**{**keys, **more})  # type: ignore[arg-type]


@pytest.fixture
def bucket(endpoint: str) -> str:
    name = f"test-{secrets.token_hex(6)}"
    create_bucket(endpoint, name, radosgw.ACCESS, radosgw.SECRET)
    return name


@pytest.fixture(scope="session")
def blob_service() -> Iterator[str]:
    try:
        with azurite.service() as endpoint:
            yield endpoint
    except azurite.Missing as why:
        pytest.skip(f"needs Azurite: {why}")


@pytest.fixture(params=["directory", "S3", "Azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(f"file://{tmp_path}/store")
    if request.param == "Azure":
        endpoint, container = request.getfixturevalue("blob_service"), f"test-{secrets.token_hex(6)}"
        azurite.create_container(endpoint, container)
        return open_store(f"az://{container}/prefix", azurite.options(endpoint))
    name = request.getfixturevalue("bucket")
    return open_store(f"s3://{name}/prefix", s3_options(request.getfixturevalue("endpoint")))


@pytest.fixture
def local(tmp_path: Path) -> Vault:
    return Vault(open_store(f"file://{tmp_path}/store"), "account")
