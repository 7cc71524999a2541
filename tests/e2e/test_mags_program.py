"""The command lines that are documented for `mags`, run as they stand by the program `mags`.

They are those of the API reference and of the documentation of the CLI; names of jobs and workspaces are theirs. `npm`
is a program in a workspace, which says what it was asked for.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.e2e.instance import RunningRoost, clean_environment, eventually
from tests.e2e.test_urls import curl

pytestmark = pytest.mark.e2e

NPM = """cat > /usr/local/bin/npm <<'END'
#!/bin/sh
echo "npm $*"
[ "$1" != start ] || exec python3 -m http.server "${PORT:-8080}"
END
chmod +x /usr/local/bin/npm"""


class Shell:
    """A shell whose `mags` and `roost` are ours, at home in a directory of its own, led to one server."""

    def __init__(self, roost: RunningRoost, home: Path) -> None:
        self.home = home
        (home / "bin").mkdir()
        for program in ("mags", "roost"):
            code = f"from roost.cli.main import main; main(prog_name={program!r})"
            (home / "bin" / program).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
            (home / "bin" / program).chmod(0o755)
        self._environment = clean_environment() | {
            "HOME": str(home),
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "MAGS_API_TOKEN": roost.api.token,
            "MAGS_API_URL": roost.api.url,
        }

    def does(self, line: str, input: str = "", status: int = 0) -> str:
        """What a line prints; it must end with `status`."""
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=self.home, env=self._environment, input=input, text=True, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, (line, done.stdout, done.stderr)
        return done.stdout


def workspaces(roost: RunningRoost) -> set[str]:
    return {one["workspace_id"] for one in roost.api.call("GET", "/mags-workspaces")["workspaces"]}


@pytest.fixture
def shell(roost: RunningRoost, tmp_path: Path) -> Iterator[Shell]:
    """Whatever a line makes is removed afterwards, for its names are those of the documents."""
    jobs, kept = {job["request_id"] for job in roost.api.jobs()}, workspaces(roost)
    yield Shell(roost, tmp_path)
    for job in roost.api.jobs():
        if job["request_id"] not in jobs and job["status"] not in ("completed", "error"):
            roost.api.call("POST", f"/mags-jobs/{job['request_id']}/stop")
    for name in workspaces(roost) - kept:
        roost.api.call("DELETE", f"/mags-workspaces/{name}")


def page(url: str) -> str:
    """What a URL shows, once something answers behind it."""

    def shown() -> str:
        status, body = curl(url.strip())
        return body if status == 200 else ""

    return eventually(shown)


def test_the_documented_ways_to_run(shell: Shell) -> None:
    assert shell.does(f"mags run -w proj {shlex.quote(NPM)}") == ""
    # there is no npm, or one that finds no package
    assert shell.does('mags run "npm test" || test $? = 127 -o $? = 254') == ""
    assert shell.does('mags run -w proj "npm test"') == "npm test\n"
    assert shell.does('mags run --base proj "npm test"') == "npm test\n"
    (shell.home / "script.py").write_text("print('from a file')")
    assert shell.does("mags run -f script.py -e -t 60 'python3 script.py'") == "from a file\n"
    (shell.home / "script.sh").write_text("echo a script file")
    assert shell.does("mags run script.sh") == "a script file\n"
    assert shell.does("mags run -n named 'echo kept > kept'") == ""
    assert shell.does("mags run -n named 'cat kept'") == "kept\n"
    assert "proj" in shell.does("mags list") and "named" in shell.does("mags workspace list")
    assert shell.does("mags logs named") == "kept\n"
    assert "completed" in shell.does("mags status named")


def test_the_documented_web_apps(shell: Shell, roost: RunningRoost) -> None:
    assert "Directory listing" in page(shell.does('mags run -p --url "python3 -m http.server 8080"'))
    shell.does(f"mags run -w webapp {shlex.quote(NPM)}")
    url = shell.does('mags run -w webapp -p --url --startup-command "npm start" "npm install && npm start"')
    assert "Directory listing" in page(url)
    shell.does("mags sleep --cold webapp")
    assert "Directory listing" in page(url)
    assert shell.does("mags url webapp") == url
    shell.does("mags exec webapp 'cd /srv && nohup python3 -m http.server 3000 >/dev/null 2>&1 &'")
    assert shell.does("mags url webapp --port 3000") == url
    job = json.loads(shell.does("mags status webapp --json"))["request_id"]
    assert shell.does(f"mags url {job} --port 3000") == url
    shell.does("mags stop webapp")
    assert "Directory listing" in page(shell.does('mags run -w webapp -p --url --port 3000 -e PORT=3000 "npm start"'))


def test_the_documented_sandboxes_that_stay(shell: Shell) -> None:
    shell.does("mags new myvm")
    shell.does("mags set myvm --no-sleep")
    assert "never sleeps" in shell.does("mags set myvm --no-sleep")
    assert "idle minutes" in shell.does("mags set myvm --sleep")
    assert shell.does("mags exec myvm 'echo kept > kept; exit 3'", status=3) == ""
    assert "5" in shell.does("mags resize myvm --disk 5 && mags exec myvm 'df -BG --output=size /'")
    assert shell.does("mags ssh myvm", input="cat kept; exit 4\n", status=4) == "kept\n"
    assert shell.does("mags ssh proj hostname").strip()
    shell.does("mags stop proj")
    shell.does("mags new myproject -p --base myvm")
    assert shell.does("mags exec myproject cat kept") == "kept\n"
    assert "Sync initiated" in shell.does("mags sync myproject")
    assert ".apps.localhost" in shell.does("mags url alias my-api myproject")
    assert "my-api" in shell.does("mags url alias list")
    assert "deleted" in shell.does("mags url alias remove my-api")
    assert shell.does("mags workspace delete myproject", input="y\n", status=1) == ""  # it has an active job
    assert "Job stopped" in shell.does("mags stop myproject")
    assert "deleted" in shell.does("mags workspace delete myproject --force  # skip confirmation")
    shell.does("mags stop myvm")
    assert "deleted" in shell.does("mags workspace delete myvm", input="y\n")


def test_the_documented_schedules_and_figures(shell: Shell) -> None:
    line = """mags cron add --name "nightly-backup" --schedule "0 0 * * *" -w backups \\
      'tar czf backup.tar.gz /data'"""
    schedule = shell.does(line).strip()
    assert "nightly-backup" in shell.does("mags cron list")
    assert "disabled" in shell.does(f"mags cron disable {schedule}")
    assert "runs next" in shell.does(f"mags cron enable {schedule}")
    assert "SCHEDULED" in shell.does(f"mags cron runs {schedule}")
    assert "deleted" in shell.does(f"mags cron remove {schedule}")
    assert "min_pool_size" in shell.does("mags pool")
    assert "WORKSPACE" in shell.does("mags usage")


# What Chromium's DevTools do that matters here: they answer on loopback, and only to those who call them localhost
DEVTOOLS = """cat > /usr/local/bin/chromium <<'END'
#!/usr/bin/python3
import http.server, json, sys
port = int(next(one for one in sys.argv if one.startswith("--remote-debugging-port=")).partition("=")[2])
class DevTools(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        local = self.headers["Host"] == "localhost"
        body = json.dumps({"Browser": "Stand-in/1", "webSocketDebuggerUrl": "ws://localhost/devtools/browser/7"})
        self.send_response(200 if local and self.path == "/json/version" else 500)
        self.end_headers()
        self.wfile.write(body.encode())
http.server.HTTPServer(("127.0.0.1", port), DevTools).serve_forever()
END
chmod +x /usr/local/bin/chromium"""


def test_a_browser_is_started_used_again_and_told_where_it_is_missing(shell: Shell) -> None:
    shell.does(f"mags run -w surf {shlex.quote(DEVTOOLS)}")
    told = shell.does("mags browser surf --image standard").splitlines()
    assert told[0].startswith("http  http://") and ".apps.localhost" in told[0]
    assert told[1].startswith("ws    ws://") and told[1].endswith("/devtools/browser/7")
    again = json.loads(shell.does("mags browser surf --json"))
    assert told == [f"http  {again['cdp_http_url']}", f"ws    {again['ws_endpoint']}"]
    bare = json.loads(shell.does("mags browser --image standard --json", status=1))
    assert "there is no chromium in this image" in bare["error"] and "mags image build" in bare["error"]


def test_chromium_itself_is_driven(shell: Shell, roost: RunningRoost) -> None:
    if "browser" not in [image["name"] for image in roost.api.call("GET", "/images")["images"]]:
        pytest.skip("there is no image with Chromium; `roost image build browser -p chromium` makes it in a minute")
    told = json.loads(shell.does("mags browser --json"))
    server = socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(told["ws_endpoint"]).port or 80))
    with connect(told["ws_endpoint"], sock=server) as devtools:
        devtools.send(json.dumps({"id": 1, "method": "Browser.getVersion"}))
        assert "Chrom" in json.loads(devtools.recv(30))["result"]["product"]
