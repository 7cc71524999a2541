"""What a reference to an image means: pure text, for both sides of the protocol."""

import re

from roost.errors import Invalid

LATEST = "latest"
# skopeo's other sources: they read the host's own files and daemons, and none of them is a repository's name.
OTHER_TRANSPORTS = {"containers-storage", "dir", "docker-archive", "docker-daemon", "oci-archive", "ostree", "sif"}

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(
    rf"(?:(?P<host>[A-Za-z0-9.-]+(?::[0-9]{{1,5}})?|\[[0-9a-fA-F:]+\](?::[0-9]{{1,5}})?)/)?"
    rf"(?P<path>{_PART}(?:/{_PART})*)"
    r"(?P<version>(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?)"
)
_LAYOUT = re.compile(r"oci:(?P<path>/[^:]+)(?::(?P<tag>[A-Za-z0-9][A-Za-z0-9._-]{0,127}))?")


def normalised(reference: str) -> str:
    """The full form: `alpine:3.20` is docker://docker.io/library/alpine:3.20; oci:DIR:tag stays. Raises Invalid."""
    if reference.startswith("oci:"):
        return _normalised_layout(reference)
    found = _REPOSITORY.fullmatch(reference.removeprefix("docker://"))
    if found is None or reference.partition(":")[0] in OTHER_TRANSPORTS:
        raise Invalid(
            f"{reference!r} is not an image reference; write alpine:3.20, docker://HOST/NAME:TAG or oci:/DIR:TAG"
        )
    host, path, version = found["host"], found["path"], found["version"] or f":{LATEST}"
    if host is not None and not re.search(r"[.:]", host) and host != "localhost":
        host, path = None, f"{host}/{path}"  # as everywhere: a first part without dot or port is no host
    if version.count(":") == 2:
        version = version[version.index("@") :]  # skopeo takes a tag or a digest; the digest says more
    if host in (None, "docker.io"):
        return f"docker://docker.io/{path if '/' in path else f'library/{path}'}{version}"
    return f"docker://{host}/{path}{version}"


def _normalised_layout(reference: str) -> str:
    found = _LAYOUT.fullmatch(reference)
    if found is None or ".." in found["path"].split("/"):
        raise Invalid(f"{reference!r} is not an OCI layout; write oci:/ABSOLUTE/DIRECTORY:TAG")
    return reference
