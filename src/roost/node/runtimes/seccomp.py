"""Which system calls a sandbox may make: the profile that the OCI runtime loads before guest init starts.

The list is Docker's default profile for a container without extra capabilities, less what a sandbox has no
use for (other machine modes, odd socket families), plus `INIT_ONLY`, which guest init needs to enter its root
file system. Guest init refuses `CHILD_DENYLIST` by a filter of its own before it runs a user's code, so that
nothing of `INIT_ONLY` is ever in a user's hands. Filters only tighten: what is refused here stays refused.
"""

import errno
from typing import Any, Literal

Architecture = Literal["x86_64", "aarch64"]

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

SOCKET_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}

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
    eventfd eventfd2 futex futex_waitv futex_wait futex_wake futex_requeue io_setup io_destroy io_submit
    io_cancel io_getevents io_pgetevents
"""
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
            _allow_if("clone", 0, "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS),
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            *(_allow_if("socket", 0, "SCMP_CMP_EQ", family) for family in SOCKET_FAMILIES.values()),
            _refuse_rare_families(),
            _allow_if("socketpair", 0, "SCMP_CMP_EQ", SOCKET_FAMILIES["AF_UNIX"]),
            *(_allow_if("personality", 0, "SCMP_CMP_EQ", persona) for persona in PERSONALITIES),
        ],
    }


def _allow_if(name: str, index: int, op: str, value: int) -> dict[str, Any]:
    # For MASKED_EQ `value` is the mask and `valueTwo` what must remain; other operators ignore `valueTwo`.
    argument = {"index": index, "value": value, "valueTwo": 0, "op": op}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}


def _refuse_rare_families() -> dict[str, Any]:
    """AF_ALG, AF_VSOCK and their like look absent, not forbidden: programs that try them then fall back."""
    beyond = {"index": 0, "value": max(SOCKET_FAMILIES.values()), "valueTwo": 0, "op": "SCMP_CMP_GT"}
    return {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EAFNOSUPPORT, "args": [beyond]}
