"""A root file system built from a distribution's packages by mmdebstrap.

For machines that reach no image registry. Maintainer scripts run as root in a chroot: the same packages, verified by
the same keys, that the host itself installs. They get a private mount table and PID namespace, so what they
leave mounted or running ends with them.
"""

import base64
import hashlib
import re
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

from roost.errors import Invalid
from roost.node.images import command, npm
from roost.node.images.sources import Host, Origin, choose
from roost.node.protocol import BuildImage

BUILD_TIMEOUT = 1800  # seconds; 40 s on a quick mirror, slow ones take minutes

# What scripts and coding agents use on the first day; bash and apt come with every Debian. A compiler is not among
# them, which is as large as all of these together. No recommended packages: pip's are a compiler and its headers.
PACKAGES = (
    "apt-utils",  # without it each installation warns that packages are configured late
    "busybox",  # the shell, see PREPARE
    "ca-certificates",
    "curl",
    "file",
    "git",
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "nano",
    "nodejs",
    "openssh-client",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "sqlite3",
    "unzip",
    "wget",
    "zip",
)

# What nothing in a sandbox asks for, of packages that are needed: servers and mail programs of git, types of
# libraries that npm brings with their own, code pages of mainframes. Patterns as dpkg and glob both read them.
LEFT_OUT = (
    "usr/bin/git-shell",
    "usr/bin/scalar",
    "usr/lib/git-core/git-daemon",
    "usr/lib/git-core/git-http-push",
    "usr/lib/git-core/git-imap-send",
    "usr/lib/git-core/git-shell",
    "usr/lib/git-core/scalar",
    "usr/lib/*/gconv/EBCDIC*",
    "usr/lib/*/gconv/IBM*",
    "usr/share/nodejs/@types/*",
    "usr/share/zoneinfo/right/*",
    # It keeps pip from the system's Python; a sandbox is thrown away, so its user may mix the two.
    "usr/lib/python3*/EXTERNALLY-MANAGED",
)
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    *(f"path-exclude=/{pattern}" for pattern in LEFT_OUT),
)

# A sandbox's seccomp filter and user namespace already confine apt; its own change of user fails in some of them.
APT_OPTIONS = (
    'APT::Sandbox::User "root"',
    'APT::Install-Recommends "false"',
    'Acquire::Languages "none"',
    'Dpkg::Use-Pty "0"',  # else each installation fills a log with "Reading database ... 5%"
)

BUNDLE = "etc/ssl/certs/ca-certificates.crt"

FILES = {
    "etc/apt/apt.conf.d/99roost-cache": 'APT::Keep-Downloaded-Packages "false";\n',  # mmdebstrap needs them kept
    "etc/hostname": "sandbox\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "",
    "etc/pip.conf": f"[global]\ncert = /{BUNDLE}\nroot-user-action = ignore\ndisable-pip-version-check = true\n",
}
INSIDE = Path(__file__).parent / "inside"  # programs of ours that run in the image

# /bin/sh is busybox's ash, as the documents that Roost implements have it: `[[`, and echo prints what it is given. Its
# own copy, so that no change of the package takes the shell away, and not of busybox-static, whose shell prefers
# busybox's tools to those in PATH. dash says of a diversion LOCAL: "The sysadmin wants it this way." Java's packages
# fail where the directories of manual pages are missing, which are left out.
PREPARE = """
set -e
cp /bin/busybox /bin/ash
for sh in /bin/sh /usr/bin/sh; do
    if [ -n "$(dpkg-divert --list $sh)" ]; then
        dpkg-divert --package "$(dpkg-divert --listpackage $sh)" --no-rename --remove $sh
    elif ! dpkg-query --search $sh >/dev/null 2>&1; then
        continue
    fi
    dpkg-divert --local --no-rename --divert $sh.distrib --add $sh
    ln -sf dash $sh.distrib
done
ln -s ash /bin/sh.new
mv -fT /bin/sh.new /bin/sh
add-shell /bin/ash
mkdir -p /usr/share/man/man{1..8}
echo debconf debconf/frontend select Noninteractive | debconf-set-selections
"""
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


def recipe(request: BuildImage) -> str:
    """Says what an image of this request is made by; another one as soon as it would be made otherwise."""
    programs = [path.read_bytes() for path in sorted(INSIDE.glob("*.py"))]
    made_by = (PACKAGES, LEFT_OUT, DPKG_OPTIONS, APT_OPTIONS, sorted(FILES.items()), POLICY, PREPARE, npm.DEFINITION)
    return hashlib.sha256(repr((request.suite, sorted(request.packages), made_by, programs)).encode()).hexdigest()[:16]


def source_of(request: BuildImage) -> str:
    """In words: "build: debian bookworm with jq". Raises as `sources.choose`."""
    origin = choose(request.suite, Host.read())
    more = f" with {' '.join(request.packages)[:200]}" if request.packages else ""
    return f"build: {origin.distribution} {origin.suite}{more}"


async def build(request: BuildImage, target: Path, progress: Callable[[str], None]) -> str:
    """Make the root file system at `target` and return its source in words."""
    for package in request.packages:
        if not _PACKAGE.fullmatch(package):
            raise Invalid(f"{package!r} is not a package name")
    origin = choose(request.suite, Host.read())
    archive = await npm.fetch(origin.suite, progress)
    packages = sorted({*PACKAGES, *request.packages})
    mirrors = ", ".join(source.uri for source in origin.sources)
    progress(f"building {origin.distribution} {origin.suite} with {' '.join(packages)} from {mirrors}")
    await _bootstrap(origin, packages, target, progress)
    progress("configuring packages and certificates")
    configure(target)
    if archive:
        npm.lay_out(archive, target)
        await _inside(target, ["/bin/bash", "-c", npm.INSTALL], "installing npm")
    await _inside(target, ["/bin/bash", "-c", PREPARE], "setting up the shell")
    await trust_host_certificates(target, progress)
    return source_of(request)


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
    _write(root / "usr/sbin/apk", (INSIDE / "apk.py").read_text(), 0o755)
    for path in [path for pattern in LEFT_OUT for path in root.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # dpkg unpacks the essential set without its options


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
    await _inside(root, ["/usr/sbin/update-ca-certificates"], "adding this machine's certificates")
    progress(f"added {len(missing)} certificates that this machine trusts")


async def _inside(root: Path, argv: list[str], what: str) -> None:
    inside = command.build_argv(["chroot", str(root), *argv])
    await command.run(inside, what=what, timeout=120, environment={"PATH": command.PATH})


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
