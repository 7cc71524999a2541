"""The built image does what the documents for Alpine say and what a coding agent needs on the first day.

What installs packages takes them from this machine's mirrors and registries.
"""

import pytest

from tests.e2e.instance import Api

PROGRAMS = """
git curl wget node npm npx jq unzip zip ss ip ping ps less nano python3 python pip ssh scp rsync sqlite3 file tar
bash ash sh apt-get apk gzip find awk sed
"""

ALPINE = r"""
set -e
apk add --no-cache -q tree
tree --version >/dev/null
ls /var/lib/apt/lists | grep -c Packages || true
apk add -q --virtual .tools htop bc
apk add -q bc
apk info -e .tools
apk del -q .tools
hash -r
command -v htop || echo "htop is gone"
echo '6*7' | bc
apk info -W /usr/bin/tree
apk del -q tree
apk search -e py3-requests | sed 's/-[0-9].*//'
dpkg --audit
"""


def test_what_is_needed_on_the_first_day_is_there(api: Api) -> None:
    every = " ".join(PROGRAMS.split())
    script = f"for one in {every}; do command -v $one >/dev/null || echo no $one; done; python3 -m venv /tmp/v"
    ended = api.run(script)
    assert (ended.status, ended.lines) == ("completed", []), ended


def test_the_shell_is_ash_and_its_tools_are_debians(api: Api) -> None:
    ended = api.run(
        "x=abc.txt\n"
        '[[ "$x" == *.txt && -n $HOME ]] && echo matches\n'
        r"""[[ $x =~ ^[a-c]+ ]] && echo "${x:0:3} a\tb" """
        "\nls --version | head -n 1; date -d '2020-01-01' +%A; echo ab | grep -oP 'a(?=b)'"
        "\nreadlink /bin/sh; ash -c 'echo ash'"
    )
    assert ended.lines == ["matches", r"abc a\tb", "ls (GNU coreutils) 9.1", "Wednesday", "a", "ash", "ash"]


@pytest.mark.timeout(400)
def test_the_documents_lines_for_alpine_work(api: Api) -> None:
    """As Mags' documents print it."""
    line = "apk add python3 py3-pip nodejs npm && pip install requests flask"
    ended = api.run(f"{line}\npython3 -c 'import requests, flask; print(42)'", seconds=300, timeout=300)
    assert (ended.status, ended.lines[-1]) == ("completed", "42"), ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_apk_adds_groups_removes_and_searches(api: Api) -> None:
    ended = api.run(ALPINE, seconds=300, timeout=300)
    assert ended.lines == [
        "0", ".tools", "htop is gone", "42", "/usr/bin/tree is owned by tree-2.1.0-1", "python3-requests",
    ], ended.stdout + ended.stderr  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_apt_installs_without_questions_or_warnings(api: Api) -> None:
    ended = api.run("apt-get update -qq && apt-get install -y exim4-config", seconds=300, timeout=300)
    assert ended.status == "completed", ended.stderr
    said = (ended.stdout + ended.stderr).decode()
    assert [word for word in ("debconf:", "apt-utils", "WARNING", "Reading database ... 5%") if word in said] == []


def test_no_package_gets_a_shell_that_its_scripts_cannot_use(api: Api) -> None:
    """Debian's maintainer scripts are POSIX and `local`."""
    ended = api.run(
        "f() { local a=1 b; printf '%s\\n' \"$a$b\"; }; f; trap 'echo bye' EXIT; set -eu; echo ${nothing:-was}"
    )
    assert ended.lines == ["1", "was", "bye"]
