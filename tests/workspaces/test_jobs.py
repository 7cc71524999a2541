"""What becomes of a job's files: the four modes, one writer, and a head that moves with the result or not at all."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from roost.db.database import Database
from roost.db.schema import accounts, revisions, workspaces
from roost.errors import Conflict, Invalid, NoCapacity, NotFound
from roost.jobs import job as jobs
from roost.jobs.job import Job
from roost.jobs.live import LiveJobs
from roost.node.protocol import SandboxState
from roost.workspaces import revisions as heads
from roost.workspaces import uploads, workspace
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, Open, ended, keeping, opener, order, reread, until


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def opened(tmp_path: Path, node: Node) -> Open:
    fresh_database(tmp_path / "roost.db")
    return opener(tmp_path, node)


def base(live: LiveJobs) -> Database:
    return live.database  # type: ignore[attr-defined]


async def head(live: LiveJobs, name: str) -> str | None:
    return (await workspace.find(base(live), 1, name)).head


async def running(live: LiveJobs, node: Node, *file_ids: str, **keeps: object) -> Job:
    job = await live.submit(1, keeping(*file_ids, **keeps))
    await until(lambda: job.vm_id in node.states)
    return job


async def filled(live: LiveJobs, node: Node, name: str, **files: bytes) -> str:
    """A workspace whose head holds these files; that revision."""
    job = await running(live, node, workspace=name)
    node.files[job.vm_id] |= files
    node.end(job.vm_id)
    assert (await ended(live, job)).status == "completed"
    made = await head(live, name)
    assert made == job.save_revision
    return made


async def listed(live: LiveJobs, name: str) -> list[str]:
    found = await workspace.find(base(live), 1, name)
    return [one.id for one in (await heads.page(base(live), found, 1, 100)).revisions]


# ---- modes -------------------------------------------------------------------------------------------------


async def test_without_a_workspace_nothing_is_begun_from_or_saved(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node)
        wanted = node.requests[job.vm_id]
        assert (wanted.start_from, wanted.save, wanted.linger, wanted.sync_seconds) == (None, None, False, 0)


async def test_a_workspace_is_saved_on_the_node_and_the_next_job_begins_from_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "w", notes=b"1")
        job = await running(live, node, workspace="w")
        wanted = node.requests[job.vm_id]
        assert wanted.start_from == first
        assert wanted.save is not None
        assert (wanted.save.revision, wanted.save.account, wanted.save.upload) == (job.save_revision, 1, False)
        assert (wanted.linger, wanted.sync_seconds) == (False, 0)
        assert node.files[job.vm_id] == {"notes": b"1"}


async def test_a_base_is_begun_from_and_never_saved_to(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "b", tool=b"x")
        workers = [await running(live, node, base_workspace="b") for _ in range(5)]
        assert {node.requests[job.vm_id].start_from for job in workers} == {first}
        assert all(node.requests[job.vm_id].save is None for job in workers)
        for job in workers:
            node.files[job.vm_id]["tool"] = b"changed"
            node.end(job.vm_id)
            assert (await ended(live, job)).status == "completed"
        assert (await head(live, "b"), node.saves[first].files) == (first, {"tool": b"x"})


async def test_a_fork_begins_from_the_base_while_it_is_new_and_from_itself_later(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "b", tool=b"x")
        fork = await running(live, node, workspace="f", base_workspace="b")
        assert node.requests[fork.vm_id].start_from == first
        node.end(fork.vm_id)
        await ended(live, fork)
        await filled(live, node, "b", tool=b"newer")
        again = await running(live, node, workspace="f", base_workspace="b")
        assert node.requests[again.vm_id].start_from == fork.save_revision
        assert node.saves[fork.save_revision or ""].revision.parent == first


async def test_a_fork_can_begin_from_an_older_revision(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "b", tool=b"1")
        await filled(live, node, "b", tool=b"2")
        job = await running(live, node, workspace="f", base_workspace="b", base_revision=first)
        assert node.files[job.vm_id] == {"tool": b"1"}


async def test_a_base_is_pinned_when_the_job_starts(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "b", tool=b"1")
        job = await running(live, node, base_workspace="b")
        await filled(live, node, "b", tool=b"2")
        assert (await heads.pin(base(live), job)).revision == first


async def test_a_persistent_job_lingers_without_timeout_and_goes_to_the_store(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        wanted = node.requests[job.vm_id]
        assert wanted.save is not None
        assert (wanted.linger, wanted.sync_seconds, wanted.save.upload) == (True, 30, True)
        assert wanted.limits.timeout_seconds == 0


async def test_no_sync_keeps_a_persistent_job_on_the_node(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True, no_sync=True)
        wanted = node.requests[job.vm_id]
        assert wanted.save is not None
        assert (wanted.linger, wanted.sync_seconds, wanted.save.upload) == (True, 0, False)


async def test_a_workspace_that_was_persistent_stays_in_the_store(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await running(live, node, workspace="w", persistent=True)
        await live.stop(first, 5)
        second = await running(live, node, workspace="w")
        save = node.requests[second.vm_id].save
        assert save is not None and save.upload


async def test_uploads_are_placed_and_a_vanished_one_ends_the_job(opened: Open, node: Node) -> None:
    async with opened() as live:
        file_id = await uploads.begin(base(live), 1, "data.csv")
        node.uploads[file_id] = b"1,2"
        await uploads.complete(base(live), file_id, 3)
        job = await running(live, node, file_id)
        assert node.files[job.vm_id] == {"root/data.csv": b"1,2"}
        gone = await ended(live, await live.submit(1, keeping("no-such-file")))
        assert gone.status == "error" and "upload it again" in (gone.error or "")


# ---- one writer --------------------------------------------------------------------------------------------


async def test_of_many_who_race_for_a_workspace_exactly_one_gets_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        racers = [live.submit(1, keeping(workspace="w", persistent=True)) for _ in range(50)]
        results = await asyncio.gather(*racers, return_exceptions=True)
        (winner,) = [one for one in results if isinstance(one, Job)]
        refusals = [one for one in results if not isinstance(one, Job)]
        assert all(isinstance(one, Conflict) for one in refusals)
        assert {str(one) for one in refusals} == {
            f"workspace 'w' is already in use by job {winner.request_id}; stop it, or fork it with base_workspace_id"
        }


async def test_who_asks_for_a_workspace_in_use_waits_its_turn(opened: Open, node: Node) -> None:
    async with opened() as live:
        waiting = [await live.submit(1, keeping(workspace="w")) for _ in range(4)]
        others = await running(live, node, workspace="other")
        assert others.vm_id in node.states
        for number, job in enumerate(waiting):
            await until(lambda job=job: job.vm_id in node.states)
            assert [other.vm_id in node.states for other in waiting[number + 1 :]] == [False] * (3 - number)
            assert node.files[job.vm_id] == {f"by-{before}": b"" for before in range(number)}
            node.files[job.vm_id][f"by-{number}"] = b""
            node.end(job.vm_id)
            assert (await ended(live, job)).status == "completed"
        assert live.waiting == 0


async def test_many_who_race_for_a_workspace_have_it_one_after_the_other(opened: Open, node: Node) -> None:
    async with opened() as live:
        jobs = await asyncio.gather(*(live.submit(1, keeping(workspace="w")) for _ in range(30)))
        for job in sorted(jobs, key=lambda job: job.seq):
            await until(lambda job=job: job.vm_id in node.states)
            assert len([state for state in node.states.values() if state.phase != "ended"]) == 1
            node.end(job.vm_id)
            await ended(live, job)


async def test_nobody_waits_behind_a_job_that_stays(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await running(live, node, workspace="w")
        stays = await live.submit(1, keeping(workspace="w", persistent=True))
        with pytest.raises(Conflict, match=f"already in use by job {stays.request_id}"):
            await live.submit(1, keeping(workspace="w"))
        with pytest.raises(Conflict, match="already in use"):
            await live.submit(1, keeping(workspace="w"), in_line=False)
        node.end(first.vm_id)
        await until(lambda: stays.vm_id in node.states)


async def test_a_line_outlives_a_kill_in_its_order(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await running(live, node, workspace="w")
        waiting = [await live.submit(1, keeping(workspace="w")) for _ in range(3)]
    async with opened() as live:
        await until(lambda: live.waiting == 3)
        ahead = live.waits_for(waiting[1])
        assert ahead is not None and ahead.request_id == waiting[0].request_id
        node.end(first.vm_id)
        await until(lambda: waiting[0].vm_id in node.states)
    node.end(waiting[0].vm_id)
    async with opened() as live:
        for job in waiting[1:]:
            await until(lambda job=job: job.vm_id in node.states)
            node.end(job.vm_id)
            await ended(live, job)


async def test_who_is_stopped_in_line_never_begins_and_holds_nobody_up(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await running(live, node, workspace="w")
        second = await live.submit(1, keeping(workspace="w"))
        third = await live.submit(1, keeping(workspace="w"))
        assert await live.stop(second, 5)
        assert (await reread(live, second)).stopped
        ahead = live.waits_for(third)
        assert ahead is not None and ahead.request_id == first.request_id
        node.end(first.vm_id)
        await until(lambda: third.vm_id in node.states)
        assert second.vm_id not in node.states


async def test_a_line_has_an_end(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await running(live, node, workspace="w")
        waiting = [await live.submit(1, keeping(workspace="w")) for _ in range(workspace.MAX_LINE)]
        with pytest.raises(NoCapacity, match="100 jobs wait for workspace 'w' already"):
            await live.submit(1, keeping(workspace="w"))
        await live.stop(waiting[0], 5)
        await live.submit(1, keeping(workspace="w"))
        with pytest.raises(Conflict, match=r"has 101 active job\(s\)"):
            await workspace.remove(base(live), 1, "w")
        assert first.vm_id in node.states


async def test_a_workspace_is_free_again_with_the_result_of_its_job(opened: Open, node: Node) -> None:
    async with opened() as live:
        for _ in range(3):
            await filled(live, node, "w")
        assert len(await listed(live, "w")) == 3


async def test_the_same_name_is_another_workspace_for_another_account(opened: Open, node: Node) -> None:
    async with opened() as live:
        await base(live).write(accounts.insert().values(id=2, name="b", created_ns=1))
        first = await live.submit(1, keeping(workspace="w"))
        second = await live.submit(2, keeping(workspace="w"))
        assert first.request_id != second.request_id


async def test_a_workspace_in_use_can_be_forked(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "w", a=b"1")
        await running(live, node, workspace="w")
        fork = await running(live, node, workspace="f", base_workspace="w")
        assert node.requests[fork.vm_id].start_from == first


# ---- heads -------------------------------------------------------------------------------------------------


async def test_the_result_is_told_only_when_the_files_are_saved(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w")
        node.tell(
            SandboxState(id=job.vm_id, phase="running", started_ns=1, script_ended_ns=2, exit_code=0, cause="exited")
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await ended(live, job)
        assert await head(live, "w") is None
        node.end(job.vm_id)
        await ended(live, job)
        assert await head(live, "w") == job.save_revision


async def test_a_save_that_fails_leaves_the_head_and_ends_the_job_as_an_error(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "w", a=b"1")
        node.save_error = "the workspace could not be saved: the disk is full"
        job = await running(live, node, workspace="w")
        node.end(job.vm_id)
        result = await ended(live, job)
        assert (result.status, result.exit_code) == ("error", 0)
        assert result.error == "the workspace could not be saved: the disk is full; the workspace stays as it was"
        assert await head(live, "w") == first


async def test_files_that_could_only_be_kept_are_the_head_and_the_next_job_begins_from_them(
    opened: Open, node: Node
) -> None:
    async with opened() as live:
        await filled(live, node, "w", a=b"1")
        node.kept_raw = "the disk is full"
        job = await running(live, node, workspace="w")
        node.files[job.vm_id]["a"] = b"2"
        node.end(job.vm_id)
        result = await ended(live, job)
        assert (result.status, result.exit_code) == ("error", 0)
        assert result.error and "the disk is full" in result.error and "stays as it was" not in result.error
        assert await head(live, "w") == job.save_revision
        refused = await live.submit(1, keeping(workspace="w"))
        assert "the disk is full; they are kept" in ((await ended(live, refused)).error or "")
        assert await head(live, "w") == job.save_revision
        node.kept_raw = None
        again = await running(live, node, workspace="w")
        assert node.files[again.vm_id]["a"] == b"2"


async def test_a_job_whose_sandbox_was_lost_begins_again_from_its_last_sync(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        node.sync(job.vm_id, "a" * 16)

        async def moved() -> bool:
            return await head(live, "w") == "a" * 16

        await until(moved)
        node.end(job.vm_id, "lost", None, "lost: the machine restarted")

        async def asleep() -> bool:
            return (await reread(live, job)).depth == "cold"

        await until(asleep)
        shown = await reread(live, job)
        assert (shown.status, shown.exit_code) == ("sleeping", None)
        assert shown.error is not None and "the machine restarted" in shown.error
        run = await live.awake(shown, 5)
        assert node.requests[run.job.vm_id].start_from == "a" * 16
        assert await moved()


async def test_a_head_that_somebody_else_moved_is_not_taken_from_them(opened: Open, node: Node) -> None:
    async with opened() as live:
        await filled(live, node, "w")
        job = await running(live, node, workspace="w")
        run = live.run_of(job)
        await base(live).write(update(workspaces).values(head="e" * 16))
        node.end(job.vm_id)
        result = await ended(live, job)
        await until(lambda: run is not None and run.done.is_set())
        assert run is not None and run.result is not None and run.result.error == result.error
        assert result.status == "error" and "changed by somebody else" in (result.error or "")
        assert job.save_revision is not None and job.save_revision in (result.error or "")
        assert await head(live, "w") == "e" * 16


async def test_syncs_move_the_head_and_a_late_one_does_not_move_it_back(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        older = node.sync(job.vm_id, "a" * 16)

        async def moved() -> bool:
            return await head(live, "w") == "b" * 16

        node.sync(job.vm_id, "b" * 16)
        await until(moved)
        await jobs.record_save(base(live), job, older)
        assert await moved()


async def test_a_second_result_changes_neither_the_job_nor_the_head(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w")
        node.end(job.vm_id, exit_code=3)
        await ended(live, job)
        saved = node.saves[job.save_revision or ""].revision
        later = await filled(live, node, "w")
        await jobs.record_end(base(live), job, jobs.Result("completed", 0), saved)
        assert (await reread(live, job)).exit_code == 3
        assert await head(live, "w") == later


# ---- crashes -----------------------------------------------------------------------------------------------


async def test_killed_before_the_result_was_recorded_result_and_head_come_together(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w")
    node.end(job.vm_id)  # nobody listens
    async with opened() as live:
        assert (await ended(live, job)).status == "completed"
        assert await head(live, "w") == job.save_revision


async def test_killed_while_the_sandbox_is_saved_the_job_ends_when_it_is(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w")
        node.tell(SandboxState(id=job.vm_id, phase="running", script_ended_ns=2, exit_code=0, cause="exited"))
    async with opened() as live:
        await until(lambda: live.link.is_up)
        assert not (await reread(live, job)).final
        with pytest.raises(Conflict):
            await live.submit(1, keeping(workspace="w"), in_line=False)
        node.end(job.vm_id)
        assert (await ended(live, job)).status == "completed"
        assert await head(live, "w") == job.save_revision


async def test_killed_between_pin_and_start_the_job_begins_from_what_was_pinned(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "b", a=b"1")
        node.room = 0
        job = await live.submit(1, keeping(base_workspace="b"))

        async def pinned() -> bool:
            row = select(jobs.jobs.c.start_revision).where(jobs.jobs.c.seq == job.seq)
            return (await base(live).read(row))[0].start_revision == first

        await until(pinned)
        await base(live).write(update(workspaces).values(head="e" * 16))
    node.room = 10
    async with opened() as live:
        await until(lambda: job.vm_id in node.states)
        assert node.requests[job.vm_id].start_from == first


async def test_syncs_that_came_while_nobody_listened_are_caught_up(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
    node.sync(job.vm_id, "a" * 16)
    node.sync(job.vm_id, "b" * 16)
    async with opened() as live:

        async def moved() -> bool:
            return await head(live, "w") == "b" * 16

        await until(moved)


async def test_a_lock_survives_a_kill(opened: Open, node: Node) -> None:
    node.up = False
    async with opened() as live:
        await live.submit(1, keeping(workspace="w", persistent=True))
    async with opened() as live:
        with pytest.raises(Conflict, match="already in use"):
            await live.submit(1, keeping(workspace="w"))


# ---- persistent jobs ---------------------------------------------------------------------------------------


async def test_a_persistent_job_runs_on_after_its_script_until_it_is_stopped(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        node.exit_script(job.vm_id, 3)

        async def exit_known() -> bool:
            return (await reread(live, job)).exit_code == 3

        await until(exit_known)
        shown = await reread(live, job)
        assert (shown.status, shown.script_duration_ms) == ("running", 7)
        assert live.as_now(shown).status == "running"
        run = live.run_of(job)
        assert run is not None and run.serves
        assert await live.stop(job, 5)
        result = await reread(live, job)
        assert (result.status, result.exit_code, result.stopped) == ("completed", 3, True)
        assert await head(live, "w") == job.save_revision


async def test_a_persistent_job_is_found_lingering_after_a_kill(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, persistent=True)
        node.exit_script(job.vm_id)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        shown = live.as_now(await reread(live, job))
        assert (shown.status, shown.exit_code) == ("running", 0)
        assert await live.stop(shown, 5)
        assert (await reread(live, job)).status == "completed"


async def test_a_persistent_job_whose_sandbox_goes_by_itself_is_an_error(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, persistent=True)
        node.end(job.vm_id)
        result = await ended(live, job)
        assert result.status == "error" and "by itself" in (result.error or "")


async def test_an_orderly_end_puts_persistent_jobs_to_sleep(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        node.exit_script(job.vm_id, 3)
        await live.shut_down()
        result = await reread(live, job)
        assert (result.status, result.depth, result.exit_code) == ("sleeping", "cold", 3)
        assert await head(live, "w") == job.save_revision
    async with opened() as live:
        run = await live.awake(result, 5)
        assert node.requests[run.job.vm_id].start_from == job.save_revision


async def test_jobs_are_found_by_their_workspace_after_their_name(opened: Open, node: Node) -> None:
    async with opened() as live:
        await filled(live, node, "w")
        older = (await jobs.find(base(live), 1, "w")).request_id
        job = await running(live, node, workspace="w", persistent=True)
        assert (await jobs.find(base(live), 1, "w")).request_id == job.request_id != older
        assert job.name.startswith("job-")


# ---- sync on demand ----------------------------------------------------------------------------------------


async def test_a_sync_is_durable_when_it_answers(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        node.files[job.vm_id]["a"] = b"1"
        assert await live.sync(job, 5) == "saved"
        made = await head(live, "w")
        assert made is not None and node.saves[made].files == {"a": b"1"} and node.saves[made].revision.stored
        assert not live.unrecorded.ids


async def test_a_slow_sync_goes_on_behind_the_answer(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True)
        node.may_save.clear()
        assert await live.sync(job, 0.05) == "saving"
        assert len(live.unrecorded.ids) == 1
        node.may_save.set()

        async def moved() -> bool:
            return await head(live, "w") is not None

        await until(moved)


async def test_a_local_workspace_is_not_synced_but_saved_at_the_end(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await running(live, node, workspace="w", persistent=True, no_sync=True)
        assert await live.sync(job, 5) == "local"
        assert not node.saves
        await live.stop(job, 5)
        assert await head(live, "w") == job.save_revision


async def test_what_has_no_workspace_or_does_not_run_cannot_be_synced(opened: Open, node: Node) -> None:
    async with opened() as live:
        with pytest.raises(Invalid, match="workspace_id"):
            await live.sync(await running(live, node), 5)
        job = await running(live, node, workspace="w")
        node.end(job.vm_id)
        with pytest.raises(Conflict, match="not running"):
            await live.sync(await ended(live, job), 5)


# ---- restore -----------------------------------------------------------------------------------------------


async def test_an_older_revision_can_be_restored_and_begun_from(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "w", a=b"1")
        second = await filled(live, node, "w", a=b"2")
        await heads.restore(base(live), await workspace.find(base(live), 1, "w"), first)
        assert sorted(await listed(live, "w")) == sorted([first, second])
        job = await running(live, node, workspace="w")
        assert node.files[job.vm_id] == {"a": b"1"}
        node.end(job.vm_id)
        assert (await ended(live, job)).status == "completed"
        assert await head(live, "w") == job.save_revision


async def test_nothing_is_restored_under_a_writer_or_from_another_workspace(opened: Open, node: Node) -> None:
    async with opened() as live:
        first, other = await filled(live, node, "w"), await filled(live, node, "other")
        found = await workspace.find(base(live), 1, "w")
        with pytest.raises(NotFound):
            await heads.restore(base(live), found, other)
        await running(live, node, workspace="w")
        with pytest.raises(Conflict, match="in use"):
            await heads.restore(base(live), found, first)


async def test_of_two_who_restore_what_they_saw_the_second_is_told(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await filled(live, node, "w")
        await filled(live, node, "w")
        seen = await workspace.find(base(live), 1, "w")
        await heads.restore(base(live), seen, first)
        with pytest.raises(Conflict, match="changed meanwhile"):
            await heads.restore(base(live), seen, first)


async def test_a_deleted_base_ends_the_job_that_had_not_begun(opened: Open, node: Node) -> None:
    async with opened() as live:
        await filled(live, node, "b")
        await base(live).write(revisions.delete(), workspaces.delete())
        result = await ended(live, await live.submit(1, keeping(base_workspace="b")))
        assert result.status == "error" and "has gone" in (result.error or "")


async def test_ordinary_jobs_tell_their_result_when_the_script_is_over(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
        node.tell(SandboxState(id=job.vm_id, phase="running", script_ended_ns=2, exit_code=0, cause="exited"))
        assert (await ended(live, job)).status == "completed"
