"""Gives the files of a finished sandbox container ids, so that any later sandbox can mount them.

While a sandbox lives, its files carry the ids of its own range on this machine (`first_id` + id). A layer holds plain
container ids, like an image, and every sandbox maps them to its own range when it mounts the layer. What a chown takes
away (set-uid bits, capabilities) is put back; ids inside capabilities and access control lists are shifted too.
"""

import errno
import os
import stat
import struct
from pathlib import Path

from roost.node.descent import beside, walk
from roost.node.member import IDS

CAPABILITY = "security.capability"
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_REVISION_3, _REVISION_2, _REVISION_MASK = 0x03000000, 0x02000000, 0xFF000000
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 0x02, 0x08


def canonicalise(upper: Path, first_id: int) -> None:
    """Safe to repeat: an id that is shifted already is left alone. Nothing else may change `upper` meanwhile."""
    above = os.open(upper.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _shift(above, upper.name, upper.lstat(), first_id)
    finally:
        os.close(above)
    for found in walk(upper):
        _shift(found.directory, found.name, found.status, first_id)


def shifted(id: int, first_id: int) -> int:
    return id - first_id if first_id <= id < first_id + IDS else id


def _shift(directory: int, name: str, status: os.stat_result, first_id: int) -> None:
    uid, gid = shifted(status.st_uid, first_id), shifted(status.st_gid, first_id)
    if (uid, gid) == (status.st_uid, status.st_gid):
        return
    link, path = stat.S_ISLNK(status.st_mode), beside(directory, name)
    capability = None if link else _attribute(path, CAPABILITY)
    for attribute in () if link else ACLS:
        if (acl := _attribute(path, attribute)) is not None:
            os.setxattr(path, attribute, shift_acl(acl, first_id), follow_symlinks=False)
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    if not link and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        Path(path).chmod(stat.S_IMODE(status.st_mode))
    if capability is not None:
        os.setxattr(path, CAPABILITY, plain_capability(capability), follow_symlinks=False)


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def plain_capability(value: bytes) -> bytes:
    """Without the id of the root user whose capabilities they were (vfs_cap_data revision 3 to 2)."""
    if len(value) < 20:
        return value
    (magic,) = struct.unpack_from("<I", value)
    if magic & _REVISION_MASK != _REVISION_3:
        return value
    return struct.pack("<I", magic & ~_REVISION_MASK | _REVISION_2) + value[4:20]


def shift_acl(value: bytes, first_id: int) -> bytes:
    """posix_acl_xattr: a u32 version, then entries of tag, permissions and id."""
    shifted_entries = [
        _ACL_ENTRY.pack(tag, permissions, shifted(id, first_id) if tag in (_ACL_USER, _ACL_GROUP) else id)
        for tag, permissions, id in _ACL_ENTRY.iter_unpack(value[4:])
    ]
    return value[:4] + b"".join(shifted_entries)
