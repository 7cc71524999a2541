"""npm as its authors publish it: Debian's package comes with 370 others, which triple an image's size and time.

One archive from npm's registry, known by its digest, made a package `npm`, so that `apt-get install npm` finds it
there. Where the registry cannot be reached, or the distribution's Node is too old, the image has none: `apk add npm`.
"""

import asyncio
import base64
import hashlib
import io
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath

VERSION = "10.9.4"
URL = f"https://registry.npmjs.org/npm/-/npm-{VERSION}.tgz"
SHA512 = "OnUG836FwboQIbqtefDNlyR0gTHzIfwRfE3DuiNewBvnMnWEpB0VEXwBlFVgqpNzIgYo/MHh3d2Hel/pszapAA=="  # of npm's registry
SUITES = {"bookworm", "trixie", "noble"}  # with Node 18.17 or newer, which it needs
MAX_BYTES = 20 * 1024**2
WITHIN = 30.0  # seconds without a byte
PLACE = "usr/lib/node_modules/npm"
PROGRAMS = {"npm": "npm-cli.js", "npx": "npx-cli.js"}
LEFT_OUT = ("docs", "man")
SETTINGS = "prefix=/usr/local\n"  # else what users install globally goes beside the distribution's own packages
CONTROL = f"""\
Package: npm
Version: {VERSION}-0roost
Architecture: all
Maintainer: Roost
Depends: nodejs (>= 18.17)
Section: javascript
Homepage: https://www.npmjs.com
Description: package manager for Node.js, as its authors publish it
"""
DEFINITION = (SHA512, LEFT_OUT, SETTINGS, CONTROL, sorted(SUITES))  # what images are made by
BUILD = "/var/tmp/npm"  # inside the image
# Of trusted text alone
INSTALL = f"dpkg-deb --root-owner-group --build {BUILD} {BUILD}.deb && dpkg --install {BUILD}.deb && rm -r {BUILD}*"


async def fetch(suite: str, progress: Callable[[str], None]) -> bytes | None:
    """The archive; None where it cannot be had, or is of no use."""
    if suite not in SUITES:
        return None
    try:
        return await asyncio.to_thread(_fetch)
    except OSError as error:
        progress(f"leaving npm out, which cannot be fetched from its registry: {error}")
        return None


def _fetch() -> bytes:
    """Raises OSError."""
    with urllib.request.urlopen(URL, timeout=WITHIN) as answer:
        data = answer.read(MAX_BYTES)
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != SHA512:
        raise OSError(f"{URL} has other bytes than it should: SHA-512 {found}")
    return data


def lay_out(archive: bytes, root: Path) -> None:
    """For INSTALL, which is to run inside. `root` is trusted, and so are the bytes, whose digest is known."""
    package = root / BUILD.lstrip("/")
    place = package / PLACE
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
        for member in packed:
            inside = PurePosixPath(member.name).parts[1:]  # below `package/`
            if not inside or inside[0] in LEFT_OUT or not member.isfile():
                continue
            target = place.joinpath(*inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = packed.extractfile(member)
            assert content
            target.write_bytes(content.read())
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
    (place / "npmrc").write_text(SETTINGS)
    (package / "usr/bin").mkdir()
    for name, script in PROGRAMS.items():
        (place / "bin" / script).chmod(0o755)
        (package / "usr/bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{script}")
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(CONTROL)
