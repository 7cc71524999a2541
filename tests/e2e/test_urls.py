"""Host names in front of real sandboxes: the guide's own commands, the official clients, and what curl gets."""

import json
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually, named
from tests.e2e.test_clients import interpreter, program_with

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parent.parent.parent / "docs" / "urls.md"
SERVER = "cd /root; echo {content} > index.html; exec python3 -m http.server {port} --bind 127.0.0.1"


def curl(url: str, *options: str) -> tuple[int, str]:
    """Status and body; names below localhost are this machine's, as for every curl."""
    command = ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture
def site(api: Api) -> Iterator[str]:
    """The name of a persistent job, and of its workspace, that serves its own name on port 8080."""
    name = named("site")
    script = SERVER.format(content=name, port=8080)
    job = api.submit(script, name=name, workspace_id=name, persistent=True)
    api.running(job)
    yield name
    api.stop(job)


def access(api: Api, job: str, **body: Any) -> dict[str, Any]:
    return api.call("POST", f"/mags-jobs/{job}/access", body)


def alias(api: Api, subdomain: str, workspace: str, **more: Any) -> dict[str, Any]:
    return api.call("POST", "/mags-url-aliases", {"subdomain": subdomain, "workspace_id": workspace, **more})


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL))


def test_the_guides_commands_do_what_it_says(own_roost: RunningRoost, tmp_path: Path) -> None:
    program = tmp_path / "roost"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m roost.cli "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{clean_environment()['PATH']}"
    api = own_roost.api
    environment = clean_environment() | {"PATH": path, "MAGS_API_URL": api.url, "MAGS_API_TOKEN": api.token}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", blocks("sh")],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    port = own_roost.gateway.rpartition(":")[2]
    assert done.stdout.count("hello\n") == 4, done.stdout
    assert f"http://shop.apps.localhost:{port}" in done.stdout
    assert "Alias 'shop.apps.localhost' deleted" in done.stdout
    assert "--gateway-tls" in done.stdout
    told = program_with("1.3.8", own_roost)(blocks("python").replace("print(", "tell(", 1).replace("print(", "str("))
    assert re.fullmatch(rf"http://[0-9a-f]{{12}}\.apps\.localhost:{port}", told)


@pytest.mark.parametrize("version", ["1.3.8", "1.3.6", "1.2.0"])
def test_official_clients_open_urls_that_lead_into_the_sandbox(roost: RunningRoost, site: str, version: str) -> None:
    opened, rewritten, status = program_with(version, roost)(f"""
job = client.find_job({site!r})
opened = client.enable_access(job["request_id"], port=8080)
tell([opened, client.url({site!r}), client.status(job["request_id"])])
""")
    assert (opened["success"], opened["port"], opened["access_type"]) == (True, 8080, "http_proxy")
    assert curl(opened["url"]) == (200, site + "\n")
    assert opened["url"] == status["url"]
    # what that client makes of it; a resolver that leads there, or curl's, makes it right again
    assert rewritten["url"] == f"https://{status['subdomain']}.apps.magpiecloud.com"


@pytest.mark.parametrize("version", ["1.3.8", "1.3.6"])
def test_official_clients_make_list_and_delete_aliases(roost: RunningRoost, site: str, version: str) -> None:
    name = named("shop")
    made, listed, refused = program_with(version, roost)(f"""
made = client.url_alias_create({name!r}, {site!r})
try: client.url_alias_create({name!r}, {site!r})
except MagsError as e: refused = [str(e), e.status_code]
tell([made, client.url_alias_list(), refused])
""")
    assert (made["subdomain"], made["domain"]) == (name, "apps.localhost")
    assert made["id"] in [one["id"] for one in listed["aliases"]]
    assert "already exists" in refused[0] and refused[1] == 409
    assert curl(made["url"]) == (200, site + "\n")
    after = program_with(version, roost)(f"client.url_alias_delete({name!r}); tell(client.url_alias_list())")
    assert name not in [one["subdomain"] for one in after["aliases"]]
    assert curl(made["url"])[0] == 404


CLOUD = """
import json, os
from magpie import Magpie
from magpie.exceptions import APIError
client = Magpie(api_key=os.environ["MAGS_API_TOKEN"])
client.base_url = os.environ["MAGS_API_URL"]
targets, address = client.proxy_targets, os.environ["ADDRESS"]
made = targets.create(ipv6_address=address, port=8080, name="n")
try: targets.create(ipv6_address="2606:4700::1111")
except APIError as e: refused = str(e)
found = targets.get(made.id)
changed = targets.update(made.id, port=9000, description="d")
listed = [one.id for one in targets.list()]
print(json.dumps([made.model_dump(mode="json"), found.subdomain, changed.model_dump(mode="json"), listed, refused]))
"""


def test_the_jobs_apis_client_makes_changes_and_lists_proxy_targets(roost: RunningRoost, api: Api, site: str) -> None:
    address = f"[{access(api, site)['ipv6_address']}]"
    variables = {"MAGS_API_URL": api.url, "MAGS_API_TOKEN": api.token, "ADDRESS": address}
    done = subprocess.run(
        [interpreter("0.1.5", "magpie-cloud"), "-c", CLOUD],
        capture_output=True, text=True, timeout=60, check=False, env=clean_environment() | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, found, changed, listed, refused = json.loads(done.stdout)
    assert (found, changed["port"], changed["description"], changed["name"]) == (made["subdomain"], 9000, "d", "n")
    assert made["id"] in listed and f"[{made['ipv6_address']}]" == address
    assert "not the address of a sandbox of yours" in refused
    api.call("PUT", f"/proxy-targets/{made['id']}", {"port": 8080})
    assert curl(made["proxy_url"]) == (200, site + "\n")
    api.call("DELETE", f"/proxy-targets/{made['id']}")
    assert curl(made["proxy_url"])[0] == 404


def test_one_sandbox_is_reached_by_all_of_its_names(roost: RunningRoost, api: Api, site: str) -> None:
    opened = access(api, site, port=8080)
    job = api.status(site)["request_id"]
    target = api.call("POST", "/proxy-targets", {"ipv6_address": f"[{opened['ipv6_address']}]"})
    name = named("shop")
    alias(api, name, site)
    hosts = [opened["subdomain"], job[:12], name, name.upper(), target["subdomain"]]
    for host in hosts:
        assert curl(f"http://{roost.gateway}/", "-H", f"Host: {host}.Apps.localhost.") == (200, site + "\n"), host
    assert curl(f"http://{roost.gateway}/", "-H", "Host: nobody.apps.localhost")[0] == 404
    assert curl(f"http://{roost.gateway}/", "-H", "Host: shop.example.org")[0] == 404


def test_without_an_opened_port_a_jobs_name_says_how_to_open_one(roost: RunningRoost, api: Api, site: str) -> None:
    status, text = curl(api.status(site)["url"])
    assert status == 404 and "roost url" in text
    url = access(api, site)["url"]
    assert curl(url)[0] == 200
    api.call("DELETE", f"/mags-jobs/{site}/access")
    assert curl(url)[0] == 404


def test_an_alias_follows_the_workspace_to_its_next_job(api: Api) -> None:
    workspace, name = named("w"), named("shop")
    url = ""
    for content in ("first", "second"):
        job = api.submit(SERVER.format(content=content, port=3000), workspace_id=workspace, persistent=True)
        api.running(job)
        url = url or alias(api, name, workspace, port=3000)["url"]
        assert curl(url) == (200, content + "\n")
        api.stop(job)
        api.wait(job)
        status, text = curl(url)
        assert status == 404 and "no job has the workspace" in text


def test_no_request_is_lost_while_a_client_resizes_a_sandbox(roost: RunningRoost, api: Api) -> None:
    name = named("grown")
    serve = SERVER.format(content="up", port=8080)
    job = api.submit(serve, workspace_id=name, persistent=True)
    api.running(job)
    url = alias(api, name, name)["url"]
    assert curl(url) == (200, "up\n")
    api.stop(job)
    with subprocess.Popen(["curl", "-sS", "-m", "60", url], stdout=subprocess.PIPE) as visitor:
        second = api.submit(serve, workspace_id=name, persistent=True, disk_gb=3)
        assert visitor.communicate(timeout=60)[0] == b"up\n"
    api.stop(second)


@pytest.mark.parametrize("depth", ["frozen", "cold"])
def test_every_name_wakes_a_sandbox_that_sleeps(roost: RunningRoost, api: Api, depth: str) -> None:
    name = named("sleeper")
    serve = SERVER.format(content=name, port=8080)
    job = api.submit(serve, name=name, workspace_id=name, persistent=True, startup_command=serve)
    vm_id = api.running(job)["vm_id"]
    opened = access(api, name)
    urls = [opened["url"], alias(api, name, name)["url"]]
    urls.append(api.call("POST", "/proxy-targets", {"ipv6_address": opened["ipv6_address"]})["proxy_url"])
    for url in urls:
        assert curl(url) == (200, name + "\n")
        assert api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": depth})["status"] == "sleeping"
        assert curl(url) == (200, name + "\n")
    assert (api.status(job)["vm_id"] == vm_id) is (depth == "frozen")
    api.stop(job)


def test_repointing_leads_the_next_request_to_the_other_port(api: Api) -> None:
    name = named("two")
    serve = "(mkdir -p /root/{0}; cd /root/{0}; echo {0} > index.html; exec python3 -m http.server {0}) &"
    script = "\n".join([*(serve.format(port) for port in (3000, 4000)), "wait"])
    job = api.submit(script, name=name, persistent=True)
    api.running(job)
    for port in (3000, 4000, 3000):
        assert curl(access(api, name, port=port)["url"]) == (200, f"{port}\n")
    api.stop(job)


ECHO = r"""
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (self.path + "\n" + str(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8080), Echo).serve_forever()
"""


@pytest.fixture
def echo(api: Api) -> Iterator[str]:
    """The name of a job that answers each request with its path and headers."""
    name = named("echo")
    job = api.submit(f"#!/usr/bin/env python3\n{ECHO}", name=name, persistent=True)
    api.running(job)
    yield name
    api.stop(job)


def test_a_token_opens_and_is_never_seen_by_the_sandbox(api: Api, echo: str) -> None:
    opened = access(api, echo, access="token")
    url, token = opened["url"] + "/x?a=1", opened["access_token"]
    status, text = curl(url)
    assert status == 401 and "X-Roost-Token" in text
    assert curl(url, "-H", "X-Roost-Token: wrong")[0] == 401
    for shown in (["-H", f"X-Roost-Token: {token}"], ["-b", f"roost_access={token}; mine=1"]):
        status, text = curl(url, *shown)
        assert status == 200 and text.startswith("/x?a=1\n")
        assert token not in text and "roost" not in text.lower().replace("x-roost-request", "")
    assert access(api, echo, port=8080)["access"] == "token"
    renewed = access(api, echo, access="token")["access_token"]
    assert curl(url, "-H", f"X-Roost-Token: {token}")[0] == 401
    assert curl(url, "-H", f"X-Roost-Token: {renewed}")[0] == 200


def test_a_signed_link_opens_for_programs_and_for_browsers(api: Api, echo: str, tmp_path: Path) -> None:
    link = access(api, echo, access="signed", expires_in=600)["url"]
    plain = link.partition("?")[0]
    assert curl(plain)[0] == 401
    status, text = curl(link + "&page=2")
    assert status == 200 and text.startswith("/?page=2\n") and "roost_signature" not in text
    jar = str(tmp_path / "cookies")
    browser = ["-H", "Accept: text/html", "-H", "Sec-Fetch-Mode: navigate", "-c", jar, "-b", jar]
    assert curl(link, *browser)[0] == 302
    status, text = curl(plain, *browser)
    assert status == 200 and "roost_access" not in text
    assert curl(link[:-2] + "xx")[0] == 401
    other = urllib.parse.urlsplit(link)
    host = f"{named('shop')}.apps.localhost:{other.port}"
    assert curl(urllib.parse.urlunsplit(other._replace(netloc=host)))[0] == 404
    api.call("DELETE", f"/mags-jobs/{echo}/access")
    access(api, echo, access="signed")
    assert curl(link)[0] == 401, "closing withdraws the links that were given out"


def test_names_ports_and_access_outlive_kills_of_the_control_plane(mortal_roost: RunningRoost) -> None:
    api = mortal_roost.api
    name = named("web")
    job = api.submit(SERVER.format(content="alive", port=8080), name=name, workspace_id=name, persistent=True)
    api.running(job)
    link = access(api, name, access="signed")["url"]
    shop = alias(api, named("shop"), name, access="token")
    mortal_roost.kill("serve")
    mortal_roost.healthy()
    answers = eventually(lambda: curl(link, "-o", "/dev/null")[0] == 200, 30, "the gateway is not back")
    assert answers
    assert curl(shop["url"])[0] == 401
    assert curl(shop["url"], "-H", f"X-Roost-Token: {shop['access_token']}") == (200, "alive\n")


def test_the_command_line_opens_names_and_closes(roost: RunningRoost, site: str) -> None:
    def said(*words: str, status: int = 0) -> str:
        done = roost.command(*words)
        assert done.returncode == status, done
        return done.stdout.decode().strip() if status == 0 else done.stderr.decode()

    assert curl(said("url", site)) == (200, site + "\n")
    name = named("shop")
    assert curl(said("url", "alias", name, site)) == (200, site + "\n")
    assert name in said("url", "alias", "list")
    assert json.loads(said("url", "alias", "list", "--json"))["total"] >= 1
    said("url", "alias", "remove", name)
    said("url", site, "--close")
    assert "no URL open" in said("url", site, "--close", status=1)


@pytest.fixture
def by_command(roost: RunningRoost, api: Api) -> Iterator[str]:
    """The name of a sandbox that `roost new` made with a startup command that serves its own name, and no script."""
    name = named("started")
    serve = SERVER.format(content=name, port=8080)
    command = [*PROGRAM, "new", "--state", str(roost.state), name, "--startup-command", serve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=clean_environment())
    assert done.returncode == 0, done.stderr
    yield name
    api.stop(api.status(name)["request_id"])


def test_a_startup_command_without_a_script_starts_the_sandbox(api: Api, by_command: str) -> None:
    assert curl(access(api, by_command)["url"]) == (200, by_command + "\n")


@pytest.mark.parametrize("script", ["sleep infinity", None], ids=["cold", "first start"])
def test_a_startup_command_that_fails_is_told_at_once_with_its_exit_status(api: Api, script: str | None) -> None:
    name = named("failing")
    asked = {"name": name, "persistent": True, "startup_command": "echo boot; exit 7"}
    job = api.call("POST", "/mags-jobs", {"type": "inline", **asked, **({"script": script} if script else {})})[
        "request_id"
    ]
    api.running(job)
    url = access(api, name)["url"]
    if script:
        api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"})
    status, body = curl(url, "--max-time", "30")  # it would be held for 90 s if something could be about to listen
    assert status == 502 and "ended with exit status 7" in body
    state = api.status(job)
    assert "exit status 7" in state.get("error", "") if script else state["exit_code"] == 7
    assert b"ended with exit status 7" in api.raw(job, "system")
    api.stop(job)


READS = {
    "python": [sys.executable, "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"],
    "node": ["node", "-e", "fetch(process.argv[1]).then(a => a.text()).then(console.log)"],
    "wget": ["wget", "-qO-"],
    "curl": ["curl", "-sS"],
}


@pytest.mark.parametrize("program", READS)
def test_a_url_is_known_to_programs_on_this_machine(api: Api, site: str, program: str) -> None:
    """What `make run` installs answers for names below localhost; `roost doctor` says where that is missing."""
    url = access(api, site, port=8080)["url"]
    curl(url)
    done = subprocess.run([*READS[program], url], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, site), done.stderr


def test_where_a_name_is_not_known_the_gateways_address_and_the_host_do(api: Api, site: str) -> None:
    told = access(api, site, port=8080)
    assert told["gateway_url"].startswith("http://127.0.0.1:")
    assert told["gateway_url"].rpartition(":")[2] == told["url"].rpartition(":")[2]
    host = urllib.parse.urlsplit(told["url"]).netloc
    assert curl(told["gateway_url"], "-H", f"Host: {host}") == (200, f"{site}\n")
