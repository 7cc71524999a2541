"""Commands of the older official clients, as they leave them and as they are run."""

import subprocess

import pytest

from roost.gateways.ssh.older_clients import put_right


def sent(command: str) -> str:
    """As `Mags.exec` of 1.2.0 to 1.3.6 wraps it."""
    escaped = command.replace("'", "'\\''")
    return (
        f"if [ -d /overlay/bin ]; then chroot /overlay /bin/sh -l -c 'cd /root 2>/dev/null; {escaped}'; "
        f"else cd /root 2>/dev/null; {escaped}; fi"
    )


@pytest.mark.parametrize(
    "command", ["echo plain", "echo 'single quotes'", 'echo "double \' one"', "printf '%s\\n' 'a; fi' 'else cd /root'"]
)
def test_a_wrapped_command_does_what_the_bare_one_does(command: str) -> None:
    bare = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout
    wrapped = subprocess.run(["/bin/sh", "-c", put_right(sent(command))], capture_output=True, check=True).stdout
    assert wrapped == bare != b""


def test_its_exit_status_is_kept() -> None:
    assert subprocess.run(["/bin/sh", "-c", put_right(sent("exit 7"))], check=False).returncode == 7


@pytest.mark.parametrize(
    "command",
    [
        "echo other",
        "",
        "if [ -d /overlay/bin ]; then chroot /overlay /bin/sh -l -c 'cd /root 2>/dev/null; a'; fi",
        sent("a").replace("2>/dev/null; a; fi", "2>/dev/null; b; fi"),
    ],
)
def test_any_other_command_stays_as_it_is(command: str) -> None:
    assert put_right(command) == command
