"""Scripts that misbehave cost themselves: the machine, its other sandboxes and the API stay usable."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.instance import Api, RunningRoost, eventually

MIB = 1024 * 1024
LOG_LIMIT = 64 * MIB  # far above what a log may hold, far below what these scripts write


@pytest.fixture
def neighbour(api: Api) -> Iterator[str]:
    """A well-behaved job beside the hostile one; it must get through unharmed."""
    job = api.submit("echo ready; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo unharmed")
    api.said(job, b"ready")
    yield job
    assert api.exec(job, "touch /tmp/go")["exit_code"] == 0
    ended = api.wait(job, 20)
    assert (ended.status, ended.stdout) == ("completed", b"ready\nunharmed\n")


BOMB = """#!/usr/bin/python3
import os
print("begun", flush=True)
while True:
    try: os.fork()
    except OSError: pass
"""


def test_a_fork_bomb_is_ended_and_says_why(roost: RunningRoost, api: Api, neighbour: str) -> None:
    job = api.submit(BOMB, vcpus=0.5)
    api.said(job, b"begun")
    site = roost.site_of(job)
    ended = api.wait(job, 30)
    assert (ended.status, ended.exit_code) == ("error", 137)
    assert "limit of 512 processes and threads" in ended.error
    assert "limit of 512 processes and threads" in ended.remarks.decode()
    eventually(lambda: not site.pids(), 20, "processes of the fork bomb are left")


def test_starts_beside_fork_bombs_take_no_longer_than_beside_busy_sandboxes(api: Api, neighbour: str) -> None:
    """A sandbox at its limit holds what others wait for only until it is stopped."""

    def took() -> float:
        begun = time.monotonic()
        assert api.run("true", 60).status == "completed"
        return time.monotonic() - begun

    busy = [api.submit("echo begun; while :; do :; done", vcpus=1) for _ in range(2)]
    for job in busy:
        api.said(job, b"begun")
    beside_busy = sorted(took() for _ in range(9))
    for job in busy:
        api.stop(job)
    bombs = [api.submit(BOMB, vcpus=1) for _ in range(2)]
    for job in bombs:
        api.said(job, b"begun")
    beside_bombs = sorted(took() for _ in range(9))
    print(
        f"beside busy sandboxes {beside_busy[4]:.2f} s, beside bombs {beside_bombs[4]:.2f} to {beside_bombs[-1]:.2f} s"
    )
    assert beside_bombs[4] < 2 * beside_busy[4] + 0.5
    for job in bombs:
        assert "processes and threads" in api.wait(job, 30).error


def test_a_program_that_only_runs_into_the_limit_of_processes_goes_on(roost: RunningRoost, api: Api) -> None:
    """As a pool of threads that is configured too large does."""
    script = """#!/usr/bin/python3
import threading, time
stop, held = threading.Event(), []
try:
    while True:
        held.append(threading.Thread(target=stop.wait, daemon=True))
        held[-1].start()
except RuntimeError: print("full", flush=True)
for _ in range(20):
    time.sleep(0.1)
    try: threading.Thread(target=stop.wait).start()
    except RuntimeError: pass
print(400 < len(held) <= 512)
stop.set()
"""
    ended = api.run(script, 60)
    assert (ended.status, ended.lines) == ("completed", ["full", "True"])


def test_filling_memory_ends_the_script_and_is_called_out_of_memory(api: Api, neighbour: str) -> None:
    script = "#!/usr/bin/python3\nprint('begun', flush=True)\nhoard = [b'x' * 1048576 for _ in range(4000)]\n"
    ended = api.run(script, memory_mb=128)
    assert (ended.status, ended.exit_code, ended.stdout) == ("error", 137, b"begun\n")
    assert "out of memory" in ended.error
    assert "128 MB" in ended.error
    assert b"out of memory" in ended.remarks


def test_a_child_that_fills_memory_does_not_take_the_script_with_it(api: Api) -> None:
    script = "python3 -c 'b = bytearray(4 << 30)'; echo child ended with $?"
    ended = api.run(script, memory_mb=128)
    assert (ended.status, ended.stdout) == ("completed", b"child ended with 137\n")
    assert b"out of memory" in ended.remarks


def test_files_in_memory_count_as_memory(api: Api) -> None:
    ended = api.run(
        "head -c 60M /dev/zero > /dev/shm/a; echo $?; cat /dev/shm/a /dev/zero > /dev/shm/b; echo $?", memory_mb=256
    )
    assert ended.lines[0] == "0"
    assert ended.lines[1] != "0"


def test_filling_the_disk_is_enospc_inside_and_bounded_outside(roost: RunningRoost, api: Api, neighbour: str) -> None:
    job = api.submit("cat /dev/zero > /fill; echo status $?; echo filled; sleep 100", disk_gb=1)
    assert b"status 1" in api.said(job, b"filled", 60)
    assert b"No space left" in api.raw(job, "stderr")
    site = roost.site_of(job)
    [image] = (roost.state / "node" / "disks").glob(f"roost-{site.instance}-{site.member}.img")
    assert image.stat().st_blocks * 512 <= 1024**3
    assert image.stat().st_size == 1024**3
    assert api.exec(job, "rm /fill && echo again > /fill && cat /fill")["stdout"] == "again\n"
    api.stop(job)
    api.wait(job, 20)
    eventually(lambda: not image.exists() or image.stat().st_blocks * 512 < 64 * MIB, 10, "the disk is still there")


def test_a_gigabyte_of_output_is_cut_and_the_log_says_so(roost: RunningRoost, api: Api, neighbour: str) -> None:
    job = api.submit("echo first; head -c 1G /dev/zero; echo status $? >&2")
    ended = api.wait(job, 120)
    assert (ended.status, ended.exit_code) == ("completed", 0)
    assert ended.stdout.startswith(b"first\n")
    assert 1 * MIB < len(ended.stdout) < LOG_LIMIT
    assert b"MB of output are left out here" in ended.remarks
    assert b"dropped" in ended.remarks
    files = list((roost.state / "node" / "logs").glob(f"{ended.state['vm_id']}.log*/*"))
    assert len(files) > 4 and sum(file.stat().st_size for file in files) < LOG_LIMIT


def test_closing_its_own_stdio_hides_nothing_else(api: Api) -> None:
    ended = api.run("echo before; exec <&- >&- 2>&-; sleep 0.2; exit 6")
    assert (ended.status, ended.exit_code, ended.stdout) == ("error", 6, b"before\n")


def test_a_script_that_ignores_term_is_stopped_within_seconds(roost: RunningRoost, api: Api) -> None:
    job = api.submit("trap '' TERM HUP INT QUIT; echo ready; while :; do sleep 1; done")
    api.said(job, b"ready")
    site = roost.site_of(job)
    begun = time.monotonic()
    assert api.stop(job)["success"] is True
    ended = api.wait(job, 10)
    assert time.monotonic() - begun < 10
    assert (ended.state["stopped"], ended.exit_code) == (True, 137)
    eventually(lambda: not site.pids(), 5)


def test_daemons_do_not_outlive_their_script(roost: RunningRoost, api: Api) -> None:
    script = """
    (setsid nohup sleep 4321 </dev/null >/dev/null 2>&1 &)
    python3 -c 'import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
time.sleep(4321)' &
    wait
    echo started
    while [ ! -e /tmp/go ]; do sleep 0.02; done
    """
    job = api.submit(script)
    api.said(job, b"started")
    site = roost.site_of(job)
    assert len(site.pids()) >= 4
    api.exec(job, "touch /tmp/go")
    assert api.wait(job, 10).status == "completed"
    eventually(lambda: not site.pids(), 10, "daemons are left")


def test_a_daemon_that_holds_its_output_open_does_not_keep_the_job_running(api: Api) -> None:
    ended = api.run("(setsid sleep 300 &) ; echo done", 10)
    assert (ended.status, ended.stdout) == ("completed", b"done\n")


def test_zombies_are_reaped(api: Api) -> None:
    script = "for i in $(seq 200); do (setsid true &) ; done; sleep 0.3; ls -d /proc/[0-9]* | wc -l"
    assert int(api.run(script).stdout) < 20


def test_a_flood_of_output_does_not_hold_up_other_jobs(api: Api) -> None:
    def median() -> float:
        times: list[float] = []
        for _ in range(5):
            begun = time.monotonic()
            assert api.run("echo here", 30).stdout == b"here\n"
            times.append(time.monotonic() - begun)
        return sorted(times)[2]

    alone = median()
    job = api.submit("yes 'a flood of lines'", vcpus=1)
    api.said(job, b"flood")
    beside = median()
    print(f"a job takes {alone * 1000:.0f} ms alone, {beside * 1000:.0f} ms beside a flood")
    assert beside < alone + 5
    api.stop(job)
    assert api.wait(job, 20).state["stopped"] is True


def test_endless_lines_without_an_end_are_readable(api: Api) -> None:
    ended = api.run("head -c 3000000 /dev/zero | tr '\\0' y")
    assert ended.stdout == b"y" * 3_000_000
    assert sum(len(entry["message"]) for entry in api.logs(ended.request_id)) == 3_000_000


def test_hostile_file_names_and_modes_do_not_stay(roost: RunningRoost, api: Api) -> None:
    script = """
    mkdir -p /a/b && chmod 000 /a && ln -s / /proc-link && mkfifo /fifo && chmod 000 /tmp /etc /usr
    i=0; d=/deep; while [ $i -lt 300 ]; do d=$d/x; i=$((i + 1)); done; mkdir -p $d
    touch "/$(printf 'new\\nline')" && echo made
    """
    job = api.run(script, 20)
    assert job.stdout == b"made\n"
    eventually(lambda: not (roost.state / "node" / "sandboxes" / f"{job.state['vm_id']}.json").exists(), 10)


def test_killing_everything_inside_ends_only_the_script(api: Api, neighbour: str) -> None:
    ended = api.run("echo begun; kill -9 -1; kill -9 1; kill -TERM 1; echo alive", 20)
    assert ended.lines[0] == "begun"
    assert ended.status in ("completed", "error")
    assert ended.exit_code is not None or "unknown" in ended.error


FLOOD = """#!/usr/bin/python3
import os, resource, socket, struct, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
KIND, USER = %r, %r
TIMES = 30 if KIND in ("udp", "ping") else 2000
os.setuid(USER)
held, datagram = [], b"x" * 50000
def send(sender, *target):
    sender.setblocking(False)
    try:
        for _ in range(TIMES):
            sender.sendto(*target) if len(target) > 1 else sender.send(*target)
    except OSError: pass
def tcp(accepted):
    listening = socket.create_server(("127.0.0.1", 0), backlog=300)
    held.append(listening)
    for _ in range(250):
        held.append(socket.create_connection(listening.getsockname()))
        if accepted: held.append(listening.accept()[0])
        send(held[-1], datagram)
def udp():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.setsockopt(1, 8, 1 << 20)
    held.append(one)
    send(one, datagram, one.getsockname())
def ping():
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1))
    held[-1].setsockopt(1, 8, 1 << 20)
    send(held[-1], struct.pack("!BBHHH", 8, 0, 0, 0, 1) + datagram, ("127.0.0.1", 0))
def route():
    held.append(socket.socket(16, 3, 0))
    held[-1].setsockopt(1, 8, 1 << 20)
    send(held[-1], struct.pack("=IHHII", 40, 9999, 5, 1, 0) + bytes(24))  # answered by an error
kinds = {"tcp": lambda: tcp(True), "backlog": lambda: tcp(False), "udp": udp, "ping": ping, "route": route}
try:
    while len(held) < 2000: kinds[KIND]()
except OSError as error: print(error)
print("held", len(held), flush=True)
time.sleep(100)
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


def waiting_in_sockets() -> int:
    """Bytes in all TCP and UDP sockets of the machine."""
    words = [line.split() for line in Path("/proc/net/sockstat").read_text().splitlines()]
    return sum(int(line[line.index("mem") + 1]) * PAGE for line in words if line[0] in ("TCP:", "UDP:"))


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("kind", ["tcp", "backlog", "udp", "ping", "route"])
def test_what_waits_in_sockets_is_bounded_for_each_sandbox(api: Api, kind: str, user: int) -> None:
    """One of 64 MB once held 1 to 2 GB of the machine's memory, and nobody was killed."""
    before = waiting_in_sockets()
    job = api.submit(FLOOD % (kind, user), memory_mb=64)
    eventually(lambda: b"held" in api.raw(job) or api.status(job)["status"] == "error", 60)
    if kind in ("ping", "route"):  # what waits in them counts nowhere, so they are few
        held = int(api.raw(job).split()[-1])
        assert 16 <= held <= 128
    else:
        assert waiting_in_sockets() - before < 256 * MIB
    api.stop(job)
    api.wait(job, 20)


def test_sockets_that_count_for_nobody_stay_few_whoever_holds_them(api: Api) -> None:
    script = """#!/usr/bin/python3
import os, socket
def fill(hold):
    try:
        while True: hold.append(socket.socket(16, 3, 0))
    except OSError as error: return error.strerror
held, more, again = [], [], []
print(fill(held))
near, far = socket.socketpair()
socket.send_fds(near, [b"x"], [held[0].fileno()])
held.pop(0).close()
print(fill(more), len(more))  # one waits in a socket, so it is still there
held.pop().close()
print(fill(again), len(again))
"""
    assert api.run(script).lines == ["No buffer space available"] + [
        f"No buffer space available {count}" for count in (0, 1)
    ]


def test_names_are_looked_up_by_many_threads_at_once(api: Api) -> None:
    """Each look-up of the C library takes a netlink socket for a moment."""
    script = """#!/usr/bin/python3
import concurrent.futures, socket
with concurrent.futures.ThreadPoolExecutor(64) as threads:
    found = list(threads.map(lambda _: len(socket.getaddrinfo("localhost", 80) and socket.if_nameindex()), range(2000)))
print({*found})
"""
    assert api.run(script).lines == ["{2}"]


def test_no_filter_is_attached_to_a_socket(api: Api) -> None:
    """Compiled ones are bounded for the whole machine; when none is left, no sandbox starts."""
    script = """#!/usr/bin/python3
import errno, socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for option in (26, 50, 51, 52):
    try: one.setsockopt(socket.SOL_SOCKET, option, bytes(16)); print("attached")
    except OSError as error: print(errno.errorcode[error.errno])
"""
    assert api.run(script).lines == ["EPERM"] * 4


@pytest.mark.parametrize("family", ["ndisc", "arp"])
def test_neighbours_that_nobody_is_do_not_fill_the_machines_table(api: Api, family: str) -> None:
    def overflows() -> int:
        rows = [line.split() for line in Path(f"/proc/net/stat/{family}_cache").read_text().splitlines()]
        at = rows[0].index("table_fulls")
        return sum(int(row[at], 16) for row in rows[1:])

    before = overflows()
    targets = {"ndisc": "f'fe80::{i:x}%eth0'", "arp": "f'224.1.{i // 250}.{i % 250}'"}[family]
    script = f"""#!/usr/bin/python3
import socket
family = socket.AF_INET6 if {family!r} == "ndisc" else socket.AF_INET
sent = 0
for i in range(1, 4000):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(b"x", socket.getaddrinfo({targets}, 9, family, socket.SOCK_DGRAM)[0][4]); sent += 1
        except OSError as error: why = error
print(sent if sent else why)
"""
    ended = api.run(script)
    assert ended.exit_code == 0, ended.stderr
    assert overflows() == before, ended.text


FILTERS = """#!/usr/bin/python3
import ctypes, errno, os, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))  # allow everything
program = Program(1, ctypes.addressof(code))
def install():
    if libc.prctl(22, 2, ctypes.byref(program)) == 0: return True
    return libc.syscall(NUMBER, 1, 0, ctypes.byref(program)) == 0
NUMBER = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
made = 0
while made < 3000 and install(): made += 1
print(made, errno.errorcode[ctypes.get_errno()])
more = []
def another(): more.append(install())
thread = threading.Thread(target=another); thread.start(); thread.join()
if os.fork() == 0: os._exit(install())
print(more, os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_filters_of_a_sandboxs_own_programs_are_bounded(api: Api) -> None:
    """Seccomp's: compiled, they take memory that is bounded for the whole machine, and without it nothing starts."""
    most, again = api.run(FILTERS).lines
    assert most == "1024 ENOMEM"
    assert again == "[False] 0"


def test_programs_that_confine_themselves_may(api: Api) -> None:
    script = FILTERS.partition("made = 0")[0] + "print(install(), install())"
    assert api.run(script).lines == ["True True"]
    assert api.run("grep Seccomp_filters /proc/self/status").lines == ["Seccomp_filters:\t2"]
