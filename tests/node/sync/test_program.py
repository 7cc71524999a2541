"""`python -m roost.node.sync`: one JSON request in, lines of JSON out."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.node.sync.trees import snapshot

PROGRAM = [sys.executable, "-m", "roost.node.sync"]


class Program:
    def __init__(self, where: dict[str, Any]) -> None:
        self.where = where

    def start(self, command: str, **request: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([*PROGRAM, command], text=True, **pipes)
        assert process.stdin
        process.stdin.write(json.dumps(self.where | request) + "\n")
        process.stdin.flush()
        return process

    def run(self, command: str, **request: Any) -> dict[str, Any]:
        process = self.start(command, **request)
        out, errors = process.communicate(timeout=60)
        assert errors == ""
        return json.loads(out.splitlines()[-1]) | {"status": process.returncode}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    key = base64.b64encode(b"k" * 32).decode()
    return Program({"store": f"file://{tmp_path}/store", "account": "a", "key": key, "cache": f"{tmp_path}/index"})


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "file").write_text("content")
    return tmp_path / "layer"


def test_save_restore_check_and_collect(program: Program, layer: Path, tmp_path: Path) -> None:
    layers = [{"path": str(layer), "first_id": 0}]
    saved = program.run("save", layers=layers, image="image", job="job")
    assert saved["status"] == 0
    made = saved["result"]["revision"]
    assert (made["entries"], made["size"], made["parent"], made["job"]) == (2, 7, None, "job")
    (tmp_path / "out").mkdir()
    assert program.run("restore", revision=made["id"], target=f"{tmp_path}/out", first_id=0)["status"] == 0
    assert snapshot(tmp_path / "out") == snapshot(layer)
    assert program.run("check", read_data=True)["result"] == {"problems": []}
    assert program.run("collect", heads=[made["id"]], grace=0)["result"]["live_revisions"] == 1
    assert program.run("check", heads=[made["id"], "gone"])["result"]["problems"][0]["subject"] == "gone"


def test_a_live_layer_is_looked_at_again_once_it_is_frozen(program: Program, layer: Path, tmp_path: Path) -> None:
    live = {"path": str(layer), "first_id": 0, "live": True, "memory": f"{tmp_path}/memory"}
    process = program.start("save", layers=[live], image="image", job="job")
    assert process.stdin and process.stdout
    while json.loads(process.stdout.readline())["event"] != "first_pass":
        pass
    (layer / "file").write_text("changed before it froze")
    process.stdin.write("frozen\n")
    process.stdin.flush()
    while json.loads(process.stdout.readline())["event"] != "second_pass":
        pass
    out, _ = process.communicate(timeout=60)
    made = json.loads(out.splitlines()[-1])["result"]["revision"]
    assert made["size"] == len("changed before it froze")
    assert (tmp_path / "memory").exists()


def test_a_save_whose_owner_died_ends_without_a_revision(program: Program, layer: Path) -> None:
    live = {"path": str(layer), "first_id": 0, "live": True}
    answer = program.run("save", layers=[live], image="image", job="job")
    assert (answer["status"], answer["event"], answer["condition"]) == (1, "error", "Invalid")
    assert program.run("check")["result"] == {"problems": []}


@pytest.mark.parametrize(
    ("command", "request_", "condition"),
    [
        ("restore", {"revision": "missing", "target": "/nowhere", "first_id": 0}, "NotFound"),
        ("restore", {"revision": "../x", "target": "/nowhere", "first_id": 0}, "Invalid"),
        ("save", {"layers": [], "image": "i"}, "Invalid"),
        ("collect", {"heads": [], "surplus": 1}, "Invalid"),
        ("check", {"account": "../other"}, "Invalid"),
        ("check", {"key": "c2hvcnQ="}, "Invalid"),
        ("check", {"store": "ftp://x"}, "Invalid"),
    ],
)
def test_requests_that_make_no_sense_are_answered(
    program: Program, command: str, request_: dict[str, Any], condition: str
) -> None:
    answer = program.run(command, **request_)
    assert (answer["status"], answer["event"], answer["condition"]) == (1, "error", condition)
