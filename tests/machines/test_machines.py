"""What `make test-machines` decides before a machine runs."""

from pathlib import Path

import pytest

from tests.machines import disk, machine, registries
from tests.machines.checks import CHECKS, sentence
from tests.machines.disk import System

SYSTEM = System(Path("/c/disk"), Path("/c/vmlinuz"), Path("/c/initrd"))


def test_a_system_is_known_by_what_it_is_made_of() -> None:
    origin = disk._origin("bookworm")  # pyright: ignore[reportPrivateUsage]
    digests = {disk._digest(origin, packages) for packages in (["a"], ["a", "b"], ["b"])}  # pyright: ignore[reportPrivateUsage]
    assert len(digests) == 3


def test_some_packages_are_left_for_make_run_to_install() -> None:
    packages = disk.run_packages()
    assert set(packages) >= disk.LEFT_OUT
    assert {"crun", "runc", "mmdebstrap"} <= set(packages)


def test_a_machine_writes_nothing_to_the_system_that_is_kept(tmp_path: Path) -> None:
    words = machine.qemu(SYSTEM, tmp_path, "tcg,thread=multi", 2222)
    [kept] = [word for word in words if word.startswith("file=/c/disk")]
    assert "snapshot=on" in kept
    assert f"user,id=n,ipv6=off,hostfwd=tcp:127.0.0.1:{2222}-:22" in words


def test_what_names_files_of_this_machine_is_not_handed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/opt/wheels")
    monkeypatch.setenv("UV_INDEX_URL", "https://index.test/simple")
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/opt/own.pem")
    told = registries.variables()
    assert "PIP_FIND_LINKS" not in told
    assert told["UV_INDEX_URL"] == "https://index.test/simple"
    assert told["https_proxy"] == "http://proxy.test:3128"
    assert told["SSL_CERT_FILE"] == registries.BUNDLE


def test_each_check_says_what_it_shows() -> None:
    names = {sentence(one) for checks in CHECKS.values() for one in checks}
    assert {"memory is limited", "a job outlives each program", "nothing is left"} <= names
