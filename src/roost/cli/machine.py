"""Commands about this machine: up, doctor, and the two programs that `up` starts.

`serve` and `node` end with status 78 when they cannot work here until somebody changes something, so that `up`
does not start them again and again.
"""

import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from roost.cli.answers import as_json, print_json
from roost.cli.screen import Screen
from roost.errors import Conflict, Invalid, SetupMissing, StateUnwritable
from roost.instance import DEFAULT_IMAGES, DEFAULT_STATE
from roost.settings import STANDARD

DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)  # root may read what its caller may not
FILE = click.Path(path_type=Path, dir_okay=False, readable=False)  # the control plane says what to do about one
MINUTES = click.FloatRange(min=0, min_open=True)
# The options of `up` that its help explains; the others it names
USUAL = (
    "--state", "--listen", "--hello", "--store", "--gateway", "--gateway-tls", "--domain", "--certificate",
    "--certificate-key", "--acme", "--ssh", "--log-format",
)  # fmt: skip


class Ports(click.ParamType[tuple[int, int]]):
    """`20000-20999`."""

    name = "ports"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, _, high = value.partition("-")
        if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) < 65536):
            self.fail(f"{value!r} is not LOW-HIGH, for example 20000-20999", param, ctx)
        return int(low), int(high)


PORTS = Ports()

log_format = click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="Of events; auto: text on a terminal, else JSON.",
)


def node_options(command: Callable[..., None]) -> Callable[..., None]:
    """What `up` passes on to the node."""
    options = (
        click.option("--images", type=DIRECTORY, default=DEFAULT_IMAGES, show_default=True),
        click.option("--prefix6", metavar="PREFIX", help="IPv6 prefix routed to this machine [a private one]."),
        click.option(
            "--store", metavar="URL", help="file:///DIR, s3://BUCKET/PREFIX, gs://…, az://… [a local directory]."
        ),
        click.option("--store-options", type=click.Path(path_type=Path, exists=True), help="JSON file for --store."),
        click.option("--layer-cache-gb", type=click.IntRange(min=1), default=50, show_default=True),
        click.option("--runtime", help="OCI runtime: crun, runc, runsc or a path [by cgroup version]."),
        click.option("--min-pool-size", type=click.IntRange(min=0), default=3, show_default=True),
        click.option("--max-pool-size", type=click.IntRange(min=0), default=0, help="0: by capacity."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """What `up` passes on to the control plane."""
    revisions, days, limit = click.IntRange(min=1), click.IntRange(min=0), click.IntRange(min=0)
    options = (
        click.option("--keep-revisions", type=revisions, default=20, show_default=True, help="Of each workspace."),
        click.option("--keep-days", type=days, default=30, show_default=True, help="Age of revisions; 0: any."),
        click.option("--idle-minutes", type=MINUTES, default=10, show_default=True, help="Unused, until a job sleeps."),
        click.option("--cold-after-minutes", type=MINUTES, default=60, show_default=True, help="Frozen, until saved."),
        click.option(
            "--gateway", default="127.0.0.1:8485", show_default=True, metavar="HOST:PORT", help="URLs of sandboxes."
        ),
        click.option("--gateway-tls", metavar="HOST:PORT", help="The same over TLS."),
        click.option("--gateway-url", metavar="SCHEME[:PORT]", help="How the world reaches it [as it listens]."),
        click.option(
            "--domain", "domains", multiple=True, default=["apps.localhost"], show_default=True, help="Repeatable."
        ),
        click.option("--certificate", type=FILE, help="PEM chain for --gateway-tls."),
        click.option("--certificate-key", type=FILE, help="Its key."),
        click.option("--acme", metavar="URL", help="Directory of an authority that issues certificates."),
        click.option("--acme-email", metavar="ADDRESS", help="Whom the authority writes to."),
        click.option("--acme-ca", type=FILE, help="PEM certificates to trust the authority by."),
        click.option("--route-rate", type=limit, default=0, help="Requests/s of a host name; 0: any."),
        click.option("--account-rate", type=limit, default=0, help="Requests/s of an account; 0: any."),
        click.option("--route-connections", type=limit, default=10_000, show_default=True, help="Of a host name."),
        click.option("--account-connections", type=limit, default=20_000, show_default=True, help="Of an account."),
        click.option("--ssh", default="127.0.0.1:2222", show_default=True, metavar="HOST:PORT", help="SSH gateway."),
        click.option("--ssh-host", metavar="NAME", help="What clients are told [as they reached the API]."),
        click.option("--oidc-issuer", metavar="URL", help="OpenID provider whose users may log in."),
        click.option("--oidc-client-id", metavar="ID", help="How it knows this Roost."),
        click.option("--oidc-client-secret", type=FILE, help="Holds its secret [ROOST_OIDC_CLIENT_SECRET]."),
        click.option("--oidc-domain", "oidc_domains", multiple=True, help="Whose addresses are let in; repeatable."),
        click.option("--oidc-email", "oidc_emails", multiple=True, help="An address that is let in; repeatable."),
        click.option("--ssh-ports", type=PORTS, metavar="LOW-HIGH", help="For jobs that want a port of their own."),
        click.option(
            "--registry", "registries", multiple=True, metavar="HOST", help="Jobs may use its images, too; repeatable."
        ),
        click.option(
            "--default-image", default=STANDARD, show_default=True, metavar="NAME", help="Of jobs that name none."
        ),
        click.option("--audit-days", type=click.IntRange(min=0), default=90, show_default=True, help="0: for ever."),
        click.option(
            "--otlp-endpoint",
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            metavar="URL",
            help="Receiver of traces (OTLP).",
        ),
        click.option(
            "--default-quota", "default_quotas", multiple=True, metavar="NAME=N", help="Of accounts; repeatable."
        ),
        click.option(
            "--allow-private", multiple=True, metavar="HOST|NET", help="Not public, yet users may name it; repeatable."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Screen, brief=USUAL)
@click.option("--state", type=DIRECTORY, default=DEFAULT_STATE, show_default=True, help="What Roost keeps.")
@click.option("--listen", default="127.0.0.1:8484", show_default=True, metavar="HOST:PORT")
@click.option("--user", default="roost", show_default=True, help="Whom the control plane runs as.")
@click.option("--hello", is_flag=True, help="Run a first job when everything is up.")
@log_format
@node_options
@serve_options
def up(state: Path, images: Path, **options: Any) -> None:
    """Start Roost on this machine, in the foreground; SIGTERM or Ctrl-C stops it."""
    from roost.settings import ServeSettings
    from roost.up import UpSettings, run

    as_root("`roost up` needs root (mounts, namespaces, firewall)")
    known = ServeSettings.__dataclass_fields__.keys() - {"listen", "log_format"}
    serving = {name: options.pop(name) for name in list(options) if name in known}
    run(UpSettings(state=state.resolve(), images=images.resolve(), serving=serving, **options))


def as_root(reason: str) -> None:
    """Start this command again through sudo, unless root runs it. SetupMissing where there is no sudo."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        raise SetupMissing(f"{reason}; start it as root")
    click.echo(f"{reason}: starting it through sudo", err=True)
    os.execv(sudo, [sudo, "--", sys.executable, "-P", "-m", "roost.cli", *sys.argv[1:]])  # noqa: S606


@click.command(hidden=True)
@click.option("--state", type=DIRECTORY, required=True)
@click.option("--node-socket", type=click.Path(path_type=Path), required=True)
@click.option("--listen", required=True)
@click.option("--inherited", multiple=True, metavar="NAME=N")
@click.option("--check", is_flag=True, help="Only say whether these options can be used.")
@log_format
@serve_options
def serve(state: Path, inherited: tuple[str, ...], check: bool, **options: Any) -> None:
    """The control plane. The first account's token comes on standard input."""
    # Litestar loads pydantic where it is installed, as it is for `roost mcp`: 10 MB that nothing here uses
    sys.modules.setdefault("pydantic", None)  # type: ignore[arg-type]
    from roost.serve import require_usable
    from roost.serve import serve as serve_api
    from roost.settings import ServeSettings

    with _configured():
        handed = {name: int(number) for name, _, number in (one.partition("=") for one in inherited)}
        settings = ServeSettings(state_dir=state, inherited=handed, **options)
        if check:
            return require_usable(settings)
        return serve_api(settings, sys.stdin.readline().strip())


@click.command(hidden=True)
@click.option("--state", type=DIRECTORY, required=True)
@click.option("--runtime-dir", type=DIRECTORY, required=True)
@click.option("--instance", type=click.IntRange(0, 15), required=True)
@click.option("--group", required=True)
@log_format
@node_options
def node(**options: object) -> None:
    """The node daemon."""
    from roost.node import daemon
    from roost.settings import NodeSettings

    with _configured():
        daemon.run(NodeSettings(**options))  # pyright: ignore[reportArgumentType]


@contextmanager
def _configured() -> Generator[None]:
    try:
        yield
    except (Invalid, SetupMissing, StateUnwritable, Conflict) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(os.EX_CONFIG)


@click.group("node-image", hidden=True)
def node_image() -> None:
    """The image store of this machine, without a running node; for setting up."""


@node_image.command()
@click.argument("name")
@click.option("--images", type=DIRECTORY, default=DEFAULT_IMAGES, show_default=True)
def ensure(name: str, images: Path) -> None:
    """Build NAME from the distribution's packages, unless it is there and would be made the same way now."""
    import asyncio

    from roost.node.images import ImageStore
    from roost.node.images.build import recipe, source_of
    from roost.node.protocol import BuildImage

    if os.geteuid() != 0:
        raise SetupMissing(f"the images in {images} belong to root; use sudo")
    store, request = ImageStore(images), BuildImage()
    there = next((image for image in store.list() if image.name == name), None)
    if there and (there.recipe == recipe(request) or there.source != source_of(request)):  # somebody made it otherwise
        return click.echo(f"image {name} is there")
    why = "what it is made of has changed; workspaces keep the one that they stand on" if there else "from packages"
    click.echo(f"building image {name} ({why}); this takes a minute or a few", err=True)
    built = asyncio.run(store.build(name, request, lambda line: click.echo(f"  {line}", err=True)))
    return click.echo(f"image {built.name}: {built.size / 1e6:.0f} MB, {built.digest}")


@click.command()
@click.option("--images", type=DIRECTORY, default=DEFAULT_IMAGES, show_default=True)
@click.option(
    "--state", type=DIRECTORY, default=DEFAULT_STATE, show_default=True, help="Where `roost up` is to keep it."
)
@click.option("--runtime", help="OCI runtime: crun, runc, runsc or a path [by cgroup version].")
@as_json
def doctor(images: Path, state: Path, runtime: str | None, raw: bool) -> None:
    """Make a sandbox as a job would, and say what this machine lacks for it and what to install."""
    from roost.doctor import examine

    findings = examine(images.resolve(), state.resolve(), runtime)
    if raw:
        print_json([finding.__dict__ for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.verdict:<8} {finding.name:<{width}}  {finding.detail}")
            if finding.cure:
                click.echo(f"{'':<8} {'':<{width}}  -> {finding.cure}")
    if any(finding.verdict == "missing" for finding in findings):
        sys.exit(1)
