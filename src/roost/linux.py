"""The Linux calls that Python's library does not have: mounts, namespaces, privileges.

Both programs may import this, so it knows nothing of either: each function is one call of the kernel with
typed arguments. A failure is an OSError whose text begins with the call's name. Namespaces and privileges are
those of the calling thread: call such functions in a process that has only one.
"""

import ctypes
import errno
import os
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
MS_SEALED = MS_NOSUID | MS_NODEV | MS_NOEXEC  # files of others, from which this machine runs and opens nothing

# open_tree(2), move_mount(2), mount_setattr(2), fsmount(2)
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_SEALED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6

# openat2(2)
RESOLVE_NO_XDEV = 0x01  # not into another mount
RESOLVE_NO_MAGICLINKS = 0x02  # not through /proc/PID/fd and its like
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10  # as after a chroot to the directory

# unshare(2), setns(2)
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# System call numbers since 5.2 are the same on x86-64 and arm64.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

PathLike = str | os.PathLike[str]


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _checked(name: str, result: int, subject: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        what = f"{name} {subject}".rstrip()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _bytes(text: PathLike | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _syscall(name: str, number: int, *arguments: object, subject: str = "") -> int:
    return _checked(name, int(_libc.syscall(ctypes.c_long(number), *arguments)), subject)


def mount(
    source: PathLike | None,
    target: PathLike,
    kind: str | None = None,
    flags: int = 0,
    options: str | None = None,
) -> None:
    """mount(2); `kind` is the file system's type, `options` its comma-separated data (< 4,096 bytes)."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _checked("mount", result, os.fsdecode(target))


def umount(target: PathLike, flags: int = 0) -> None:
    _checked("umount", _libc.umount2(_bytes(target), ctypes.c_int(flags)), os.fsdecode(target))


def pivot_root(new_root: PathLike, put_old: PathLike) -> None:
    _checked("pivot_root", _libc.pivot_root(_bytes(new_root), _bytes(put_old)), os.fsdecode(new_root))


def unshare(namespaces: int) -> None:
    _checked("unshare", _libc.unshare(ctypes.c_int(namespaces)))


def setns(fd: int, namespaces: int = 0) -> None:
    """Enter the namespace behind `fd` (of /proc/PID/ns/…), or those named of the process behind a pidfd."""
    _checked("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(namespaces)))


def openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """Open what `path` leads to from an open directory, resolved as RESOLVE_ flags allow. The caller closes it.

    Close-on-exec always. EAGAIN: something on the way was renamed meanwhile; try again.
    """
    if b"\0" in path:
        raise OSError(errno.EINVAL, "openat2: a path cannot contain NUL")
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _syscall(
        "openat2",
        _SYS_OPENAT2,
        ctypes.c_int(directory),
        path,
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
        subject=os.fsdecode(path),
    )


def open_tree(path: PathLike, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, at: int = AT_FDCWD) -> int:
    """A descriptor of the mount at `path`; by default of a detached clone of it. The caller closes it."""
    return _syscall(
        "open_tree",
        _SYS_OPEN_TREE,
        ctypes.c_int(at),
        _bytes(path),
        ctypes.c_uint(flags),
        subject=os.fsdecode(path),
    )


def move_mount(fd: int, target: PathLike, at: int = AT_FDCWD) -> None:
    """Attach the detached mount behind `fd` (of open_tree or fsmount) at `target` (empty: at `at` itself)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if os.fspath(target) else MOVE_MOUNT_T_EMPTY_PATH)
    _syscall(
        "move_mount",
        _SYS_MOVE_MOUNT,
        ctypes.c_int(fd),
        b"",
        ctypes.c_int(at),
        _bytes(target),
        ctypes.c_uint(flags),
        subject=os.fsdecode(target),
    )


def mount_setattr(
    fd: int,
    path: PathLike = "",
    *,
    add: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns_fd: int | None = None,
) -> None:
    """Change a mount's attributes: of the one behind `fd`, or at `path` seen from it.

    `add` and `clear` are MOUNT_ATTR_ flags, `propagation` MS_SHARED, MS_SLAVE, MS_PRIVATE or
    MS_UNBINDABLE. `userns_fd` maps the ids of a detached, so far unmapped mount by that user namespace.
    """
    if userns_fd is not None:
        add |= MOUNT_ATTR_IDMAP
    attributes = _MountAttr(add, clear, propagation, userns_fd or 0)
    flags = (AT_RECURSIVE if recursive else 0) | (0 if os.fspath(path) else AT_EMPTY_PATH)
    _syscall(
        "mount_setattr",
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(fd),
        _bytes(path),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        subject=os.fsdecode(path),
    )


def fsopen(kind: str) -> int:
    """A new file system's configuration; the caller closes it."""
    return _syscall("fsopen", _SYS_FSOPEN, _bytes(kind), ctypes.c_uint(FSOPEN_CLOEXEC), subject=kind)


def _fsconfig(fd: int, command: int, key: str | None, value: bytes | None, aux: int) -> None:
    _syscall(
        "fsconfig",
        _SYS_FSCONFIG,
        ctypes.c_int(fd),
        ctypes.c_uint(command),
        _bytes(key),
        value,
        ctypes.c_int(aux),
        subject=key or "create",
    )


def fsconfig_string(fd: int, key: str, value: PathLike) -> None:
    _fsconfig(fd, _FSCONFIG_SET_STRING, key, os.fsencode(value), 0)


def fsconfig_flag(fd: int, key: str) -> None:
    _fsconfig(fd, _FSCONFIG_SET_FLAG, key, None, 0)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    _fsconfig(fd, _FSCONFIG_SET_FD, key, None, value)


def fsconfig_create(fd: int) -> None:
    _fsconfig(fd, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of the file system configured behind `fd`; the caller closes it after move_mount."""
    return _syscall(
        "fsmount", _SYS_FSMOUNT, ctypes.c_int(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes)
    )


def _prctl(name: str, option: int, *values: int) -> int:
    padded = (*values, 0, 0, 0, 0)[:4]
    return _checked(f"prctl {name}", _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(v) for v in padded)))


def set_parent_death_signal(signal: int) -> None:
    """Be sent `signal` when the thread that made this process ends. A change of user id forgets it."""
    _prctl("PDEATHSIG", _PR_SET_PDEATHSIG, signal)


def set_no_new_privileges() -> None:
    _prctl("NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def drop_bounding_set() -> None:
    """No program that this process runs, whatever its file says, gains a capability. Needs CAP_SETPCAP."""
    for capability in range(last_capability() + 1):
        _prctl("CAPBSET_DROP", _PR_CAPBSET_DROP, capability)


def clear_capabilities() -> None:
    """Empty the ambient, inheritable, permitted and effective sets."""
    _prctl("CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _checked("capset", _libc.capset(header, none))


def become(uid: int, gid: int, groups: Iterable[int] = ()) -> None:
    """From root to an ordinary user, for good: no capability in any set, and none to be had."""
    drop_bounding_set()
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    clear_capabilities()
    set_no_new_privileges()
