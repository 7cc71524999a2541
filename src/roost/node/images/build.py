"""A root file system built from a distribution's packages by mmdebstrap.

For machines that reach no image registry. Maintainer scripts run as root in a chroot: the same packages, verified by
the same keys, that the host itself installs. They get a private mount table and PID namespace, so what they
leave mounted or running ends with them.
"""

import base64
import hashlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path

from roost.errors import Invalid
from roost.node.images import command
from roost.node.images.sources import Host, Origin, choose
from roost.node.protocol import BuildImage

BUILD_TIMEOUT = 1800  # seconds; 25 s on a quick mirror, slow ones take minutes

# bash and apt come with every Debian. No recommended packages: pip's are a compiler and its headers.
PACKAGES = (
    "ca-certificates",
    "curl",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
)

# EXTERNALLY-MANAGED keeps pip from the system's Python; a sandbox is thrown away, so its user may mix the two.
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED",
)

# A sandbox's seccomp filter and user namespace already confine apt; its own change of user fails in some of them.
APT_OPTIONS = (
    'APT::Sandbox::User "root"',
    'APT::Install-Recommends "false"',
    'Acquire::Languages "none"',
)

BUNDLE = "etc/ssl/certs/ca-certificates.crt"

FILES = {
    "etc/apt/apt.conf.d/99roost-cache": 'APT::Keep-Downloaded-Packages "false";\n',  # mmdebstrap needs them kept
    "etc/hostname": "sandbox\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "",
    "etc/pip.conf": f"[global]\ncert = /{BUNDLE}\nroot-user-action = ignore\ndisable-pip-version-check = true\n",
}
POLICY = "#!/bin/sh\n# No init runs here: packages must not start their services.\nexit 101\n"

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")


def mmdebstrap_argv(origin: Origin, packages: list[str], target: Path) -> list[str]:
    """Reads the apt sources from its standard input."""
    return command.build_argv(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(packages)}",
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            *(f"--aptopt={option}" for option in APT_OPTIONS),
            origin.suite,
            str(target),
            "-",
        ]
    )


async def build(request: BuildImage, target: Path, progress: Callable[[str], None]) -> str:
    """Make the root file system at `target` and return its source in words ("build: debian bookworm")."""
    for package in request.packages:
        if not _PACKAGE.fullmatch(package):
            raise Invalid(f"{package!r} is not a package name")
    origin = choose(request.suite, Host.read())
    packages = sorted({*PACKAGES, *request.packages})
    mirrors = ", ".join(source.uri for source in origin.sources)
    progress(f"building {origin.distribution} {origin.suite} with {' '.join(packages)} from {mirrors}")
    await _bootstrap(origin, packages, target, progress)
    progress("configuring packages and certificates")
    configure(target)
    await trust_host_certificates(target, progress)
    return f"build: {origin.distribution} {origin.suite}"


async def _bootstrap(origin: Origin, packages: list[str], target: Path, progress: Callable[[str], None]) -> None:
    phase = "starting"

    def line(text: str) -> None:
        nonlocal phase
        if text.startswith("I: ") and text.endswith("..."):
            phase = text[3:].removesuffix("...")
            progress(phase)

    try:
        await command.run(
            mmdebstrap_argv(origin, packages, target),
            what=f"building {origin.distribution} {origin.suite}",
            timeout=BUILD_TIMEOUT,
            stdin=origin.deb822().encode(),
            environment=command.environment(target.parent),
            follower=command.Follower(line=line, tick=lambda: progress(f"still {phase}"), every=5.0),
        )
    except command.CommandFailed as error:
        raise Invalid(str(error)) from None  # an unknown package, a mirror out of reach: the tail says which


def configure(root: Path) -> None:
    """What a sandbox expects of its image beyond the packages. `root` is trusted: it was just built."""
    for name, text in FILES.items():
        _write(root / name, text, 0o644)
    _write(root / "usr/sbin/policy-rc.d", POLICY, 0o755)
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        root.joinpath(name).unlink(missing_ok=True)
    for directory in ("etc/apt/apt.conf.d", "etc/dpkg/dpkg.cfg.d"):
        root.joinpath(directory, "99mmdebstrap").rename(root.joinpath(directory, "99roost"))
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()  # older dpkg unpacks the essential set without its options


async def trust_host_certificates(root: Path, progress: Callable[[str], None]) -> None:
    """Let the image trust whatever this machine trusts: some stand behind a proxy with its own authority."""
    missing = certificates(Path("/", BUNDLE)) - certificates(root / BUNDLE)
    if not missing:
        return
    local = root / "usr/local/share/ca-certificates"
    local.mkdir(parents=True, exist_ok=True)
    for der in missing:
        name = f"host-{hashlib.sha256(der).hexdigest()[:16]}.crt"
        _write(local / name, ssl.DER_cert_to_PEM_cert(der), 0o644)
    await command.run(
        command.build_argv(["chroot", str(root), "/usr/sbin/update-ca-certificates"]),
        what="adding this machine's certificates",
        timeout=120,
        environment={"PATH": command.PATH},
    )
    progress(f"added {len(missing)} certificates that this machine trusts")


def certificates(bundle: Path) -> set[bytes]:
    """The certificates (DER) of a PEM bundle; none where there is no such file."""
    if not bundle.is_file():
        return set()
    blocks = _CERTIFICATE.findall(bundle.read_text(errors="replace"))
    return {base64.b64decode("".join(block.splitlines()[1:-1])) for block in blocks}


def _write(path: Path, text: str, mode: int) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
