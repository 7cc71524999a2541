"""Extended attributes: which are kept, and the user ids inside them.

On disk ids are shifted by the layer's `first_id`; what is kept are the guest's own ids. File capabilities carry the id
of the user namespace's root (revision 3), access lists carry ids of users and groups.
"""

import errno
import os
import struct
from collections.abc import Sequence

IDS = 65536
NOBODY = 65534
CAPABILITY = "security.capability"
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
OPAQUE = "trusted.overlay.opaque"
FORBIDDEN = ("trusted.overlay.redirect", "trusted.overlay.metacopy")

_CAP_2, _CAP_3, _CAP_VERSION = 0x02000000, 0x03000000, 0xFF000000
_ACL_USER, _ACL_GROUP = 2, 8

# Not an error: the file system has none, or the file was replaced by one that cannot have any.
_NONE = (errno.ENOTSUP, errno.ENODATA, errno.ENOENT, errno.EPERM, errno.ELOOP)


def kept(name: str) -> bool:
    """A guest can write no others; the rest belongs to the machine."""
    return name.startswith("user.") or name == CAPABILITY or name in ACLS


def names_of(where: int | str) -> list[str]:
    try:
        return os.listxattr(where) if isinstance(where, int) else os.listxattr(where, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise


def value_of(where: int | str, name: str) -> bytes:
    return os.getxattr(where, name) if isinstance(where, int) else os.getxattr(where, name, follow_symlinks=False)


def read(where: int | str, names: Sequence[str], first_id: int) -> tuple[tuple[bytes, bytes], ...]:
    """The kept ones of `names`, sorted, with the guest's ids. `where`: a descriptor or a path."""
    found: list[tuple[bytes, bytes]] = []
    for name in sorted(filter(kept, names)):
        try:
            value = value_of(where, name)
        except OSError as error:
            if error.errno in _NONE:
                continue
            raise
        found.append((os.fsencode(name), _shifted(name, value, -first_id)))
    return tuple(found)


def write(where: int | str, xattrs: Sequence[tuple[bytes, bytes]], first_id: int) -> None:
    """Those that are kept; others, from a store that lies, are left out."""
    for raw, value in xattrs:
        name = os.fsdecode(raw)
        if kept(name) and "\0" not in name:
            shifted = _shifted(name, value, first_id)
            if isinstance(where, int):
                os.setxattr(where, name, shifted)
            else:
                os.setxattr(where, name, shifted, follow_symlinks=False)


def _shifted(name: str, value: bytes, by: int) -> bytes:
    if name == CAPABILITY:
        return _capability(value, by)
    return _acl(value, by) if name in ACLS else value


def _capability(value: bytes, by: int) -> bytes:
    """Kept: revision 2 for the guest's own root, which is the rule; revision 3 for a namespace inside it."""
    if len(value) not in (20, 24):
        return value
    (magic,) = struct.unpack_from("<I", value)
    root = struct.unpack_from("<I", value, 20)[0] if magic & _CAP_VERSION == _CAP_3 and len(value) == 24 else None
    if root is None:
        if by <= 0:
            return value
        root = 0
    root += by
    flags = magic & ~_CAP_VERSION
    if not 0 <= root < 2**32:
        root = 0
    if root == 0:
        return struct.pack("<I", _CAP_2 | flags) + value[4:20]
    return struct.pack("<I", _CAP_3 | flags) + value[4:20] + struct.pack("<I", root)


def _acl(value: bytes, by: int) -> bytes:
    if len(value) < 4 or (len(value) - 4) % 8:
        return value
    out = bytearray(value[:4])
    for tag, permissions, who in struct.iter_unpack("<HHI", value[4:]):
        if tag in (_ACL_USER, _ACL_GROUP):
            shifted = who + by
            inside = 0 <= (shifted if by <= 0 else who) < IDS
            who = shifted if inside else (NOBODY if by <= 0 else by + NOBODY)
        out += struct.pack("<HHI", tag, permissions, who)
    return bytes(out)
