"""Saving and restoring workspaces, beside restic and tar | zstd on the same data in the same run. See README.md.

Each save and restore is a process of its own, as on a node; its wall time, CPU time and peak memory are the kernel's.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.node.sync import radosgw

from roost.node.sync import Options, open_store

MB = 1 << 20
PASSWORD = "benchmark"


@dataclass
class Ran:
    """seconds of wall and CPU time, peak memory in MB, the last line of standard output."""

    wall: float
    cpu: float
    peak_mb: float
    last: str


def run(argv: Sequence[str], stdin: bytes = b"", environment: dict[str, str] | None = None) -> Ran:
    os.sync()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        begun = time.perf_counter()
        process = subprocess.Popen(argv, stdin=given, stdout=out, env={**os.environ, **(environment or {})})
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = out.read().decode().splitlines()
        if status:
            raise RuntimeError(f"{argv}: {lines[-3:]}")
    return Ran(
        round(wall, 3), round(used.ru_utime + used.ru_stime, 3), used.ru_maxrss / 1024, lines[-1] if lines else ""
    )


# ---- the data


def mixed(root: Path, size: int) -> None:
    """Real files: programs, libraries, texts of this machine's /usr, in directory order, up to `size` bytes."""
    total = 0
    for directory, directories, files in os.walk("/usr"):
        directories.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file() or total + path.stat().st_size > size:
                continue
            copy = root / path.relative_to("/usr")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            total += copy.stat().st_size


def small_files(root: Path, count: int) -> None:
    """Source-like files of 0.2 to 8 KB in directories of 100, each with something of its own."""
    chance = random.Random(1)
    words = [f"{chance.getrandbits(32):x}" for _ in range(5000)]
    for number in range(count):
        directory = root / f"package{number // 1000:03}" / f"module{number // 100 % 10}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        lines = [" ".join(chance.choices(words, k=8)) for _ in range(chance.randint(3, 110))]
        (directory / f"file{number}.py").write_text("\n".join(lines))


def large_file(path: Path, size: int) -> None:
    """Half of it compresses well, half does not at all."""
    chance = random.Random(2)
    text = b" ".join(f"{chance.getrandbits(48):012x}".encode() for _ in range(40_000))
    with path.open("wb") as file:
        for at in range(0, size, MB):
            block = text[: MB // 2] + chance.randbytes(MB // 2)
            file.write(block if at + MB <= size else block[: size - at])


def change(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))  # not the same again in the next round


# ---- those who are compared


class Roost:
    name = "roost"

    def __init__(self, work: Path, endpoint: str | None, bucket: str, key: bool = False) -> None:
        self.work = work / f"roost-{bucket}{'-key' if key else ''}"
        self.work.mkdir()
        self.name = "roost, encrypted" if key else "roost"
        self.cache = self.work / "index"
        self.where: dict[str, Any] = {"store": f"file://{self.work}/store", "account": "a", "cache": str(self.cache)}
        if key:
            self.where["key"] = "a" * 43 + "="
        if endpoint:
            options = {"endpoint": endpoint, "access_key": radosgw.ACCESS, "secret_key": radosgw.SECRET}
            self.where |= {"store": f"s3://{bucket}/roost", "options": options}
        self.revision: str | None = None

    def _run(self, command: str, **request: Any) -> tuple[Ran, dict[str, Any]]:
        line = json.dumps(self.where | request).encode() + b"\n"
        ran = run([sys.executable, "-m", "roost.node.sync", command], line)
        return ran, json.loads(ran.last)["result"]

    def save(self, layer: Path, base: str | None = None, live: bool = False) -> tuple[Ran, int]:
        memory = str(self.work / "memory") if live else None
        layers = [{"path": str(layer), "first_id": 0, "memory": memory}]
        ran, result = self._run("save", layers=layers, image="none", job="bench", base=base)
        self.revision = result["revision"]["id"]
        return ran, result["revision"]["stored"]

    def restore(self, target: Path) -> Ran:
        for one in self.work.glob("index*"):
            one.unlink()
        return self._run("restore", revision=self.revision, target=str(target), first_id=0)[0]


class Restic:
    name = "restic"

    def __init__(self, work: Path, endpoint: str | None, bucket: str) -> None:
        self.work = work / f"restic-{bucket}"
        self.work.mkdir()
        self.repository = f"s3:{endpoint}/{bucket}/restic" if endpoint else str(self.work / "store")
        self.environment = {
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": self.repository,
            "RESTIC_CACHE_DIR": str(self.work / "cache"),
            "AWS_ACCESS_KEY_ID": radosgw.ACCESS,
            "AWS_SECRET_ACCESS_KEY": radosgw.SECRET,
        }
        run(["restic", "init", "-q"], b"", self.environment)
        keys = Options(endpoint=endpoint, access_key=radosgw.ACCESS, secret_key=radosgw.SECRET)
        self.store = open_store(f"s3://{bucket}" if endpoint else f"file://{self.work}", keys)
        self.prefix = "restic" if endpoint else "store"

    def save(self, tree: Path) -> tuple[Ran, int]:
        before = self.stored()
        ran = run(["restic", "backup", "--json", "--quiet", str(tree)], b"", self.environment)
        return ran, self.stored() - before

    def stored(self) -> int:
        """Bytes of all objects of the repository."""
        return sum(one.size for one in self.store.list(self.prefix))

    def restore(self, target: Path) -> Ran:
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        return run(["restic", "restore", "-q", "latest", "--target", str(target)], b"", self.environment)


class Table:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, store: str, what: str, who: str, ran: Ran, stored: int | None = None) -> None:
        row = {"store": store, "what": what, "who": who, "wall_s": ran.wall, "cpu_s": ran.cpu}
        self.rows.append(row | {"peak_mb": round(ran.peak_mb), "stored": stored})
        print(f"  {store:5} {what:34} {who:18} {ran.wall:8.2f} s  {ran.cpu:8.2f} s CPU  {ran.peak_mb:5.0f} MB  "
              f"{'' if stored is None else f'{stored / MB:9.2f} MB stored'}", flush=True)  # fmt: skip


def drop_caches() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass


def restored(work: Path, restore: Callable[[Path], Ran]) -> Ran:
    target = work / "restored"
    target.mkdir()
    drop_caches()
    try:
        return restore(target)
    finally:
        shutil.rmtree(target)


def tar_zstd(table: Table, work: Path, what: str, tree: Path) -> None:
    archive = work / "tree.tar.zst"
    ran = run(["sh", "-c", f"tar -C {tree} -cf - . | zstd -3 -T0 -q -f -o {archive}"])
    table.add("local", f"{what}: first save", "tar | zstd -3 -T0", ran, archive.stat().st_size)
    ran = restored(work, lambda to: run(["sh", "-c", f"zstd -dcq {archive} | tar -C {to} -xf -"]))
    table.add("local", f"{what}: restore", "tar | zstd -3 -T0", ran)
    archive.unlink()


@contextmanager
def changed(layer: Path, work: Path, names: Sequence[str]) -> Iterator[Path]:
    """The upper directory that holds these names and their directories alone, as overlayfs leaves it."""
    upper = work / "upper"
    for name in names:
        copy = upper / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(layer / name, copy)
    try:
        yield upper
    finally:
        shutil.rmtree(upper)


def measure(table: Table, work: Path, store: str, endpoint: str | None, data: Path, keys: bool) -> None:
    for what, tree in (("mixed", data / "mixed"), ("small files", data / "small"), ("large file", data / "large")):
        bucket = what.replace(" ", "-")
        if endpoint:
            make_bucket(endpoint, bucket)
        names = changing(tree, what)
        roosts = [Roost(work, endpoint, bucket)] + ([Roost(work, endpoint, bucket, key=True)] if keys else [])
        restic = Restic(work, endpoint, bucket)
        run(["tar", "-C", str(tree), "-cf", "/dev/zero", "."])  # into the page cache, whence everybody reads
        for roost in roosts:
            table.add(store, f"{what}: first save", roost.name, *roost.save(tree, live=True))
        bases = [roost.revision for roost in roosts]
        table.add(store, f"{what}: first save", restic.name, *restic.save(tree))
        if not endpoint:
            tar_zstd(table, work, what, tree)
        for name in names:
            change(tree / name, *((500 * MB, MB) if what == "large file" else (10, 20)))
        with changed(tree, work, names) as upper:
            for roost, base in zip(roosts, bases, strict=True):
                table.add(store, f"{what}: save after a change", roost.name, *roost.save(upper, base=base))
        table.add(store, f"{what}: save after a change", restic.name, *restic.save(tree))
        for name in names:
            change(tree / name, *((700 * MB, MB) if what == "large file" else (40, 20)))
        table.add(store, f"{what}: second change, whole tree", roosts[0].name, *roosts[0].save(tree, live=True))
        table.add(store, f"{what}: second change, whole tree", restic.name, *restic.save(tree))
        for one in (*roosts, restic):
            table.add(store, f"{what}: restore", one.name, restored(work, one.restore))
        for one in (*roosts, restic):
            shutil.rmtree(one.work)


def huge(table: Table, work: Path) -> None:
    """What must not grow with the data: memory. Roost alone."""
    tree = work / "huge"
    tree.mkdir()
    large_file(tree / "file", 5 * 1024 * MB)
    huge_one(table, work, "5 GB file", tree)
    tree.mkdir()
    for number in range(1_000_000):
        if number % 1000 == 0:
            (tree / f"directory{number // 1000}").mkdir()
        with open(tree / f"directory{number // 1000}" / f"file{number}", "w") as file:
            file.write(f"file {number}")
    huge_one(table, work, "a million files", tree)


def huge_one(table: Table, work: Path, what: str, tree: Path) -> None:
    """Uses the tree up."""
    roost = Roost(work, None, what.replace(" ", "-"))
    table.add("local", f"{what}: first save", roost.name, *roost.save(tree, live=True))
    base = roost.revision
    name = next(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())
    change(tree / name, 1, 1)
    table.add("local", f"{what}: second change, whole tree", roost.name, *roost.save(tree, live=True))
    if what != "5 GB file":
        with changed(tree, work, [name]) as upper:
            table.add("local", f"{what}: save after a change", roost.name, *roost.save(upper, base=base))
    shutil.rmtree(tree)
    table.add("local", f"{what}: restore", roost.name, restored(work, roost.restore))
    ran, _ = roost._run("check", read_data=True)
    table.add("local", f"{what}: check of all data", roost.name, ran)
    ran, _ = roost._run("collect", heads=[roost.revision], grace=0)
    table.add("local", f"{what}: collect", roost.name, ran)
    shutil.rmtree(roost.work)


def changing(tree: Path, what: str) -> list[str]:
    files = sorted(
        str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and path.stat().st_size > 99
    )
    return files[:1] if what == "large file" else files[:: max(1, len(files) // 10)][:10]


def make_bucket(endpoint: str, name: str) -> None:
    from tests.node.sync.bucket import create_bucket

    create_bucket(endpoint, name, radosgw.ACCESS, radosgw.SECRET)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024, help="of the mixed tree and of the large file")
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--huge", action="store_true", help="only a 5 GB file and a million files, for the memory")
    parser.add_argument("--local-only", action="store_true")
    parser.add_argument("--work", type=Path, default=None, help="a directory on the disk to be measured")
    arguments = parser.parse_args()
    facts = report.facts()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="roost-bench-", dir=arguments.work) as directory:
        work = Path(directory)
        data = work / "data"
        for name in ("mixed", "small", "large"):
            (data / name).mkdir(parents=True)
        if not arguments.huge:
            mixed(data / "mixed", arguments.megabytes * MB)
            small_files(data / "small", arguments.files)
            large_file(data / "large" / "file", arguments.megabytes * MB)
        if not arguments.huge:
            measure(table, work, "local", None, data, keys=True)
        if arguments.huge:
            shutil.rmtree(data)
            huge(table, work)
        elif not arguments.local_only and not radosgw.missing():
            with radosgw.gateway(work) as endpoint:
                measure(table, work, "S3", endpoint, data, keys=False)
    versions = {"restic": subprocess.run(["restic", "version"], capture_output=True, text=True).stdout.strip()}
    print(report.write("sync", {"facts": facts, "versions": versions, "runs": table.rows}))


if __name__ == "__main__":
    main()
