"""Workspaces and uploads over HTTP, with a node in memory behind the real application."""

import asyncio
import resource
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from tests.jobs.memory_node import until
from tests.workspaces.conftest import JOBS, Api

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")

SPACES = "/mags-workspaces"


# ---- submission --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"ephemeral": True, "workspace_id": "w"}, 400, "ephemeral"),
        ({"ephemeral": True, "persistent": True}, 400, "ephemeral"),
        ({"no_sleep": True}, 400, "persistent: true"),
        ({"startup_command": "x"}, 400, "persistent: true"),
        ({"workspace_id": "a/b"}, 400, "workspace_id"),
        ({"workspace_id": "a@0123456789abcdef"}, 400, "revision"),
        ({"workspace_id": "w", "base_workspace_id": "w"}, 400, "same"),
        ({"base_revision": "0" * 16}, 400, "base_workspace_id"),
        ({"base_workspace_id": "nowhere"}, 404, "there is no workspace 'nowhere'"),
        ({"base_workspace_id": "filled@0123456789abcdef"}, 404, "no revision"),
        ({"base_workspace_id": "filled", "base_revision": "nonsense"}, 404, "no revision"),
        ({"file_ids": ["nonsense"]}, 400, "upload it again"),
        ({"file_ids": ["x", "x"]}, 400, "twice"),
        ({"file_ids": [str(number) for number in range(65)]}, 400, "64"),
        ({"startup_command": "a\0", "persistent": True}, 400, "NUL"),
    ],
)
async def test_what_contradicts_itself_or_is_not_there_is_refused(
    api: Api, fields: dict[str, object], status: int, words: str
) -> None:
    await api.fill("filled")
    total = (await api.json(JOBS))["total"]
    refusal = await api.json(JOBS, status, "POST", json={"script": "x", **fields})
    assert words in str(refusal["error"])
    assert (await api.json(JOBS))["total"] == total


async def test_a_base_that_is_still_being_filled_is_not_there_yet(api: Api) -> None:
    await api.run(workspace_id="w")
    refusal = await api.json(JOBS, 409, "POST", json={"script": "x", "base_workspace_id": "w"})
    assert "still filling it" in str(refusal["error"])


async def test_a_second_writer_waits_and_is_told_what_for(api: Api) -> None:
    await api.run(workspace_id="w")
    holder = (await api.json(f"{JOBS}/w/status"))["request_id"]
    reason = f"waits for job {holder}, which has workspace 'w'"
    second = await api.json(JOBS, 202, "POST", json={"script": "x", "workspace_id": "w"})
    assert second["pending_reason"] == reason
    third = await api.json(JOBS, 202, "POST", json={"script": "x", "workspace_id": "w"})
    shown = await api.json(f"{JOBS}/{second['request_id']}/status")
    assert (shown["status"], shown["pending_reason"]) == ("pending", reason)
    (last, *_) = (await api.json(JOBS))["jobs"]  # type: ignore[misc]
    assert last["request_id"] == third["request_id"]  # type: ignore[index]
    assert last["pending_reason"] == f"waits for job {second['request_id']}, which has workspace 'w'"  # type: ignore[index]
    assert (await api.json(f"{JOBS}/w/status"))["request_id"] == holder


async def test_a_second_writer_beside_one_that_stays_is_refused_in_the_documented_words(api: Api) -> None:
    await api.run(workspace_id="w", persistent=True)
    holder = (await api.json(f"{JOBS}/w/status"))["request_id"]
    assert await api.json(JOBS, 409, "POST", json={"script": "x", "workspace_id": "w"}) == {
        "error": f"workspace 'w' is already in use by job {holder}; stop it, or fork it with base_workspace_id"
    }


async def test_a_persistent_job_shows_all_of_itself(api: Api) -> None:
    asked = {"workspace_id": "w", "persistent": True, "no_sleep": True, "startup_command": "serve", "no_sync": True}
    vm_id = await api.run(**asked)
    record = await api.json(f"{JOBS}/w")
    assert {key: record[key] for key in asked} == asked
    assert (record["timeout_seconds"], record["vm_id"], record["status"]) == (0, vm_id, "running")
    ((listed),) = (await api.json(JOBS))["jobs"]  # type: ignore[misc]
    assert listed["workspace_id"] == "w" and listed["persistent"] is True  # type: ignore[index]


async def test_sync_answers_as_documented_once_the_save_is_durable(api: Api) -> None:
    vm_id = await api.run(workspace_id="w", persistent=True)
    api.node.files[vm_id]["a"] = b"1"
    assert await api.json(f"{JOBS}/w/sync", 200, "POST") == {"success": True, "message": "Sync initiated"}
    (only,) = (await api.json(f"{SPACES}/w/revisions"))["revisions"]  # type: ignore[misc]
    assert only["head"] and only["stored"] and "periodic" not in only  # type: ignore[operator]


# ---- workspaces --------------------------------------------------------------------------------------------


async def test_workspaces_are_listed_with_what_clients_read(api: Api) -> None:
    await api.fill("one")
    await api.fill("one")
    await api.run(workspace_id="two", persistent=True)
    answer = await api.json(SPACES)
    assert answer["total"] == 2
    two, one = answer["workspaces"]  # type: ignore[misc]
    shown = [(w["workspace_id"], w["job_count"], w["has_active"], w["persistent"]) for w in (one, two)]  # type: ignore[index]
    assert shown == [("one", 2, False, False), ("two", 1, True, True)]
    assert str(one["last_used"]).endswith("Z")  # type: ignore[index]


async def test_workspaces_and_revisions_come_in_pages(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.fill(name)
    names = [
        w["workspace_id"]
        for page in (1, 2, 3)
        for w in (await api.json(f"{SPACES}?page={page}&page_size=2"))["workspaces"]  # type: ignore[union-attr]
    ]
    assert names == ["c", "b", "a"]
    made = [await api.fill("r") for _ in range(3)]
    first = await api.json(f"{SPACES}/r/revisions?page_size=2")
    second = await api.json(f"{SPACES}/r/revisions?page_size=2&page=2")
    told = [one["revision"] for page in (first, second) for one in page["revisions"]]  # type: ignore[union-attr]
    assert (told, first["total"]) == (made[::-1], 3)
    assert [one["head"] for one in first["revisions"]] == [True, False]  # type: ignore[union-attr]


async def test_deleting_waits_for_no_job_and_says_so_in_the_documented_words(api: Api) -> None:
    await api.fill("my project")
    vm_id = await api.run(workspace_id="my project")
    assert await api.json(f"{SPACES}/my%20project", 409, "DELETE") == {
        "error": "workspace 'my project' has 1 active job(s); stop them first"
    }
    api.node.end(vm_id)
    await until(lambda: vm_id not in api.node.states)
    assert await api.json(f"{SPACES}/my%20project", 200, "DELETE") == {
        "success": True,
        "message": "Workspace 'my project' deleted",
    }
    assert "my project" in str(await api.json(f"{SPACES}/my%20project", 404, "DELETE"))
    assert (await api.json(SPACES))["total"] == 0


async def test_a_base_is_not_deleted_under_its_workers(api: Api) -> None:
    await api.fill("b")
    for _ in range(3):
        await api.run(base_workspace_id="b")
    refusal = await api.json(f"{SPACES}/b", 409, "DELETE")
    assert refusal["error"] == "workspace 'b' has 3 active job(s); stop them first"


async def test_restoring_moves_the_head(api: Api) -> None:
    first = await api.fill("w", a=b"1")
    await api.fill("w", a=b"2")
    assert (await api.json(f"{SPACES}/w/restore", 200, "POST", json={"revision": first}))["revision"] == first
    assert (await api.client.get(f"{SPACES}/w/files/a")).content == b"1"
    await api.json(f"{SPACES}/w/restore", 404, "POST", json={"revision": "0" * 16})
    await api.json(f"{SPACES}/w/restore", 400, "POST", json={})
    await api.run(workspace_id="w")
    await api.json(f"{SPACES}/w/restore", 409, "POST", json={"revision": first})


async def test_a_check_names_what_the_node_lacks(api: Api) -> None:
    first = await api.fill("w")
    await api.fill("w")
    assert await api.json(f"{SPACES}/w/check") == {
        "workspace_id": "w", "ok": True, "checked": 2, "missing": [], "problems": [],
    }  # fmt: skip
    del api.node.saves[first]
    assert (await api.json(f"{SPACES}/w/check"))["missing"] == [first]


async def test_a_listing_learns_what_was_uploaded_later(api: Api) -> None:
    revision = await api.fill("w")
    await api.run(workspace_id="w", persistent=True)
    saved = api.node.saves[revision]
    saved.revision = msgspec.structs.replace(saved.revision, stored=True, stored_bytes=9)
    api.node.up = False
    (only,) = (await api.json(f"{SPACES}/w/revisions"))["revisions"]  # type: ignore[misc]
    assert only["stored"] is False  # type: ignore[index] # as it was last known
    api.node.up = True
    (only,) = (await api.json(f"{SPACES}/w/revisions"))["revisions"]  # type: ignore[misc]
    assert (only["stored"], only["stored_bytes"]) == (True, 9)  # type: ignore[index]


async def test_a_check_learns_what_was_uploaded_later(api: Api) -> None:
    revision = await api.fill("w")
    saved = api.node.saves[revision]
    saved.revision = msgspec.structs.replace(saved.revision, stored=True, stored_bytes=9)
    await api.json(f"{SPACES}/w/check")
    (only,) = (await api.json(f"{SPACES}/w/revisions"))["revisions"]  # type: ignore[misc]
    assert (only["stored"], only["stored_bytes"]) == (True, 9)  # type: ignore[index]
    api.node.damaged.add(revision)
    damaged = await api.json(f"{SPACES}/w/check?read_data=true")
    assert (damaged["ok"], damaged["problems"]) == (False, [f"revision {revision} is damaged"])


async def test_unknown_workspaces_are_not_found(api: Api) -> None:
    for method, path in (
        ("GET", "revisions"), ("GET", "check"), ("GET", "files"), ("GET", "files/x"), ("PUT", "files/x"),
        ("DELETE", "files/x"),
    ):  # fmt: skip
        await api.json(f"{SPACES}/nowhere/{path}", 404, method)


# ---- files of a workspace ----------------------------------------------------------------------------------


async def test_a_stored_workspace_is_read_without_a_sandbox(api: Api) -> None:
    await api.fill("w", **{"root/a.txt": b"hello", "root/sub/b": b"x", "root/caf\udce9": b"y"})
    assert (await api.client.get(f"{SPACES}/w/files/root/a.txt")).content == b"hello"
    listing = await api.json(f"{SPACES}/w/files/root")
    assert (listing["workspace_id"], listing["path"]) == ("w", "/root")
    entries = {entry["name"]: entry for entry in listing["entries"]}  # type: ignore[union-attr,index]
    assert entries["a.txt"] == {
        "name": "a.txt", "type": "file", "size": 5, "mode": "0644", "modified_at": "2001-09-09T01:46:40.000000Z",
        "uid": 0, "gid": 0,
    }  # fmt: skip
    assert entries["sub"]["type"] == "directory"
    assert entries["caf\ufffd"]["encoded"] == "caf%E9"
    assert (await api.client.get(f"{SPACES}/w/files/root/caf%E9")).content == b"y"
    assert (await api.json(f"{SPACES}/w/files"))["path"] == "/"
    assert (await api.json(f"{SPACES}/w/files/"))["path"] == "/"
    assert (await api.client.get(f"{SPACES}/w/files/root?tar=true")).content == b"tar of root"


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-4", 206, b"6789", "bytes 6-9/10"),
        ("bytes=-40", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=5-4", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
async def test_ranges_of_a_file(api: Api, asked: str, status: int, content: bytes | None, told: str | None) -> None:
    await api.fill("w", f=b"0123456789")
    answer = await api.client.get(f"{SPACES}/w/files/f", headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, told)
    if content is not None:
        assert (answer.content, answer.headers["content-length"]) == (content, str(len(content)))
    else:
        assert "10 bytes" in answer.json()["error"]


async def test_a_range_of_a_file_that_changed_is_the_whole_file(api: Api) -> None:
    await api.fill("w", f=b"0123456789")
    tag = (await api.client.get(f"{SPACES}/w/files/f")).headers["etag"]
    for told, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-3", "If-Range": told}
        assert (await api.client.get(f"{SPACES}/w/files/f", headers=headers)).status_code == status


async def test_an_empty_file_has_no_bytes_and_no_ranges(api: Api) -> None:
    await api.fill("w", f=b"")
    assert (await api.client.get(f"{SPACES}/w/files/f")).content == b""
    assert (await api.client.get(f"{SPACES}/w/files/f", headers={"Range": "bytes=0-"})).status_code == 416


async def test_changing_a_stored_workspace_makes_a_revision(api: Api) -> None:
    first = await api.fill("w", a=b"1")
    written = await api.json(f"{SPACES}/w/files/dir/b%20c?mode=0600", 200, "PUT", content=b"new")
    assert written["message"] == "/dir/b c written"
    assert (await api.client.get(f"{SPACES}/w/files/dir/b%20c")).content == b"new"
    deleted = await api.json(f"{SPACES}/w/files/a", 200, "DELETE")
    told = await api.json(f"{SPACES}/w/revisions")
    assert [one["revision"] for one in told["revisions"]] == [  # type: ignore[union-attr]
        deleted["revision"], written["revision"], first,
    ]  # fmt: skip
    assert api.node.saves[first].files == {"a": b"1"}
    await api.json(f"{SPACES}/w/files/a", 404, "DELETE")
    await api.json(f"{SPACES}/w/files/dir/b%20c/d", 400, "PUT", content=b"x")
    assert not api.live.unrecorded.ids


async def test_of_two_edits_at_once_one_is_told_to_try_again(api: Api) -> None:
    await api.fill("w", a=b"1")
    api.node.may_save.clear()
    edits = [asyncio.create_task(api.client.put(f"{SPACES}/w/files/{name}", content=b"x")) for name in "bc"]
    await until(lambda: len(api.live.unrecorded.ids) == 2)
    api.node.may_save.set()
    answers = await asyncio.gather(*edits)
    assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_an_edit_loses_against_a_job_that_began_meanwhile(api: Api) -> None:
    first = await api.fill("w", a=b"1")
    api.node.may_save.clear()
    edit = asyncio.create_task(api.client.put(f"{SPACES}/w/files/b", content=b"x"))
    await until(lambda: len(api.live.unrecorded.ids) == 1)
    vm_id = await api.run(workspace_id="w")
    api.node.may_save.set()
    assert "already in use" in (await edit).json()["error"]
    assert api.node.requests[vm_id].start_from == first


async def test_a_live_sandbox_is_read_and_changed_in_place(api: Api) -> None:
    first = await api.fill("w", a=b"1")
    vm_id = await api.run(workspace_id="w", persistent=True)
    api.node.files[vm_id]["a"] = b"live"
    assert (await api.client.get(f"{SPACES}/w/files/a")).content == b"live"
    assert "revision" not in await api.json(f"{SPACES}/w/files/b", 200, "PUT", content=b"put")
    assert api.node.files[vm_id]["b"] == b"put"
    await api.json(f"{SPACES}/w/files/b", 200, "DELETE")
    await api.json(f"{SPACES}/w/files/b", 404, "DELETE")
    assert (await api.json(SPACES))["workspaces"][0]["revision"] == first  # type: ignore[index]


async def test_while_a_job_waits_the_head_is_read_and_nothing_written(api: Api) -> None:
    await api.fill("w", a=b"1")
    api.node.room = 0
    await api.client.post(JOBS, json={"script": "x", "workspace_id": "w"})
    assert (await api.client.get(f"{SPACES}/w/files/a")).content == b"1"
    await api.json(f"{SPACES}/w/files/a", 409, "PUT", content=b"2")


@pytest.mark.parametrize("path", ["files/..%2f..%2fetc", "files/a/%2e%2e/b", "files/a%00", "files/" + "x" * 4097])
async def test_paths_that_climb_or_cannot_be_are_refused(api: Api, path: str) -> None:
    await api.fill("w", a=b"1")
    await api.json(f"{SPACES}/w/{path}", 400)
    await api.json(f"{SPACES}/w/{path}", 400, "PUT", content=b"x")


@pytest.mark.parametrize("path", ["files/d/", "files/a?mode=99", "files/a?mode=rw"])
async def test_what_is_no_file_or_no_mode_cannot_be_written(api: Api, path: str) -> None:
    await api.fill("w", a=b"1")
    await api.json(f"{SPACES}/w/{path}", 400, "PUT", content=b"x")


# ---- uploads -----------------------------------------------------------------------------------------------


def multipart(**headers: str) -> dict[str, str]:
    return {"Content-Type": "multipart/form-data; boundary=BOUNDARY", **headers}


def form(size: int, name: str = "data.bin", chunk: int = 65536) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        yield b'--BOUNDARY\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        yield f'--BOUNDARY\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'.encode()
        yield b"Content-Type: application/octet-stream\r\n\r\n"
        for at in range(0, size, chunk):
            yield b"\r\n--BOUNDAR" * (min(chunk, size - at) // 11) + b"x" * (min(chunk, size - at) % 11)
        yield b"\r\n--BOUNDARY--\r\n"

    return parts()


async def test_an_upload_is_passed_on_in_pieces_and_given_to_a_job(api: Api) -> None:
    headers = dict(api.client.headers)
    headers.pop("content-type")
    client = httpx.AsyncClient(transport=api.client._transport, base_url=api.client.base_url, headers={
        "Authorization": headers["authorization"]
    })  # fmt: skip
    answer = await client.post("/mags-files", files={"file": ("C:\\dir\\prüf.txt", b"content")})
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"file_id", "file_name", "size"}
    assert (answer.json()["file_name"], answer.json()["size"]) == ("prüf.txt", 7)
    vm_id = await api.run(file_ids=[answer.json()["file_id"]])
    (placed,) = api.node.requests[vm_id].files
    assert (placed.name, placed.size) == ("prüf.txt", 7)
    assert api.node.files[vm_id] == {"root/prüf.txt": b"content"}


async def test_a_large_upload_never_lies_in_memory_whole(api: Api) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 100 * 1024 * 1024
    answer = await api.json("/mags-files", 201, "POST", content=form(size), headers=multipart())
    assert answer["size"] == size
    assert api.node.largest_chunk < 256 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB


async def test_what_is_too_large_is_refused_whether_it_says_so_or_not(api: Api) -> None:
    size = 101 * 1024 * 1024
    told = await api.json("/mags-files", 413, "POST", content=form(size), headers=multipart())
    assert "MB" in str(told["error"])
    at_once = multipart(**{"Content-Length": str(size)})
    await api.json("/mags-files", 413, "POST", content=b"", headers=at_once)
    assert not api.node.uploads


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cannot be read"),
        (b"--BOUNDARY--\r\n", "no field 'file'"),
        (b'--BOUNDARY\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--BOUNDARY--\r\n', "no field 'file'"),
        (b'--BOUNDARY\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbroken', "cannot be read"),
        (b'--BOUNDARY\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--BOUNDARY--\r\n', "no name"),
        (
            b'--BOUNDARY\r\nContent-Disposition: form-data; name="file"; filename=".."\r\n\r\nx\r\n--BOUNDARY--\r\n',
            "no name",
        ),
        (b"nonsense" * 100, "cannot be read"),
    ],
)
async def test_a_form_without_a_whole_named_file_is_refused(api: Api, body: bytes, words: str) -> None:
    refusal = await api.json("/mags-files", 400, "POST", content=body, headers=multipart())
    assert words in str(refusal["error"])
    assert not api.node.uploads


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=", ""])
async def test_what_is_no_form_is_refused(api: Api, kind: str) -> None:
    refusal = await api.json("/mags-files", 400, "POST", content=b"x", headers={"Content-Type": kind})
    assert "multipart/form-data" in str(refusal["error"])


async def test_other_fields_are_bounded(api: Api) -> None:
    body = b'--BOUNDARY\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 100_000
    await api.json("/mags-files", 413, "POST", content=body, headers=multipart())


async def test_two_files_of_one_name_cannot_both_be_placed(api: Api) -> None:
    ids = [
        (await api.json("/mags-files", 201, "POST", content=form(5), headers=multipart()))["file_id"]
        for _ in range(2)
    ]  # fmt: skip
    refusal = await api.json(JOBS, 400, "POST", json={"script": "x", "file_ids": ids})
    assert "data.bin" in str(refusal["error"])
