"""A real guest init as process 1 of a real pool member, asked through the node's end of its socket."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from roost.node.cgroup import MIB
from roost.node.guest import frames
from roost.node.guest.channel import Guest, GuestLost, GuestRefused
from roost.node.guest.frames import STDERR, STDOUT, Command, Sight
from roost.node.member import IDLE, Member
from roost.node.protocol import Limits
from roost.node.runtimes.oci import GUEST_CAPABILITIES

from .guest_world import LIMIT, PATH, SIGHT, Inside, Output, World, ended, host_pid

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes containers"),
    pytest.mark.timeout(60),
]
X86 = pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="calls of x86")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with World.open() as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def idle_member(world: World) -> AsyncIterator[Member]:
    member = await world.member()
    yield member
    await member.destroy()


@pytest_asyncio.fixture(loop_scope="module")
async def attached(world: World, idle_member: Member) -> Inside:
    await idle_member.mount([world.image], IDLE)
    await idle_member.guest.attach("nest", SIGHT)
    idle_member.forget_mounts()
    return Inside(idle_member.guest, idle_member)


# ---- running a process


async def test_stdout_and_stderr_come_apart_and_in_order(attached: Inside) -> None:
    script = "for i in 1 2 3; do echo out $i; sleep 0.02; echo err $i >&2; sleep 0.02; done"
    exited, output = await attached.run("sh", "-c", script)
    pairs = [(STDOUT, b"out %d\n"), (STDERR, b"err %d\n")]
    assert output.parts == [(stream, text % i) for i in (1, 2, 3) for stream, text in pairs]
    assert exited.exit_code == 0


async def test_a_process_gets_its_environment_and_directory_and_nothing_else(attached: Inside) -> None:
    _, output = await attached.run("env", environment={"PATH": "/bin", "A": "b=c", "E": ""}, directory="/tmp")
    assert sorted(output.out.splitlines()) == [b"A=b=c", b"E=", b"PATH=/bin"]
    assert await attached.shell("pwd", directory="/tmp") == "/tmp\n"
    assert await attached.shell("id -u; id -g", uid=1000, gid=1001) == "1000\n1001\n"
    assert await attached.shell("ls /proc/self/fd | wc -l; hostname") == "4\nnest\n"


async def test_later_processes_may_inherit_the_environment_of_the_first(attached: Inside) -> None:
    await attached.run("true", environment={"PATH": "/bin", "SECRET": "s"})
    await attached.run("true", environment={"PATH": "/bin", "OTHER": "o"})
    _, output = await attached.run("env", environment=None)
    assert sorted(output.out.splitlines()) == [b"PATH=/bin", b"SECRET=s"]


ODD_FILES = """
cd /tmp
printf '#!/bin/bash\\r\necho hi\r\n' > crlf; printf '#!/no/such\n' > lost; printf 'echo plain\n' > plain
printf '\\357\\273\\277#!/bin/sh\necho marked\n' > marked; printf '\\177ELF\\000\\001' > broken; echo 'echo x' > closed
chmod 755 crlf lost plain marked broken; chmod 644 closed
"""


@pytest.mark.parametrize(
    ("arguments", "directory", "status", "said"),
    [
        (["/no/such"], "/", 127, ["/no/such: no such program"]),
        (["nosuch"], "/", 127, ["nosuch: no such program in PATH"]),
        (["sh"], "/nowhere", 127, ["/nowhere: no such working directory"]),
        (["sh"], "/bin/busybox", 126, ["the working directory /bin/busybox: Not a directory"]),
        (["/etc"], "/", 126, ["/etc: is a directory"]),
        (["/tmp/closed"], "/", 126, ["/tmp/closed: is not executable"]),
        (["/tmp/lost"], "/", 127, ["/tmp/lost: no such interpreter: /no/such"]),
        (["/tmp/crlf"], "/", 127, ["/tmp/crlf: no such interpreter: /bin/bash\\r", "CRLF"]),
        (["/tmp/broken"], "/", 126, ["/tmp/broken: cannot be executed"]),
        (["/tmp/marked"], "/", 0, ["/tmp/marked: begins with a byte order mark (BOM)"]),
        (["/tmp/plain"], "/", 0, []),
    ],
)
async def test_what_cannot_be_executed_ends_as_a_shell_ends_and_says_which(
    attached: Inside, arguments: list[str], directory: str, status: int, said: list[str]
) -> None:
    await attached.shell(ODD_FILES)
    exited, output = await attached.run(*arguments, directory=directory)
    assert exited.exit_code == status, output.err
    text = output.err.decode()
    assert all(word in text for word in said), text
    assert bool(text) is bool(said)


async def test_nothing_is_executed_before_there_is_a_root(idle_member: Member) -> None:
    with pytest.raises(GuestRefused, match="exec"):
        await Inside(idle_member.guest, idle_member).run("/init")


async def test_the_exit_tells_code_or_signal(attached: Inside) -> None:
    exited, _ = await attached.run("sh", "-c", "exit 7")
    assert (exited.code, exited.signal, exited.exit_code) == (7, 0, 7)
    exited, _ = await attached.run("sh", "-c", "kill -9 $$")
    assert (exited.signal, exited.exit_code) == (9, 137)


async def test_a_process_may_close_its_own_streams(attached: Inside) -> None:
    begun = time.monotonic()
    exited, output = await attached.run("sh", "-c", "echo before; exec <&- >&- 2>&-; sleep 0.2; exit 7")
    assert (exited.exit_code, output.out) == (7, b"before\n")
    assert time.monotonic() - begun >= 0.2


async def test_a_daemon_that_keeps_the_pipe_does_not_delay_the_exit(attached: Inside) -> None:
    begun = time.monotonic()
    exited, output = await attached.run("sh", "-c", "sleep 60 & echo started; exit 3")
    assert (exited.exit_code, output.out) == (3, b"started\n")
    assert time.monotonic() - begun < 5


async def test_a_daemon_that_chatters_does_not_delay_the_exit(attached: Inside) -> None:
    exited, output = await attached.run("sh", "-c", "yes noise & sleep 0.1; exit 3")
    assert exited.exit_code == 3
    assert b"noise" in output.out


@pytest.mark.parametrize(
    "left",
    [
        "sleep 61 &",
        "(sleep 61 &) &",
        "while :; do sleep 0.61; done &",
        "set -m; sleep 61 & set +m",
        "sh -c 'while :; do :; done; sleep 61' &",
    ],
)
async def test_what_did_not_ask_to_stay_is_ended_with_its_first(attached: Inside, left: str) -> None:
    exited, _ = await attached.run("sh", "-c", f"{left} exit 0", end_session=True)
    assert exited.exit_code == 0
    await attached.until_gone("sleep 61")
    await attached.until_gone("sleep 0.61")
    await attached.until_gone("while :")


DETACHED = {
    "forks, then leaves": "exec setsid sleep 6{} >/dev/null 2>&1",
    "leaves in the background": "setsid sleep 6{} &",
    "ignores hang-ups": "trap '' HUP; sleep 6{} >/dev/null 2>&1 &",
    "forks twice": "(setsid sh -c 'sleep 6{} & exit 0' &) >/dev/null 2>&1",
}


@pytest.mark.parametrize("how", DETACHED.values(), ids=DETACHED)
async def test_what_asked_to_stay_survives_each_time_on_a_busy_machine(attached: Inside, how: str) -> None:
    """A fifth of a processor, shared with others that want all of it: the child seldom runs before its parent ends."""
    attached.member.cgroup.apply(structs.replace(IDLE, vcpus=0.2))
    busy = [await attached.start("sh", "-c", "while :; do :; done") for _ in range(3)]
    numbers = range(100, 140)
    async with asyncio.timeout(50):
        for number in numbers:
            assert (await attached.run("sh", "-c", how.format(number), end_session=True))[0].exit_code == 0
        attached.member.cgroup.apply(IDLE)
        for process, _ in busy:
            process.signal(signal.SIGKILL)
        await attached.run("sh", "-c", "sleep 60 & exit 0", end_session=True)
        await attached.until_gone("sleep 60")
    running = await attached.shell("ps")
    assert [number for number in numbers if f"sleep 6{number}" not in running] == []


async def test_a_signal_reaches_the_whole_group(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "sleep 62 & sh -c 'sleep 63; true' & echo up; wait")
    await output.until(b"up")
    process.signal(signal.SIGKILL)
    assert (await ended(process)).signal == signal.SIGKILL
    await attached.until_gone("sleep 6")


async def test_a_signal_to_everyone_reaches_all_but_init(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "setsid sleep 64 & echo up; wait")
    await output.until(b"up")
    attached.guest.signal_everyone()
    assert (await ended(process)).signal == signal.SIGKILL
    await attached.until_gone("sleep 64")


async def test_orphans_are_reaped(attached: Inside) -> None:
    await attached.shell("for i in 1 2 3 4 5; do (sh -c 'sleep 0.05' &) ; done >/dev/null; sleep 0.3")
    states = await attached.shell("grep -h State /proc/[0-9]*/status")
    assert "Z" not in states


async def test_a_guest_runs_many_processes_at_once_and_refuses_too_many(attached: Inside) -> None:
    running = [await attached.start("sh", "-c", "read line; echo $line", stdin=True) for _ in range(64)]
    await asyncio.gather(*(process.write_stdin(b"line\n") for process, _ in running))
    for process, output in running:
        assert (await ended(process)).exit_code == 0
        assert output.out == b"line\n"
    unreleased = [await attached.start("true") for _ in range(256)]
    with pytest.raises(GuestRefused):
        await attached.start("true")
    for process, _ in unreleased:
        await ended(process)
    assert await attached.shell("echo again") == "again\n"


async def test_the_kernel_ends_a_process_before_it_ends_init(attached: Inside) -> None:
    badness = await attached.shell("cat /proc/self/oom_score_adj")
    init = Path(f"/proc/{attached.member.pid}/oom_score_adj").read_text()
    assert int(badness) > int(init)


# ---- standard input


async def test_input_comes_back_whole_through_cat(attached: Inside) -> None:
    data = os.urandom(1 << 20)
    process, output = await attached.start("cat", stdin=True)
    await process.write_stdin(data)
    await process.write_stdin(b"")
    assert (await ended(process)).exit_code == 0
    assert output.out == data


async def test_a_process_that_does_not_read_holds_the_writer(attached: Inside) -> None:
    process, _ = await attached.start("sleep", "65", stdin=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await process.write_stdin(bytes(1 << 20))
    process.signal(signal.SIGKILL)
    await ended(process)


async def test_input_for_a_process_that_has_closed_it_is_taken_and_gone(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "exec <&-; echo closed; sleep 0.2", stdin=True)
    await output.until(b"closed")
    async with asyncio.timeout(LIMIT):
        await process.write_stdin(bytes(1 << 20))
    assert (await ended(process)).exit_code == 0


async def test_without_input_it_reads_the_end_at_once(attached: Inside) -> None:
    assert await attached.shell("cat | wc -c") == "0\n"


# ---- terminals


async def test_a_terminal_has_its_size_and_is_the_controlling_one(attached: Inside) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo ok > /dev/tty"
    exited, output = await attached.run("sh", "-c", script, terminal=(33, 101))
    assert (exited.exit_code, output.out) == (0, b"33 101\r\nok\r\n")


async def test_a_terminal_that_is_resized_tells_its_process(attached: Inside) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.02; done"
    process, output = await attached.start("sh", "-c", script, terminal=(24, 80))
    await output.until(b"up")
    process.resize(50, 132)
    assert (await ended(process)).exit_code == 0
    assert output.out.endswith(b"50 132\r\n")


async def test_control_c_interrupts_the_foreground(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "echo up; exec sleep 66", terminal=(24, 80), stdin=True)
    await output.until(b"up")
    await process.write_stdin(b"\x03")
    assert (await ended(process)).signal == signal.SIGINT


async def test_the_end_of_input_ends_a_terminals_reader(attached: Inside) -> None:
    process, output = await attached.start("cat", terminal=(24, 80), stdin=True)
    await process.write_stdin(b"one\n")
    await output.until(b"one\r\none\r\n")
    await process.write_stdin(b"")
    assert (await ended(process)).exit_code == 0


@pytest.mark.parametrize("lines", [100, 3000])
async def test_a_terminals_last_output_is_not_lost_with_the_exit(attached: Inside, lines: int) -> None:
    for _ in range(5):
        _, output = await attached.run("seq", "1", str(lines), terminal=(24, 80))
        assert output.out.split() == [b"%d" % i for i in range(1, lines + 1)]


# ---- much output, and nodes that die


async def test_a_flood_arrives_whole(attached: Inside) -> None:
    size, seen = 200 << 20, 0

    def count(pairs: list[tuple[int, bytes]]) -> None:
        nonlocal seen
        seen += sum(len(data) for _, data in pairs)

    command = Command(["head", "-c", str(size), "/dev/zero"], PATH, "/")
    process = await attached.guest.start(100, command, count)
    exited = await ended(process)
    assert (exited.exit_code, exited.produced, seen) == (0, size, size)


async def test_output_that_nobody_takes_holds_the_process(attached: Inside) -> None:
    def full(pairs: list[tuple[int, bytes]]) -> None:
        raise OSError("full")

    command = Command(["sh", "-c", "head -c 1000000 /dev/zero; touch /tmp/done"], PATH, "/")
    await attached.guest.start(100, command, full)
    await asyncio.sleep(0.2)
    assert not Path(f"/proc/{attached.member.pid}/root/tmp/done").exists()
    assert not attached.guest.lost.done()


async def test_output_that_could_not_be_kept_is_offered_again(attached: Inside) -> None:
    output, refusals = Output(), iter([True, False, True])

    def take(pairs: list[tuple[int, bytes]]) -> None:
        if next(refusals, False):
            raise OSError("full")
        output.take(pairs)

    process = await attached.guest.start(100, Command(["seq", "1", "20000"], PATH, "/"), take)
    assert (await ended(process)).exit_code == 0
    assert output.out.split() == [b"%d" % i for i in range(1, 20001)]


async def test_the_next_node_gets_every_byte_once_and_the_exit(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "seq 1 300000; echo oops >&2; exit 9")
    guest, path = attached.guest, attached.member.site.socket
    while not output.out:
        await asyncio.sleep(0)
    for _ in range(5):  # nodes that come and go in the middle of it
        taken = process.taken
        guest.close()
        guest = await Guest.connect(path)
        assert guest.attached
        assert guest.known[process.id].acknowledged <= taken
        process = guest.adopt(process.id, output.take, taken)
        await asyncio.sleep(0.02)
    exited = await ended(process)
    assert exited.exit_code == 9
    assert output.out.split() == [b"%d" % i for i in range(1, 300001)]
    assert output.err == b"oops\n"
    guest.close()
    assert not (await Guest.connect(path)).known  # released


async def test_an_exit_without_a_node_waits_for_the_next(attached: Inside) -> None:
    process, _ = await attached.start("sh", "-c", "sleep 0.1; echo late; exit 4")
    attached.guest.close()
    await asyncio.sleep(0.3)
    output, guest = Output(), await Guest.connect(attached.member.site.socket)
    assert guest.known[process.id].exited
    assert (await ended(guest.adopt(process.id, output.take, 0))).exit_code == 4
    assert output.out == b"late\n"
    guest.close()


async def test_input_that_the_old_node_gave_counts_for_the_next(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "sleep 0.3; wc -c", stdin=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.write_stdin(bytes(1 << 20))
    attached.guest.close()
    guest = await Guest.connect(attached.member.site.socket)
    process = guest.adopt(process.id, output.take, 0)
    async with asyncio.timeout(LIMIT):
        await process.write_stdin(bytes(1 << 20))
    await process.write_stdin(b"")
    assert (await ended(process)).exit_code == 0
    assert 1 << 20 < int(output.out) <= (1 << 20) + 2 * frames.STDIN_WINDOW
    guest.close()


async def test_starting_an_id_again_does_not_run_it_twice(attached: Inside) -> None:
    process, _ = await attached.start("sh", "-c", "echo ran >> /tmp/runs; sleep 0.2")
    attached.guest.close()
    guest = await Guest.connect(attached.member.site.socket)
    again = await guest.start(process.id, Command(["sh", "-c", "echo ran >> /tmp/runs"], PATH, "/"), Output().take)
    assert (await ended(again)).exit_code == 0
    assert await Inside(guest, attached.member, 10).shell("cat /tmp/runs") == "ran\n"
    guest.close()


async def test_a_process_that_nobody_waits_for_is_forgotten_when_it_ends(attached: Inside) -> None:
    process, output = await attached.start("sh", "-c", "echo up; sleep 68")
    await output.until(b"up")
    process.release()
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(LIMIT):
        await process.exited
        await attached.guest.ping()
    attached.guest.close()
    guest = await Guest.connect(attached.member.site.socket)
    assert not guest.known
    guest.close()


async def test_the_newest_connection_is_the_nodes(attached: Inside) -> None:
    newer = await Guest.connect(attached.member.site.socket)
    async with asyncio.timeout(LIMIT):
        await attached.guest.lost
    await newer.ping()
    newer.close()


async def test_nonsense_ends_the_connection_and_not_the_guest(attached: Inside) -> None:
    unknown, short = frames.HEADER.pack(4, 99, 0, 0, 0) + b"what", frames.HEADER.pack(1, 7, 0, 0, 0) + b"x"
    for nonsense in (b"\xff" * 64, unknown, short):
        attached.guest.send(nonsense)
        async with asyncio.timeout(LIMIT):
            await attached.guest.lost
        attached = replace(attached, guest=await Guest.connect(attached.member.site.socket), last=attached.last + 1)
        assert await attached.shell("echo fine") == "fine\n"
    attached.guest.close()


async def test_a_guest_that_is_killed_is_lost_to_all_who_wait(attached: Inside) -> None:
    process, _ = await attached.start("sleep", "67")
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    os.kill(attached.member.pid, signal.SIGKILL)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(GuestLost):
            await waiting
        with pytest.raises(GuestLost):
            await attached.guest.ping()


# ---- files


async def test_a_file_of_several_frames_is_written_whole(attached: Inside) -> None:
    data = os.urandom(700_000)
    await attached.guest.write_file("/tmp/file", 0o640, data)
    _, output = await attached.run("cat", "/tmp/file")
    assert output.out == data
    assert await attached.shell("stat -c %a /tmp/file") == "640\n"
    await attached.guest.write_file("/tmp/file", 0o600, b"short")
    assert await attached.shell("cat /tmp/file; stat -c %a /tmp/file") == "short600\n"


async def test_a_file_replaces_a_link_and_never_follows_it(attached: Inside) -> None:
    await attached.shell("echo untouched > /tmp/victim; ln -s /tmp/victim /tmp/link")
    await attached.guest.write_file("/tmp/link", 0o600, b"new")
    assert await attached.shell("cat /tmp/victim /tmp/link") == "untouched\nnew"


async def test_a_file_that_cannot_be_written_is_refused(attached: Inside) -> None:
    with pytest.raises(GuestRefused, match="/no/such/file"):
        await attached.guest.write_file("/no/such/file", 0o600, b"x")


async def test_what_is_asked_at_once_is_obeyed_in_order(world: World, idle_member: Member) -> None:
    await idle_member.mount([world.image], IDLE)
    guest, script, output = idle_member.guest, b"#!/bin/sh\nexit 5\n" + b"#" * 600_000, Output()
    *_, process = await asyncio.gather(
        guest.attach("nest", SIGHT),
        guest.write_file("/run/roost/script", 0o700, script),
        guest.start(1, Command(["/run/roost/script"], PATH, "/"), output.take),
    )
    assert (await ended(process)).exit_code == 5


async def test_what_is_asked_behind_a_refused_root_is_refused_too(world: World, idle_member: Member) -> None:
    guest = idle_member.guest
    answers = await asyncio.gather(
        guest.attach(
            "nest", SIGHT
        ),  # nothing is mounted that could be its root: /slot/root is a part of the node's slot
        guest.write_file("/run/roost/script", 0o700, b"#!/bin/sh\n"),
        guest.start(1, Command(["/run/roost/script"], PATH, "/"), Output().take),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [GuestRefused] * 3


async def test_an_image_without_etc_gets_one(world: World, idle_member: Member) -> None:
    image = world.directory / "bare"
    image.mkdir()
    try:
        await world.attach(idle_member, image)
        await idle_member.guest.write_file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n")
        assert (await Inside(idle_member.guest, idle_member).run("sh"))[0].exit_code == 127
    finally:
        image.rmdir()


# ---- what a sandbox's root may not do


async def test_an_image_whose_proc_is_a_link_is_refused(world: World, idle_member: Member, tmp_path: Path) -> None:
    image = world.directory / "crooked"
    image.mkdir()
    (image / "proc").symlink_to("/slot")
    try:
        with pytest.raises(GuestRefused, match="proc"):
            await idle_member.mount([image], IDLE)
            await idle_member.guest.attach("nest", SIGHT)
    finally:
        (image / "proc").unlink()
        image.rmdir()


async def test_a_guest_attaches_once(attached: Inside) -> None:
    with pytest.raises(GuestRefused, match="attach"):
        await attached.guest.attach("again", SIGHT)


async def test_its_capabilities_are_those_of_dockers_root(attached: Inside) -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    number = {name: int(value) for name, value in re.findall(r"#define (CAP_\w+)\s+(\d+)$", header, re.MULTILINE)}
    expected = sum(1 << number[name] for name in GUEST_CAPABILITIES)
    status = await attached.shell("cat /proc/self/status")
    sets = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert sets == {"CapInh:": 0, "CapPrm:": expected, "CapEff:": expected, "CapBnd:": expected, "CapAmb:": 0}
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


async def test_mounts_namespaces_and_names_are_refused(attached: Inside) -> None:
    exited, output = await attached.run("probe", "forbidden")
    answers = dict(line.split(" ", 1) for line in output.out.decode().splitlines())
    assert exited.exit_code == 0
    assert len(answers) == 18
    assert "allowed" not in answers.values(), answers


@X86
@pytest.mark.parametrize("abi", ["x32", "i386"])
async def test_another_set_of_system_calls_ends_the_process(attached: Inside, abi: str) -> None:
    exited, output = await attached.run("probe", abi)
    assert (exited.signal, output.out) == (signal.SIGSYS, b"")


async def test_init_cannot_be_looked_into(attached: Inside) -> None:
    for path in ("fd/3", "mem", "environ", "root", "cwd", "maps", "exe"):
        exited, output = await attached.run("sh", "-c", f"cat /proc/1/{path} || ls /proc/1/{path}/")
        assert exited.exit_code != 0, path
        assert not output.out, path
    _, output = await attached.run("sh", "-c", "for fd in /proc/1/fd/*; do readlink $fd; done")
    assert output.out == b""


async def test_init_cannot_be_traced_or_killed(attached: Inside) -> None:
    _, output = await attached.run("probe", "ptrace")
    assert output.out == b"attach Operation not permitted\nseize Operation not permitted\n"
    await attached.run("sh", "-c", "for n in 1 2 9 11 15 19; do kill -$n 1; done")
    await attached.guest.ping()


async def test_only_the_guests_own_files_are_reachable(attached: Inside) -> None:
    mounts = await attached.shell("cut -d' ' -f5 /proc/self/mountinfo | sort")
    assert "/slot" not in mounts
    assert mounts.split()[0] == "/"
    assert (await attached.shell("ls /")).split() == [
        *("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp"),
    ]


async def test_its_files_belong_to_the_guests_own_ids(attached: Inside) -> None:
    assert await attached.shell("touch /tmp/mine; stat -c '%u %g' /tmp/mine /bin/busybox") == "0 0\n0 0\n"
    host = host_pid(1, attached.member.pid)
    assert os.stat(f"/proc/{host}").st_uid in (0, attached.member.site.first_id)


# ---- what programs are told of their machine


async def sees(world: World, member: Member, limits: Limits, sight: Sight) -> Inside:
    await member.mount([world.image], limits)
    await member.guest.attach("nest", sight)
    member.forget_mounts()
    return Inside(member.guest, member)


async def test_programs_see_the_memory_and_processors_of_their_sandbox(world: World, idle_member: Member) -> None:
    inside = await sees(world, idle_member, structs.replace(IDLE, memory_mb=300), Sight(300 * MIB, 3, (0,)))
    told = await inside.shell("nproc; grep -c ^processor /proc/cpuinfo; grep -c ^cpu[0-9] /proc/stat")
    assert told.split() == ["1", "3", "3"]
    memory = await inside.shell("cat /proc/meminfo")
    kib = {line.split(":")[0]: int(line.split()[1]) for line in memory.splitlines()}
    assert kib["MemTotal"] == 300 * 1024 and 200 * 1024 < kib["MemFree"] <= kib["MemAvailable"] <= 300 * 1024
    assert kib["SwapTotal"] == kib["SwapFree"] == 0
    assert await inside.shell("cat /sys/devices/system/cpu/online /sys/devices/system/cpu/possible") == "0-2\n0-2\n"
    assert re.search(r"dev/shm.*size=153600k", await inside.shell("grep shm /proc/mounts"))
    assert (await inside.shell("cat /proc/swaps")).count("\n") == 1


async def test_what_programs_see_follows_what_the_sandbox_does(world: World, idle_member: Member) -> None:
    inside = await sees(world, idle_member, IDLE, Sight(1024 * MIB, 2))

    async def number(command: str) -> float:
        return float(await inside.shell(command))

    shared = "grep ^Shmem: /proc/meminfo | tr -dc 0-9"
    assert await number(shared) < 1000
    await inside.shell("head -c 50000000 /dev/zero > /dev/shm/big")
    busy = [await inside.start("sh", "-c", "while :; do :; done") for _ in range(2)]
    async with asyncio.timeout(LIMIT):
        while await number(shared) < 48_000:
            await asyncio.sleep(0.1)
        while await number("awk '/^cpu /{print $2 + $4}' /proc/stat") < 20:
            await asyncio.sleep(0.1)
        while await number("cut -d' ' -f1 /proc/loadavg") < 0.05:
            await asyncio.sleep(0.1)
    for process, _ in busy:
        process.signal(signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/ns/time").exists(), reason="a kernel without time namespaces")
async def test_uptime_begins_with_the_sandbox_for_all_that_is_reckoned_from_it(attached: Inside) -> None:
    assert float((await attached.shell("cut -d' ' -f1 /proc/uptime")).strip()) < 30
    begun, boot = (await attached.shell("cut -d' ' -f22 /proc/self/stat; awk '/btime/{print $2}' /proc/stat")).split()
    assert 0 <= int(begun) < 3000 and abs(int(boot) - time.time()) < 30


async def test_nobody_inside_changes_what_programs_are_told(attached: Inside) -> None:
    for file in ("meminfo", "cpuinfo", "stat", "loadavg", "swaps"):
        exited, _ = await attached.run("sh", "-c", f"echo lie > /proc/{file}")
        assert exited.exit_code != 0
    assert await attached.shell("ls -a /dev | grep sight; grep -c MemTotal /proc/meminfo") == "1\n"
