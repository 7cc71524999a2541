"""What the server says, in the words of the command line."""

import re
from pathlib import Path

import pytest

import roost
from roost.cli.wording import own_words

SOURCES = Path(roost.__file__).parent
CALLS = re.compile(r"(?:GET|POST|PATCH|PUT|DELETE) /api/v1/[\w/:-]+")
# of the API alone, or not for people at a terminal
ELSEWHERE = {"GET /api/v1/proxy-targets", "POST /api/v1/microvms/"}  # the latter is tested above


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job x; stop it, or fork it with base_workspace_id", "job x; stop it, or fork it with --base"),
        ("no 'a'; GET /api/v1/job-templates lists yours", "no 'a'; `roost template list` lists yours"),
        ("'m' stands; start it with POST /api/v1/microvms/1-3/start", "'m' stands; start it with `roost vm start 1-3`"),
        ("disk_gb: 70 is out of range; give 1 to 64", "--disk: 70 is out of range; give 1 to 64"),
        ("no job has the id, name or workspace 'disk_gb'", "no job has the id, name or workspace 'disk_gb'"),
    ],
)
def test_fields_and_calls_of_the_api_become_options_and_commands(text: str, words: str) -> None:
    assert own_words(text) == words


def test_no_call_that_a_refusal_of_the_server_names_reaches_a_person() -> None:
    named = {
        call
        for folder in ("jobs", "workspaces", "accounts", "webhooks", "sandboxes", "gateways")
        for path in (SOURCES / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if "lists yours" in line or "lists what" in line or "lists them" in line or "start it with" in line
        for call in CALLS.findall(line)
    }
    assert named - ELSEWHERE, "the pattern finds nothing"
    for call in named - ELSEWHERE:
        assert "/api/v1" not in own_words(f"there is none; {call} lists yours"), call
