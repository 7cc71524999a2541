"""What is only for terminals, and what shells read."""

import io
import os
import pty
import subprocess
import sys

import pytest
from click.testing import CliRunner

from roost.cli import images, progress
from roost.cli.browser import endpoints
from roost.cli.main import main


def test_nothing_of_a_bar_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.sent(io.BytesIO(b"x" * 600_000), 600_000, "file") as pieces:
        assert [len(piece) for piece in pieces] == [262144, 262144, 75712]
    with progress.steps("begin") as told:
        told("step", 50)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_far_an_upload_is(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with progress.sent(io.BytesIO(b"x" * 600_000), 600_000, "file") as pieces:
            list(pieces)
        stream.flush()
        shown = ""
        while "100%" not in shown:  # a terminal gives a line at a time
            shown += os.read(controller, 100_000).decode()
    os.close(controller)
    assert "file" in shown


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ("pulled 30 MB (40 %) in 3 s", 20),
        ("pulled 30 MB in 3 s", 0),
        ("unpacking layer 2 of 4", 62),
        ("installing remaining packages inside the chroot", 27),
        ("writing to disk", 99),
        ("still installing", 0),
    ],
)
def test_a_step_of_an_image_says_how_much_is_done(words: str, done: int) -> None:
    assert images.share(words) == done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_for_both_programs(shell: str) -> None:
    shown = CliRunner().invoke(main, ["completion", shell]).output
    for program in ("roost", "mags"):
        assert f"_{program.upper()}_COMPLETE={shell}_complete" in shown
        assert f"_{program}_completion" in shown


def test_bash_takes_the_completion() -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).output
    told = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p roost mags"], capture_output=True, text=True, check=True
    ).stdout
    assert told.count("complete -o nosort") == 2


def test_a_browser_is_reached_by_its_public_name() -> None:
    version = {"webSocketDebuggerUrl": "ws://localhost/devtools/browser/abc"}
    assert endpoints("job", {"url": "https://x.apps.example"}, version) == {
        "request_id": "job",
        "cdp_http_url": "https://x.apps.example",
        "cdp_url": "wss://x.apps.example",
        "ws_endpoint": "wss://x.apps.example/devtools/browser/abc",
    }
    guarded = endpoints("job", {"url": "http://x.apps.localhost:8485", "access_token": "t"}, version)
    assert guarded["ws_endpoint"] == "ws://x.apps.localhost:8485/devtools/browser/abc"
    assert guarded["access_token"] == "t"
