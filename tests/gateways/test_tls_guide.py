"""docs/tls.md: its commands are run, or at least are commands that `roost up` takes."""

import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click import Context, Group

from roost.cli.main import main
from roost.gateways.tls import issuing
from roost.gateways.tls.certificates import POLL_SECONDS, CertificateFiles
from roost.gateways.tls.gateway import ORDER_PATIENCE

GUIDE = (Path(__file__).parents[2] / "docs" / "tls.md").read_text()
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)).replace("\\\n", " ").splitlines()


def beginning(word: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(word)]


def test_the_certificate_that_the_guide_makes_can_be_served(tmp_path: Path) -> None:
    (command,) = beginning("openssl")
    subprocess.run(shlex.split(command.replace("/etc/roost/tls", str(tmp_path))), check=True, capture_output=True)
    files = CertificateFiles(tmp_path / "chain.pem", tmp_path / "key.pem", ("apps.localhost",))
    assert files.certificate.covers("web.apps.localhost") and files.certificate.valid_at(datetime.now(UTC))


@pytest.mark.parametrize("command", beginning("roost up"))
def test_roost_up_takes_the_options_that_the_guide_gives_it(command: str) -> None:
    assert isinstance(main, Group)
    up = main.get_command(Context(main), "up")
    assert up is not None
    assert up.make_context("up", shlex.split(command)[2:]).params["gateway"]


def test_the_guide_tells_the_numbers_that_hold() -> None:
    assert f"up to {ORDER_PATIENCE:.0f} seconds" in GUIDE
    assert f"At most {issuing.ORDERS_PER_HOUR} orders an hour" in GUIDE
    assert f"after {issuing.FIRST_PAUSE / 60:.0f} minutes, then 6, 18" in GUIDE and issuing.LAST_PAUSE == 12 * 3600
    assert POLL_SECONDS == 2 and "every two seconds" in GUIDE
