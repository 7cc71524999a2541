"""Which system calls a sandbox may make: the profile that the OCI runtime loads before guest init starts.

The list is Docker's default profile for a container without extra capabilities, less what a sandbox has no use for
(other machine modes, odd socket families), less what takes memory or quotas of the machine that no control group
counts (`SOCKETS`, asynchronous I/O), plus `INIT_ONLY`, which guest init needs to enter its root file system. Guest
init refuses `CHILD_DENYLIST` by a filter of its own (guest/filter.c) before it runs a user's code, so that nothing of
`INIT_ONLY` is ever in a user's hands; that one also sees to it that sockets which count nowhere are few. Filters only
tighten: what is refused here stays refused.
"""

import errno
from typing import Any, Literal

Architecture = Literal["x86_64", "aarch64"]

ALLOW = 0  # in place of an errno

INIT_ONLY = ("mount", "umount2", "pivot_root", "open_tree", "move_mount", "sethostname")

CHILD_DENYLIST: tuple[str, ...] = (
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "sethostname",
    "setdomainname",
    "unshare",
    "setns",
    "clone3",
)
"""Calls that guest init refuses to its children, besides `clone` with any of `NAMESPACE_FLAGS`: with EPERM, but
`clone3` with ENOSYS (its flags lie in memory, where no filter reads them; C libraries then fall back to clone)."""

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; clone knows no NEWTIME, its bit is part of the signal there
NAMESPACE_FLAGS = 0x7E020000
CLONE_NEWTIME = 0x80

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE_MASK = 1, 2, 0xF  # the other bits are SOCK_CLOEXEC and SOCK_NONBLOCK
IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6 = 1, 6, 17, 58
NETLINK_ROUTE = 0

SOCKETS: dict[tuple[int, int], tuple[int, ...]] = {
    (AF_INET, SOCK_STREAM): (0, IPPROTO_TCP),
    (AF_INET6, SOCK_STREAM): (0, IPPROTO_TCP),
    (AF_INET, SOCK_DGRAM): (0, IPPROTO_ICMP, IPPROTO_UDP),
    (AF_INET6, SOCK_DGRAM): (0, IPPROTO_UDP, IPPROTO_ICMPV6),
}
"""By family and type the protocols that there are, beside AF_UNIX and NETLINK_ROUTE. What waits in a socket that is not
TCP's, UDP's or AF_UNIX's counts for no control group. So there are no packet sockets, no raw ones, and of netlink what
getifaddrs needs."""

PERSONALITIES = (
    0x0,  # Linux
    0x8,  # Linux 32-bit: what uname says, nothing more
    0x20000,  # UNAME26
    0x20008,
    0xFFFFFFFF,  # only asks
)

_FILES = """
    open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev
    preadv2 pwritev2 lseek dup dup2 dup3 fcntl flock ioctl fsync fdatasync sync syncfs sync_file_range
    truncate ftruncate fallocate fadvise64 readahead copy_file_range sendfile splice tee vmsplice cachestat
    stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getcwd chdir fchdir chroot
    getdents getdents64 mkdir mkdirat rmdir link linkat symlink symlinkat unlink unlinkat rename renameat
    renameat2 readlink readlinkat mknod mknodat umask chmod fchmod fchmodat fchmodat2 chown fchown lchown
    fchownat utime utimes futimesat utimensat name_to_handle_at getxattr lgetxattr fgetxattr getxattrat
    setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat removexattr
    lremovexattr fremovexattr removexattrat inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    fanotify_mark memfd_create memfd_secret statmount listmount landlock_create_ruleset landlock_add_rule
    landlock_restrict_self
"""
_MEMORY = """
    brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 mlockall munlock munlockall mseal
    membarrier remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack process_mrelease
"""
_PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp setpgid
    getsid setsid set_tid_address set_robust_list get_robust_list rseq uname sysinfo times getrusage
    getrlimit setrlimit prlimit64 getpriority setpriority ioprio_get ioprio_set prctl arch_prctl seccomp
    getcpu getrandom restart_syscall uretprobe ptrace process_vm_readv process_vm_writev pidfd_open
    pidfd_send_signal sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam
    sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_yield
"""
_IDENTITY = """
    getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid
    setresgid setfsuid setfsgid setgroups capget capset
"""
_SIGNALS = """
    kill tkill tgkill rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 pause
"""
_WAITING = """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    eventfd eventfd2 futex futex_waitv futex_wait futex_wake futex_requeue
"""
ASYNCHRONOUS_IO = ("io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents")
"""They look absent, as on a kernel built without them: what they queue is bounded for the whole machine alone
(fs.aio-max-nr), and databases do without."""

_TIME = """
    time gettimeofday clock_gettime clock_getres clock_nanosleep clock_adjtime adjtimex nanosleep alarm
    getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_settime
    timerfd_create timerfd_gettime timerfd_settime
"""
_TALKING = """
    pipe pipe2 bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt
    sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg msgget msgsnd msgrcv msgctl semget semop semtimedop
    semctl shmget shmat shmdt shmctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
"""
ALLOWED: tuple[str, ...] = tuple(
    " ".join((_FILES, _MEMORY, _PROCESSES, _IDENTITY, _SIGNALS, _WAITING, _TIME, _TALKING)).split()
)
"""Calls that are allowed whatever their arguments; a name that an architecture lacks is passed over."""


def profile(architecture: Architecture) -> dict[str, Any]:
    """The `linux.seccomp` object of an OCI config. A program of another machine mode is killed by SIGSYS."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [{"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[architecture]],
        "syscalls": [
            {"names": [*ALLOWED, *INIT_ONLY], "action": "SCMP_ACT_ALLOW"},
            _rule("clone", ALLOW, {0: (NAMESPACE_FLAGS, 0)}),
            _rule("unshare", ALLOW, {0: ("EQ", CLONE_NEWTIME)}),  # guest init's, for the sandbox's uptime
            {"names": ["clone3", *ASYNCHRONOUS_IO], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            *_sockets(),
            _rule("socketpair", ALLOW, {0: ("EQ", AF_UNIX)}),
            *(_rule("personality", ALLOW, {0: ("EQ", persona)}) for persona in PERSONALITIES),
        ],
    }


Condition = tuple[Literal["EQ", "NE", "GT"], int] | tuple[int, int]  # the latter: (mask, what must remain)


def _sockets() -> list[dict[str, Any]]:
    """No two rules hold for one call, since which of two would count is nowhere laid down.

    AF_ALG, AF_VSOCK and their like, and what the families that there are have besides, look absent rather than
    forbidden: programs that try them then fall back. Raw sockets are forbidden, as to any user but root: ping and
    traceroute then take datagrams.
    """
    absence = errno.EPROTONOSUPPORT
    allowed = [
        _rule("socket", ALLOW, {0: ("EQ", family), 1: (SOCK_TYPE_MASK, kind), 2: ("EQ", protocol)})
        for (family, kind), protocols in SOCKETS.items()
        for protocol in protocols
    ]
    absent = [
        _rule(
            "socket", errno.EPROTONOSUPPORT, {0: ("EQ", family), 1: (SOCK_TYPE_MASK, kind), 2: ("GT", max(protocols))}
        )
        for (family, kind), protocols in SOCKETS.items()
    ]
    return [
        _rule("socket", ALLOW, {0: ("EQ", AF_UNIX)}),
        _rule("socket", ALLOW, {0: ("EQ", AF_NETLINK), 2: ("EQ", NETLINK_ROUTE)}),
        _rule("socket", absence, {0: ("EQ", AF_NETLINK), 2: ("NE", NETLINK_ROUTE)}),
        _rule("socket", errno.EAFNOSUPPORT, {0: ("GT", AF_NETLINK)}),
        *allowed,
        *absent,
    ]


def _rule(name: str, error: int, conditions: dict[int, Condition]) -> dict[str, Any]:
    """Allowed (`error` is ALLOW) or refused with this errno where all conditions on the arguments hold."""
    arguments = [_argument(index, *condition) for index, condition in conditions.items()]
    if error == ALLOW:
        return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments}
    return {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": arguments}


def _argument(index: int, op: str | int, value: int) -> dict[str, Any]:
    # For MASKED_EQ `value` is the mask and `valueTwo` what must remain; other operators ignore `valueTwo`.
    if isinstance(op, int):
        return {"index": index, "value": op, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {"index": index, "value": value, "valueTwo": 0, "op": f"SCMP_CMP_{op}"}
