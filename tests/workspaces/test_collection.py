"""What is kept and what goes: by number, by age, and never what somebody still needs."""

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select, update

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import files, revisions, workspaces
from roost.jobs.live import LiveJobs
from roost.node.protocol import SaveRequest
from roost.workspaces import uploads
from roost.workspaces.collection import DAY, GRACE, Collection, Retention
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, Open, keeping, opener, until


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def opened(tmp_path: Path, node: Node) -> Open:
    fresh_database(tmp_path / "roost.db")
    return opener(tmp_path, node)


def base(live: LiveJobs) -> Database:
    return live.database  # type: ignore[attr-defined]


def collection(live: LiveJobs, node: Node, revisions: int = 20, days: int = 30) -> Collection:
    return Collection(base(live), node, live.link, live.unrecorded, Retention(revisions, days))  # type: ignore[arg-type]


async def history(live: LiveJobs, node: Node, ages: list[int], head: int, periodic: tuple[int, ...] = ()) -> list[str]:
    """A workspace with revisions so many days old; their ids. `head` and `periodic` are indexes."""
    ids = [f"{number:016x}" for number in range(len(ages))]
    await base(live).write(
        insert(workspaces).values(
            id=1, account_id=1, name="w", head=ids[head], persistent=True, created_ns=1, used_ns=now_ns()
        ),
        *(
            insert(revisions).values(
                id=one, workspace_id=1, image="i", periodic=number in periodic, size=1, stored=True, stored_bytes=1,
                created_ns=now_ns() - age * DAY - 2 * GRACE,
            )
            for number, (one, age) in enumerate(zip(ids, ages, strict=True))
        ),
    )  # fmt: skip
    for one in ids:
        old(node, one)
    return ids


def old(node: Node, revision: str) -> None:
    """The node has it, and for longer than what it may not have been told of."""
    made = node.make(SaveRequest(revision=revision, account=1, upload=True), None, {"f": b"x"})
    node.saves[revision].revision = made.__class__(
        id=made.id, parent=None, image="i", created_ns=1, size=1, stored=True, stored_bytes=1
    )


async def left(live: LiveJobs) -> list[str]:
    return sorted(row.id for row in await base(live).read(select(revisions.c.id)))


async def test_the_newest_stay_and_the_head_whatever_its_age(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [9, 8, 7, 6, 5], head=0)
        await collection(live, node, revisions=2).run()
        assert await left(live) == [ids[0], ids[3], ids[4]] == sorted(node.saves)


async def test_old_ones_go_unless_age_does_not_matter(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [40, 31, 29, 1], head=3)
        await collection(live, node, days=0).run()
        assert await left(live) == ids
        await collection(live, node, days=30).run()
        assert await left(live) == ids[2:] == sorted(node.saves)


async def test_periodic_saves_stay_only_as_the_head(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [1, 1, 1, 1], head=3, periodic=(1, 2, 3))
        await collection(live, node).run()
        assert await left(live) == [ids[0], ids[3]]


async def test_what_is_pinned_chosen_or_being_written_is_live(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [40, 1], head=1)
        node.room = 0
        await base(live).write(update(workspaces).values(head=ids[0]))
        job = await live.submit(1, keeping(workspace="f", base_workspace="w", base_revision=ids[0]))
        await base(live).write(update(workspaces).where(workspaces.c.id == 1).values(head=ids[1]))
        with live.unrecorded.chosen() as writing:
            old(node, writing)
            collected = collection(live, node)
            await collected.run()
            assert await left(live) == [ids[1]]
            live_ids = await collected.live()
            assert {account: set(kept) for account, kept in live_ids.items()} == {1: {*ids}}
            assert set(await collected.reserved()) == {job.save_revision, writing}
            assert sorted(node.saves) == sorted([*ids, writing])


async def test_what_is_too_young_to_be_known_is_not_touched(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        node.make(SaveRequest(revision="f" * 16, account=1, upload=True), None, {})
        old(node, "e" * 16)
        await collection(live, node).run()
        assert list(node.saves) == ["f" * 16]


async def test_rows_follow_what_was_uploaded_later(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [2, 1], head=1)
        await base(live).write(update(revisions).values(stored=False))
        await collection(live, node).run()
        rows = await base(live).read(select(revisions.c.stored).where(revisions.c.id.in_(ids)))
        assert [bool(row.stored) for row in rows] == [True, True]


async def test_nothing_is_collected_before_the_node_has_told_what_it_has(opened: Open, node: Node) -> None:
    old(node, "e" * 16)
    node.up = False
    async with opened() as live:
        await collection(live, node).run()
        assert list(node.saves) == ["e" * 16]


async def test_a_local_workspace_that_nobody_used_goes_and_a_persistent_one_stays(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        await history(live, node, [1], head=0)
        long_ago = now_ns() - 31 * DAY
        for number, name in ((2, "idle"), (3, "busy")):
            await base(live).write(
                insert(workspaces).values(
                    id=number, account_id=1, name=name, persistent=False, created_ns=1, used_ns=long_ago
                )
            )
        await live.submit(1, keeping(workspace="busy"))
        await base(live).write(update(workspaces).values(used_ns=long_ago))
        await collection(live, node).run()
        assert {row.name for row in await base(live).read(select(workspaces.c.name))} == {"w", "busy"}


async def test_expired_and_broken_off_uploads_go_unless_a_job_awaits_them(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        fresh, expired, broken, awaited = [await uploads.begin(base(live), 1, f"f{number}") for number in range(4)]
        for one in (fresh, expired, awaited):
            await uploads.complete(base(live), one, 1)
        await uploads.abandon(base(live), broken)
        node.room = 0
        await live.submit(1, keeping(awaited))
        await base(live).write(update(files).where(files.c.id.in_([expired, awaited])).values(expires_ns=1))
        node.uploads = dict.fromkeys((fresh, expired, broken, awaited), b"x")
        await collection(live, node).run()
        assert set(node.uploads) == {fresh, awaited}
        assert {row.id for row in await base(live).read(select(files.c.id))} == {fresh, awaited}


async def test_the_id_of_a_save_to_come_is_not_a_revision_that_must_be_there(opened: Open, node: Node) -> None:
    """Otherwise one unfinished job would have the store refuse every collection of its account."""
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [40, 1], head=1)
        job = await live.submit(1, keeping(workspace="other", persistent=True))
        old(node, "d" * 16)
        await collection(live, node).run()
        assert job.save_revision not in node.saves
        assert sorted(node.saves) == [ids[1]]


async def test_what_could_not_be_saved_yet_stays_however_old_it_is(opened: Open, node: Node) -> None:
    async with opened() as live:
        await until(lambda: live.link.is_up)
        ids = await history(live, node, [400, 300, 200, 100, 1], head=4)
        node.saves[ids[1]].revision = msgspec.structs.replace(node.saves[ids[1]].revision, unsaved="the disk is full")
        await collection(live, node, revisions=1).run()
        assert await left(live) == [ids[1], ids[4]] == sorted(node.saves)
