"""What the words of a command line come to mean."""

from pathlib import Path

import click
import pytest

from roost.cli.execs import without_dashes
from roost.cli.follow import Ending
from roost.cli.images import default_name
from roost.cli.jobs import exit_status, read_script, submission
from roost.errors import Invalid


def test_an_argument_that_names_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo ä")
    assert read_script(str(tmp_path / "job.sh")) == "echo ä"


@pytest.mark.parametrize(
    "text", ["echo hello", "", "x" * 100_000, "echo a\necho b", "/no/such/file", "uname", "node18", "x.sh arg", "a.b"]
)
def test_any_other_argument_is_the_script_itself(text: str) -> None:
    assert read_script(text) == text


@pytest.mark.parametrize("name", ["nofile.sh", "nofile.py", "./nofile", "scripts/nofile.sh"])
def test_the_name_of_a_file_that_is_not_there_is_not_taken_for_shell_text(name: str) -> None:
    with pytest.raises(Invalid, match=f"no such file here: {name}"):
        read_script(name)


def test_a_path_may_be_one_in_a_workspace(tmp_path: Path) -> None:
    assert read_script("./start.sh", has_files=True) == "./start.sh"
    with pytest.raises(Invalid, match="no such file"):
        read_script("start.sh", has_files=True)


def test_a_directory_is_not_a_script_file(tmp_path: Path) -> None:
    assert read_script(str(tmp_path)) == str(tmp_path)


def test_a_file_that_is_not_text_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(Invalid, match=r"not UTF-8 text \(byte 2\)"):
        read_script(str(tmp_path / "binary"))


def test_only_what_was_asked_for_is_sent() -> None:
    assert submission("true", ()) == {"script": "true", "type": "inline"}


def test_options_have_their_names_of_the_wire() -> None:
    options = {"name": "n", "timeout": 5, "image": "alpine", "memory": 64, "vcpus": 0.5, "disk": 3}
    options |= {"workspace": "w", "base": "b", "persistent": True}
    assert submission("true", ("A=1", "B=x=y", "C="), **options) == {
        "script": "true",
        "type": "inline",
        "name": "n",
        "timeout": 5,
        "rootfs_type": "alpine",
        "memory_mb": 64,
        "vcpus": 0.5,
        "disk_gb": 3,
        "workspace_id": "w",
        "base_workspace_id": "b",
        "persistent": True,
        "environment": {"A": "1", "B": "x=y", "C": ""},
    }


@pytest.mark.parametrize("pair", ["=1", ""])
def test_environment_without_a_name_is_refused(pair: str) -> None:
    with pytest.raises(Invalid, match="NAME=VALUE"):
        submission("true", (pair,))


def test_a_variable_without_a_value_has_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "a=b c")
    monkeypatch.delenv("NOT_OURS", raising=False)
    assert submission("true", ("OURS", "B=1"))["environment"] == {"OURS": "a=b c", "B": "1"}
    with pytest.raises(Invalid, match="no such variable here; set it, or give -e NOT_OURS=VALUE"):
        submission("true", ("NOT_OURS",))


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Ending("completed", 0, None), 0),
        (Ending("error", 3, None), 3),
        (Ending("error", 137, "timed out after 1 s"), 137),
        (Ending("error", 0, "the disk was lost"), 125),
        (Ending("error", None, "the node was lost"), 125),
    ],
)
def test_the_exit_status_is_the_scripts_and_never_success_without_one(ending: Ending, status: int) -> None:
    assert exit_status(ending) == status


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("alpine", "alpine"),
        ("alpine:3.20", "alpine"),
        ("docker://host:5000/team/tool:1", "tool"),
        ("ghcr.io/team/tool@sha256:abc", "tool"),
    ],
)
def test_an_image_is_named_after_the_last_part_of_its_reference(reference: str, name: str) -> None:
    assert default_name(reference) == name


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (("--", "ss", "-ltn"), ("ss", "-ltn")),
        (("ss", "-ltn"), ("ss", "-ltn")),
        (("--", "--"), ("--",)),
        (("sh", "-c", "x", "--"), ("sh", "-c", "x", "--")),
    ],
)
def test_dashes_before_the_command_of_exec_are_no_part_of_it(given: tuple[str, ...], command: tuple[str, ...]) -> None:
    assert without_dashes(given) == command


def test_dashes_without_a_command_are_refused() -> None:
    with pytest.raises(click.UsageError, match="nothing follows"):
        without_dashes(("--",))
