import errno
import platform
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.node.runtimes import seccomp

from .container_world import World, build_probe

# What Docker's default profile (moby/profiles of June 2026) allows to every container, whatever the arguments, and
# what it adds on kernels since 4.8, for CAP_SYS_CHROOT and for this architecture.
DOCKER_ALLOWS = set(
    """
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl
    shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat
    stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate
    truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork
    vmsplice wait4 waitid waitpid write writev
    ptrace process_vm_readv process_vm_writev
    chroot
    arch_prctl modify_ldt
    """.split()  # noqa: SIM905 - a paragraph is read and compared more easily than a column
)
DOCKER_ALLOWS_WITH_ARGUMENTS = {"clone", "socket", "personality"}

NEVER = set(
    """
    bpf keyctl add_key request_key userfaultfd io_uring_setup io_uring_enter io_uring_register perf_event_open
    kexec_load kexec_file_load init_module finit_module delete_module open_by_handle_at unshare setns fsopen
    fsconfig fsmount fspick mount_setattr setdomainname reboot swapon swapoff settimeofday clock_settime acct
    quotactl quotactl_fd syslog kcmp pidfd_getfd process_madvise mbind fanotify_init vhangup
    """.split()  # noqa: SIM905 - a paragraph is read and compared more easily than a column
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build_probe(target := tmp_path_factory.mktemp("probe") / "init")
    return target


@pytest.fixture
async def world(probe: Path) -> AsyncIterator[World]:
    world = World.make(probe)
    yield world
    await world.close()


@pytest.fixture
async def answers(world: World) -> dict[str, str]:
    """What each call that the probe tries comes to inside a real container: an errno, "0" or a word."""
    member = await world.running()
    return dict(line.split() for line in member.ask("syscalls").splitlines())


# ---- the profile, as data


def test_nothing_is_allowed_that_docker_refuses_except_what_guest_init_needs() -> None:
    allowed = {
        name
        for rule in seccomp.profile("x86_64")["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW"
    }
    beyond = allowed - DOCKER_ALLOWS - DOCKER_ALLOWS_WITH_ARGUMENTS
    assert beyond == {"mount", "umount2", "pivot_root", "open_tree", "move_mount", "sethostname", "unshare"}
    assert NEVER & allowed == {"unshare"}  # of nothing but time, see the next test


def test_what_docker_limits_by_arguments_is_limited_here() -> None:
    rules = seccomp.profile("x86_64")["syscalls"]
    limited = {name: rule for rule in rules for name in rule["names"] if "args" in rule}
    assert set(limited) == {"clone", "socket", "socketpair", "personality", "unshare"}
    assert limited["unshare"]["args"] == [{"index": 0, "value": 0x80, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]  # NEWTIME
    assert not set(limited) & set(seccomp.ALLOWED)
    assert limited["clone"]["args"] == [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    personalities = [rule["args"][0]["value"] for rule in rules if rule["names"] == ["personality"]]
    assert personalities == [0, 8, 131072, 131080, 4294967295]


def test_guest_init_takes_back_everything_that_only_it_was_given() -> None:
    assert {*seccomp.INIT_ONLY, "unshare"} < set(seccomp.CHILD_DENYLIST)


def test_only_the_machines_own_mode_is_known() -> None:
    assert seccomp.profile("x86_64")["architectures"] == ["SCMP_ARCH_X86_64"]
    assert seccomp.profile("aarch64")["architectures"] == ["SCMP_ARCH_AARCH64"]


def test_no_name_is_listed_twice() -> None:
    assert len(seccomp.ALLOWED) == len(set(seccomp.ALLOWED))


# ---- the profile, in force


async def test_dangerous_calls_are_refused(answers: dict[str, str]) -> None:
    assert {name: answers[name] for name in NEVER} == dict.fromkeys(NEVER, str(errno.EPERM))


async def test_clone3_looks_absent_so_that_c_libraries_fall_back(answers: dict[str, str]) -> None:
    assert answers["clone3"] == str(errno.ENOSYS)
    assert answers["clone"] == str(errno.EPERM)  # tried with CLONE_NEWUSER
    assert answers["beyond_every_kernel"] == str(errno.ENOSYS)


async def test_a_mount_call_newer_than_the_profile_is_refused(answers: dict[str, str]) -> None:
    assert answers["open_tree_attr"] in (str(errno.ENOSYS), str(errno.EPERM))


async def test_rare_socket_families_are_refused(answers: dict[str, str]) -> None:
    absent = {
        f"socket_{family}": str(errno.EAFNOSUPPORT) for family in ("AF_ALG", "AF_VSOCK", "AF_BLUETOOTH", "AF_TIPC")
    }
    forbidden = {name: str(errno.EPERM) for name in ("socket_AF_AX25", "socket_AF_KEY", "socketpair")}
    expected = absent | forbidden
    assert {name: answers[name] for name in expected} == expected


STREAM, DGRAM, RAW, SEQPACKET, PACKET = 1, 2, 3, 5, 10
INET, INET6, NETLINK, AF_PACKET = 2, 10, 16, 17
NEEDED = [
    (INET, STREAM, 0),
    (INET6, STREAM, 6),
    (INET, DGRAM, 17),
    (INET6, DGRAM, 0),
    (NETLINK, RAW, 0),
    (NETLINK, DGRAM, 0),
]
UNCOUNTED = {
    "packets": [(AF_PACKET, kind, protocol) for kind in (RAW, DGRAM, PACKET) for protocol in (0, 0x0300)],
    "other netlink": [(NETLINK, RAW, protocol) for protocol in range(1, 23)],
    "raw": [(family, RAW, protocol) for family in (INET, INET6) for protocol in (0, 1, 6, 17, 58, 132, 255)],
    "other datagrams": [(family, DGRAM, protocol) for family in (INET, INET6) for protocol in (2, 33, 115, 132, 136)],
    "other streams": [(family, STREAM, protocol) for family in (INET, INET6) for protocol in (1, 132, 256, 262)],
    "other kinds": [(INET, SEQPACKET, 0), (INET, PACKET, 0x0300), (INET6, SEQPACKET, 132), (INET, 6, 33)],
}


@pytest.mark.parametrize("kind", UNCOUNTED)
async def test_there_is_no_socket_whose_memory_no_control_group_counts(world: World, kind: str) -> None:
    member = await world.running()
    for family, type, protocol in UNCOUNTED[kind]:
        for flags in (0, 0o2000000, 0o2004000):  # SOCK_CLOEXEC, SOCK_NONBLOCK
            said = member.ask(f"socket {family} {type | flags} {protocol}").split()[1]
            assert int(said) in (errno.EPERM, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT), (family, type, protocol, said)


async def test_what_programs_try_first_looks_absent_and_raw_sockets_forbidden(world: World) -> None:
    """libaudit goes on only where the kernel seems to lack it; ping takes a datagram socket only after EPERM."""
    member = await world.running()
    said = {
        one: int(member.ask(f"socket {one}").split()[1]) for one in ("16 3 9", "16 3 15", "2 1 262", "2 3 1", "17 3 0")
    }
    absent, forbidden = errno.EPROTONOSUPPORT, errno.EPERM
    assert said == {
        "16 3 9": absent,
        "16 3 15": absent,
        "2 1 262": absent,
        "2 3 1": forbidden,
        "17 3 0": errno.EAFNOSUPPORT,
    }


async def test_the_sockets_that_programs_need_are_there(world: World) -> None:
    member = await world.running()
    for family, type, protocol in NEEDED:
        assert member.ask(f"socket {family} {type | 0o2004000} {protocol}") == "socket 0\n", (family, type, protocol)
    assert member.ask("socket 2 2 1") == member.ask("socket 10 2 58") == "socket 0\n"  # ping


async def test_asynchronous_io_looks_absent(answers: dict[str, str]) -> None:
    assert answers["io_setup"] == answers["io_destroy"] == str(errno.ENOSYS)


async def test_ordinary_sockets_and_personality_queries_work(answers: dict[str, str]) -> None:
    working = ("socket_AF_UNIX", "socket_AF_INET", "socket_AF_INET6", "socket_AF_NETLINK", "sethostname")
    assert {name: answers[name] for name in working} == dict.fromkeys(working, "0")


async def test_address_randomisation_cannot_be_switched_off(world: World) -> None:
    member = await world.running()
    lines = [line for line in member.ask("syscalls").splitlines() if line.startswith("personality ")]
    assert lines == [f"personality {errno.EPERM}", "personality 0"]  # ADDR_NO_RANDOMIZE, then a query


async def test_guest_init_itself_may_still_mount(answers: dict[str, str]) -> None:
    refused_by_filter = str(errno.EPERM)
    assert refused_by_filter not in (answers["mount"], answers["open_tree"], answers["move_mount"])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 has no other modes that matter here")
async def test_programs_of_other_machine_modes_do_not_run(answers: dict[str, str]) -> None:
    assert (answers["i386"], answers["x32"]) == ("refused", "refused")
