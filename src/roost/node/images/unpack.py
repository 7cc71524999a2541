"""The process that extracts one tarball into a new root: `python -I -m roost.node.images.unpack` (see `archive.argv`).

It changes its root to the target before it reads the first header, so no name, symbolic or hard link of the archive
can reach the host: the kernel confines what a check could miss. Python's tarfile only parses; what is written, and
with which owner, is decided here. tarfile's own data filters drop owners, set-uid bits and absolute links, which root
file systems need; GNU tar and bsdtar cannot count bytes or refuse owners; umoci knows layers only.

Reports are JSON values of `Report`, one per line, on standard output; the last one has `done` or `error`.
"""

# Paths are strings, as the archive spells them and relative to the new root.
# ruff: noqa: PTH101, PTH102, PTH103, PTH108, PTH118, PTH119, PTH120, PTH208, PTH211

import math
import os
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, cast

import msgspec

BLOCK = 1024 * 1024
ZEROS = bytes(BLOCK)
MAX_ENTRIES = 2_000_000  # a large distribution has 300,000
MAX_PARTS = 200  # directories in one name
MAX_ID = 65535  # a sandbox's user namespace maps ids 0 to 65535
MEMORY = 1024 * 1024 * 1024  # bytes; an endless pax header ends here and not in the host's memory
NOBODY = 65534
LAST_TIME = 2**33  # seconds; later times (and NaN) become 0
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

# Other extended attributes are dropped: `trusted.overlay.*` would tell the kernel how to lay out the overlay.
CAPABILITY = "security.capability"
CAPABILITY_BYTES = 20  # revision 2; revision 3 names a user namespace of the machine that wrote it

DECOMPRESSORS: dict[bytes, list[str]] = {
    b"\x1f\x8b": ["gzip", "-dc"],
    b"BZh": ["bzip2", "-dc"],
    b"\xfd7zXZ\x00": ["xz", "-dc", "--memlimit-decompress=512MiB"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dcq", "--memory=256MB"],
}


class Refused(Exception):
    """The archive cannot be unpacked; the text is for the user."""


class Job(msgspec.Struct, frozen=True):
    """What to do: the one argument of this program, as JSON."""

    archive: str
    root: str
    max_bytes: int
    reserve: int  # bytes that must stay free on the disk
    layer: bool  # whether `.wh.` entries remove what lower layers brought


class Summary(msgspec.Struct, frozen=True):
    """bytes: of all files; devices: how many device nodes were left out; unmappable: an owner above MAX_ID, if any."""

    bytes: int
    entries: int
    devices: int
    unmappable: str | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    bytes: int = 0
    entries: int = 0
    error: str | None = None
    done: Summary | None = None


@dataclass
class Unpacker:
    """Writes the entries of one archive below the current directory, which is the root directory."""

    job: Job
    report: Callable[[Report], None]
    written: int = 0
    entries: int = 0
    devices: int = 0
    unmappable: str | None = None
    reported: float = 0.0
    unchecked: int = 0  # bytes written since the disk's free space was looked at
    times: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    own: set[int] = field(default_factory=set[int])  # inodes of this layer: its whiteouts spare them

    def unpack(self, archive: tarfile.TarFile) -> Summary:
        while (entry := archive.next()) is not None:
            vars(archive)["members"] = []  # or tarfile remembers every entry
            self._count(entry)
            self._place(archive, entry)
        for path, when in reversed(self.times):
            if _is_directory(path):
                os.utime(path, (when, when))
        return Summary(self.written, self.entries, self.devices, self.unmappable)

    def _count(self, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise Refused(f"the archive has more than {MAX_ENTRIES} entries")
        if entry.isreg():
            if entry.size < 0:
                raise Refused(f"{shown(entry.name)} has a negative size")
            self.written += entry.size
            self.unchecked += entry.size
        if self.written > self.job.max_bytes:
            raise Refused(
                f"it unpacks to more than the {self.job.max_bytes / 1e6:.0f} MB that are allowed and free here "
                f"({shown(entry.name)} alone has {entry.size / 1e6:.0f} MB)"
            )
        if time.monotonic() - self.reported >= 1:
            self._tell()

    def _tell(self) -> None:
        self.reported = time.monotonic()
        self.report(Report(bytes=self.written, entries=self.entries))

    def _place(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        path = inner_path(entry.name)
        name = os.path.basename(path)
        if self.job.layer and name.startswith(WHITEOUT):
            self._white_out(os.path.dirname(path), name)
        elif entry.ischr() or entry.isblk():
            self.devices += 1  # /dev comes from the runtime; elsewhere a device is a way out
        elif not path:
            self._finish_root(entry)
        else:
            self._make(archive, entry, path)

    def _finish_root(self, entry: tarfile.TarInfo) -> None:
        if not entry.isdir():
            raise Refused("the root of the archive is not a directory")
        self._own_and_allow(".", entry)

    def _make(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
        if entry.islnk() and inner_path(entry.linkname) == path:
            return
        if parent := os.path.dirname(path):
            os.makedirs(parent, 0o755, exist_ok=True)
        if not (entry.isdir() and _is_directory(path)):
            _remove(path)
        if entry.isreg():
            self._write_file(archive, entry, path)
        elif entry.isdir():
            self._make_directory(entry, path)
        elif entry.issym():
            os.symlink(entry.linkname, path)
            self._own(path, entry)
        elif entry.islnk():
            self._link(entry, path)
        elif entry.isfifo():
            os.mkfifo(path, 0o600)
            self._own_and_allow(path, entry)
        else:
            raise Refused(f"{shown(entry.name)} is of an unknown kind ({entry.type!r})")
        if self.job.layer:
            self.own.add(os.lstat(path).st_ino)

    def _link(self, entry: tarfile.TarInfo, path: str) -> None:
        try:
            os.link(inner_path(entry.linkname), path, follow_symlinks=False)
        except OSError as error:
            target = shown(entry.linkname)
            raise Refused(f"the hard link {shown(entry.name)} to {target} fails: {error.strerror}") from None

    def _make_directory(self, entry: tarfile.TarInfo, path: str) -> None:
        if not _is_directory(path):
            os.mkdir(path, 0o700)
        self._own_and_allow(path, entry)
        self.times.append((path, _sane_time(entry.mtime)))

    def _write_file(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
        content = archive.extractfile(entry)
        assert content is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
            self._copy(content, file, entry.size)
            self._own(path, entry)
            os.fchmod(file.fileno(), entry.mode & 0o7777)
            self._give_capability(file.fileno(), entry)
            when = _sane_time(entry.mtime)
            os.utime(file.fileno(), (when, when))

    def _copy(self, content: IO[bytes], file: IO[bytes], size: int) -> None:
        """Blocks of zeros become holes: what was sparse stays so."""
        done = 0
        while done < size:
            block = content.read(min(BLOCK, size - done))
            if not block:
                raise Refused("the archive ends in the middle of a file")
            if block == ZEROS:
                file.seek(BLOCK, os.SEEK_CUR)
            else:
                _write_all(file, block)
            done += len(block)
            self._watch()
        file.truncate(size)

    def _watch(self) -> None:
        if self.unchecked >= 64 * BLOCK:
            self.unchecked = 0
            disk = os.statvfs("/")
            if disk.f_bavail * disk.f_frsize < self.job.reserve:
                raise Refused("the disk of the image store is full; make room first")
        if time.monotonic() - self.reported >= 1:
            self._tell()

    def _own(self, path: str, entry: tarfile.TarInfo) -> None:
        if max(entry.uid, entry.gid) > MAX_ID or min(entry.uid, entry.gid) < 0:
            self.unmappable = self.unmappable or f"{shown(entry.name)} belongs to {entry.uid}:{entry.gid}"
            return
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)

    def _own_and_allow(self, path: str, entry: tarfile.TarInfo) -> None:
        self._own(path, entry)  # first: a change of owner clears the set-uid bits
        os.chmod(path, entry.mode & 0o7777)

    def _give_capability(self, descriptor: int, entry: tarfile.TarInfo) -> None:
        value = entry.pax_headers.get(f"SCHILY.xattr.{CAPABILITY}", "").encode("utf-8", "surrogateescape")
        if len(value) == CAPABILITY_BYTES:
            os.setxattr(descriptor, CAPABILITY, value)

    def _white_out(self, directory: str, name: str) -> None:
        """Remove what lower layers brought, as the OCI image specification has it; never this layer's own."""
        if name == OPAQUE:
            if _is_directory(directory or "."):
                self._clear(directory or ".")
            return
        if name.startswith(f"{WHITEOUT}{WHITEOUT}"):
            return  # bookkeeping of aufs
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise Refused(f"{shown(name)} is not a name that a layer can remove")
        self._remove_lower(os.path.join(directory, hidden))

    def _clear(self, directory: str) -> None:
        for name in os.listdir(directory):
            self._remove_lower(os.path.join(directory, name))

    def _remove_lower(self, path: str) -> None:
        if not os.path.lexists(path):
            return
        if os.lstat(path).st_ino not in self.own:
            if _is_directory(path):
                self._clear(path)
                with_own = os.listdir(path)
                if with_own:
                    return
            _remove(path)
        elif _is_directory(path):
            self._clear(path)


def inner_path(name: str) -> str:
    """`./etc/passwd` and `/etc/passwd` are `etc/passwd`; the root is ``. Raises Refused for what climbs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"{shown(name)} climbs out of its directory with `..`")
    if len(parts) > MAX_PARTS:
        raise Refused(f"{shown(name)} is nested deeper than {MAX_PARTS} directories")
    return "/".join(parts)


def shown(name: str) -> str:
    """A hostile name, short and printable."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")


def _remove(path: str) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _sane_time(when: float) -> float:
    return when if 0 <= when <= LAST_TIME and math.isfinite(when) else 0.0


def _write_all(file: IO[bytes], block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


@dataclass
class Packed:
    """The archive's bytes, decompressed by another process that has no privileges at all."""

    stream: IO[bytes]
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(cls, path: str) -> "Packed":
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - until the process ends
        head = os.pread(file.fileno(), 6, 0)
        argv = next((argv for magic, argv in DECOMPRESSORS.items() if head.startswith(magic)), None)
        if argv is None:
            return cls(file)
        if shutil.which(argv[0]) is None:
            raise Refused(f"it is packed with {argv[0]}, which this machine lacks: install the package")
        process = subprocess.Popen(
            argv,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
        )
        assert process.stdout is not None
        return cls(process.stdout, process)

    def finish(self, budget: int) -> None:
        """Read what follows the archive's end (padding), then require that all of it was sound."""
        while block := self.stream.read(BLOCK):
            budget -= len(block)
            if budget < 0:
                raise Refused("endless data follows the end of the archive")
        self.require_sound()

    def require_sound(self) -> None:
        if self.process is None:
            return
        assert self.process.stderr is not None
        self.stream.close()
        said = self.process.stderr.read(4096).decode("utf-8", "replace").strip()
        if self.process.wait() not in (0, -13):  # 13 = SIGPIPE: we stopped reading
            raise Refused(f"the compressed data is damaged: {said}")


def unpack(job: Job, report: Callable[[Report], None]) -> Summary:
    """Change this process's root to `job.root` and unpack there. Raises Refused."""
    packed = Packed.open(job.archive)
    os.chroot(job.root)
    os.chdir("/")
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        with tarfile.open(
            fileobj=packed.stream, mode="r|", bufsize=BLOCK, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            summary = Unpacker(job, report).unpack(archive)
    except tarfile.TarError as error:
        packed.require_sound()
        raise Refused(f"it is not a whole tar archive ({error})") from None
    packed.finish(job.max_bytes)
    return summary


def main() -> int:
    encoder = msgspec.json.Encoder()
    output = cast("IO[bytes]", sys.stdout.buffer)

    def report(value: Report) -> None:
        output.write(encoder.encode(value) + b"\n")
        output.flush()

    try:
        report(Report(done=unpack(msgspec.json.decode(sys.argv[1], type=Job), report)))
    except Refused as error:
        report(Report(error=str(error)))
    except MemoryError:
        report(Report(error="its headers need more memory than an honest archive's"))
    except OSError as error:
        report(Report(error=f"it could not be unpacked: {shown(error.strerror or str(error))}"))
    except (ValueError, RecursionError) as error:
        report(Report(error=f"it cannot be read: {shown(str(error))}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
