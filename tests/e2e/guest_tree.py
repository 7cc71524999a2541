"""Programs for sandboxes of the `standard` image: one makes a tree of everything that a file system can hold, one
changes it, one tells what is there. Each is the text of a script for its `/usr/bin/python3`.
"""

PYTHON = "#!/usr/bin/python3\n"

# every kind of file, and changes to what the image has
MAKE = (
    PYTHON
    + r"""
import os, shutil, socket, struct, sys
os.mkdir("/srv/tree")
os.chdir("/srv/tree")
def write(name, content=b"content\n", mode=0o644, owner=(0, 0), at=None):
    with open(name, "wb") as file: file.write(content)
    os.chown(name, *owner)
    os.chmod(name, mode)
    if at: os.utime(name, ns=(at, at))
write("plain", at=1_000_000_000_123_456_789)
write("before 1970", at=-1_000_000_000_000_000_001)
write("owned", owner=(1234, 4321))
write("high owner", owner=(65534, 65534))
write("setuid", mode=0o4755, owner=(1000, 1000))
write("setgid", mode=0o2755, owner=(1000, 1000))
write("unreadable", mode=0)
write("empty", b"")
write(b"\xff\xfe latin \xe9", b"no UTF-8\n")
write("line\nbreak")
write("x" * 255)
write("large", os.urandom(3_000_000))
os.symlink("plain", "link")
os.symlink("/nowhere/at all", "dangling")
os.symlink(b"\xff\xfe", "to no UTF-8")
os.lchown("dangling", 7, 8)
os.utime("dangling", ns=(10**18, 10**18), follow_symlinks=False)
os.link("plain", "second name")
os.link("link", "second link")
os.mkfifo("fifo", 0o640)
listening = socket.socket(socket.AF_UNIX)
listening.bind("socket")
os.mkdir("sticky")
os.chmod("sticky", 0o1777)
os.makedirs("a/b/c/d")
write("a/b/c/d/deep")
os.link("plain", "a/third name")
write("attributes")
os.setxattr("attributes", "user.colour", b"green\0blue")
os.setxattr("attributes", "user.empty", b"")
os.setxattr("sticky", "user.of a directory", b"1")
write("capable", mode=0o755, owner=(1000, 1000))
os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
with open("sparse", "wb") as file:
    file.seek(700 << 20); file.write(b"end"); file.truncate(800 << 20)
entries = [(1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 6, -1), (32, 4, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, p, i & 0xffffffff) for t, p, i in entries)
write("listed")
os.setxattr("listed", "system.posix_acl_access", acl)
# the image's files: deleted, replaced, changed, moved
os.unlink("/etc/issue")
shutil.rmtree("/usr/share/doc")
shutil.rmtree("/usr/share/man", ignore_errors=True)
os.mkdir("/usr/share/man"); write("/usr/share/man/only")
os.chmod("/etc/hostname.d", 0o700) if os.path.exists("/etc/hostname.d") else None
os.chown("/etc/shells" if os.path.exists("/etc/shells") else "/etc/passwd", 5, 6)
shutil.move("/etc/default", "/etc/moved")
os.utime("/opt", ns=(5 * 10**17, 5 * 10**17))
os.utime("/srv/tree", ns=(10**18 + 1, 10**18 + 1))
"""
)

# on top of a saved tree: whiteouts and opaque directories over files of the workspace itself
CHANGE = (
    PYTHON
    + r"""
import os, shutil
os.chdir("/srv/tree")
os.unlink("owned")
shutil.rmtree("a/b"); os.mkdir("a/b"); open("a/b/new", "w").write("new\n")
shutil.move("sticky", "moved"); open("moved/in it", "w").close()
os.unlink("empty"); os.mkdir("empty"); open("empty/now a directory", "w").close()
os.rename("unreadable", "renamed")
os.unlink("dangling"); os.symlink("renamed", "dangling")
with open("large", "r+b") as file: file.seek(1_000_000); file.write(b"changed")
os.chmod("setgid", 0o2711)
os.setxattr("attributes", "user.colour", b"red"); os.removexattr("attributes", "user.empty")
open("/etc/issue", "w").write("again\n")
"""
)

# one line of JSON for each file below the directories, in order: all that the file system tells of it
TELL = (
    PYTHON
    + r"""
import hashlib, json, os, stat, sys
SKIPPED = {"/proc", "/sys", "/dev", "/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
STARTED = {"/", "/etc"}  # where every start of a sandbox writes
names = {}
def tell(path):
    status = os.lstat(path)
    mode = status.st_mode
    told = {"path": os.fsencode(path).hex(), "name": os.fsencode(path).decode("utf-8", "replace"), "mode": oct(mode),
            "owner": [status.st_uid, status.st_gid], "mtime": None if path in STARTED else status.st_mtime_ns}
    if not stat.S_ISDIR(mode):
        told |= {"size": status.st_size, "links": status.st_nlink}
        if status.st_nlink > 1: told["first name"] = names.setdefault((status.st_dev, status.st_ino), told["path"])
    if stat.S_ISLNK(mode): told["target"] = os.fsencode(os.readlink(path)).hex()
    if stat.S_ISREG(mode) and status.st_size <= 16 << 20:
        with open(path, "rb") as file: told["hash"] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    if stat.S_ISREG(mode) and status.st_size > 16 << 20:
        told["sparse"] = status.st_blocks * 512 < status.st_size // 10
        with open(path, "rb") as file:
            data = os.lseek(file.fileno(), 0, os.SEEK_DATA)
            file.seek(700 << 20); told["end"] = [data == 700 << 20, file.read(3).decode()]
    if not stat.S_ISLNK(mode):
        names_of = [name for name in sorted(os.listxattr(path)) if name != "security.selinux"]
        told["attributes"] = {name: os.getxattr(path, name).hex() for name in names_of}
    print(json.dumps(told, sort_keys=True))
    if stat.S_ISDIR(mode):
        for name in sorted(os.listdir(path)):
            if (below := os.path.join(path, name)) not in SKIPPED: tell(below)
for directory in WHERE: tell(directory)
"""
)


def telling(*directories: str) -> str:
    return TELL.replace("WHERE", repr(directories))
