"""Saves, restores and collections of one account at the same time."""

import random
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from roost.errors import Conflict
from roost.node.sync import Layer, Revision, Vault, check, collect, open_store, restore, save
from tests.node.sync.test_program import PROGRAM, Program
from tests.node.sync.trees import snapshot

GRACE = 2.0  # seconds; directories tell whole ones of their files' ages, or better


def test_programs_share_one_index_file(tmp_path: Path) -> None:
    program = Program({"store": f"file://{tmp_path}/store", "account": "a", "cache": f"{tmp_path}/index"})
    assert PROGRAM
    for number in range(6):
        layer = tmp_path / f"layer{number}"
        layer.mkdir()
        for file in range(200):
            (layer / f"file{file}").write_text(f"{file} {number if file % 2 else 0}")
    running: list[subprocess.Popen[str]] = [
        program.start("save", layers=[{"path": f"{tmp_path}/layer{number}", "first_id": 0}], image="i", job="j")
        for number in range(6)
    ]
    for process in running:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    vault = Vault(open_store(f"file://{tmp_path}/store"), "a")
    assert len(vault.names("revision")) == 6
    assert check(vault, read_data=True) == []
    assert check(vault, read_data=True, cache=tmp_path / "index") == []


def test_an_index_file_that_was_torn_is_made_anew(local: Vault, tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    cache = tmp_path / "index"
    cache.write_bytes(b"this was never a database" * 1000)
    made = save(local, None, [Layer(tmp_path / "layer", 0)], "image", "job", cache=cache)
    assert check(local, [made.id], cache=cache) == []


class Workspace:
    """Saves again and again: files come, go and come back, so it builds on what others forget."""

    def __init__(self, vault: Vault, work: Path, number: int) -> None:
        self.vault = vault
        self.layer = work / f"layer{number}"
        self.layer.mkdir()
        self.chance = random.Random(number)
        self.head: Revision | None = None
        self.conflicts = 0
        self.saves = 0

    def save(self) -> None:
        for _ in range(3):
            name = f"file{self.chance.randrange(12)}"
            content = random.Random(self.chance.randrange(20)).randbytes(100_000)
            (self.layer / name).write_bytes(content)
        for path in list(self.layer.iterdir())[: self.chance.randrange(3)]:
            path.unlink()
        try:
            parent = self.head.id if self.head else None
            self.head = save(self.vault, None, [Layer(self.layer, 0)], "image", "job", parent=parent)
            self.saves += 1
        except Conflict:
            self.conflicts += 1


@pytest.mark.slow
def test_collections_never_take_what_saves_build_on(local: Vault, tmp_path: Path) -> None:
    workspaces = [Workspace(local, tmp_path, number) for number in range(3)]
    until = time.monotonic() + 12
    over = threading.Event()
    collections: list[int] = []

    def saving(workspace: Workspace) -> None:
        while time.monotonic() < until:
            workspace.save()

    def collecting() -> None:
        while not over.is_set():
            heads = [workspace.head.id for workspace in workspaces if workspace.head]
            found = collect(local, heads, GRACE)
            collections.append(found.packs)
            over.wait(0.3)

    with ThreadPoolExecutor(4) as pool:
        collector = pool.submit(collecting)
        savers = [pool.submit(saving, workspace) for workspace in workspaces]
        wait(savers)
        over.set()
        for task in (*savers, collector):
            task.result()
    assert sum(collections) > 0
    heads = [workspace.head for workspace in workspaces]
    assert check(local, [head.id for head in heads if head], read_data=True) == []
    for workspace in workspaces:
        assert workspace.saves > 5
        assert workspace.head is not None
    workspaces[0].save()
    head = workspaces[0].head
    assert head is not None
    (target := tmp_path / "out").mkdir()
    restore(local, head, target, 0)
    assert snapshot(target) == snapshot(workspaces[0].layer)
    shutil.rmtree(target)
