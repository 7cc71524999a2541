"""What host names mean: found in the rows, answered from memory, and never what was true a moment ago."""

import asyncio
from typing import Any

import pytest

from roost.errors import Conflict, NotFound
from roost.gateways.hosts import Hosts
from roost.jobs import job as jobs
from roost.jobs.job import Job
from tests.jobs.memory_node import address_of, until
from tests.workspaces.conftest import Api

DOMAIN = "apps.localhost"


async def opened(api: Api, port: int = 8080, **fields: Any) -> Job:
    """A persistent job that runs, with its URL open."""
    vm_id = await api.run(persistent=True, **fields)
    job = await jobs.find_by_vm(api.database, vm_id)
    assert job is not None
    await api.json(f"/mags-jobs/{job.request_id}/access", method="POST", json={"port": port})
    return job


async def alias(api: Api, subdomain: str, workspace: str, **more: Any) -> None:
    body = {"subdomain": subdomain, "workspace_id": workspace, **more}
    await api.json("/mags-url-aliases", 201, "POST", json=body)


async def stop(api: Api, job: Job) -> None:
    await api.json(f"/mags-jobs/{job.request_id}/stop", method="POST")


async def none_at(api: Api, host: str) -> str:
    assert api.routes.known(host) is None
    with pytest.raises(NotFound) as found:
        await api.routes.find(host)
    return str(found.value)


async def test_a_jobs_own_name_leads_to_the_port_that_was_opened(api: Api) -> None:
    job = await opened(api, 3000)
    host = f"{job.subdomain}.{DOMAIN}"
    assert api.routes.known(host) is None
    route = await api.routes.find(f"{host.upper()}:8485")
    assert (route.job.seq, route.port, route.access.kind, route.key) == (job.seq, 3000, "public", host)
    assert route.account_id == job.account_id
    assert route.run is api.live.run_of(job) is not None
    assert api.routes.known(host) is route


async def test_a_job_that_has_opened_nothing_says_how_to(api: Api) -> None:
    vm_id = await api.run(persistent=True)
    job = await jobs.find_by_vm(api.database, vm_id)
    assert job is not None
    for label in (job.subdomain, job.request_id[:12]):
        assert "roost url" in await none_at(api, f"{label}.{DOMAIN}")


async def test_the_beginning_of_a_request_id_is_a_name_of_the_same_door(api: Api) -> None:
    job = await opened(api, 9000)
    for prefix in (job.request_id[:12], job.request_id[:12].upper()):
        assert (await api.routes.find(f"{prefix}.{DOMAIN}")).port == 9000
    await api.json(f"/mags-jobs/{job.request_id}/access", method="DELETE")
    assert "roost url" in await none_at(api, f"{job.request_id[:12]}.{DOMAIN}")


async def test_names_that_nothing_has_are_not_found_in_words(api: Api) -> None:
    assert "served here" in await none_at(api, "shop.example.org")
    for label in ("nobody", "0123456789ab", "01234567-89a"):
        assert f"no sandbox at {label}.{DOMAIN}" in await none_at(api, f"{label}.{DOMAIN}")


async def test_every_configured_domain_leads_to_jobs_and_an_alias_is_of_one(api: Api) -> None:
    api.routes.hosts = Hosts((DOMAIN, "example.org"))
    job = await opened(api, workspace_id="w")
    await alias(api, "shop", "w", domain="example.org")
    assert (await api.routes.find(f"{job.subdomain}.example.org")).job.seq == job.seq
    assert (await api.routes.find(f"{job.subdomain}.{DOMAIN}")).job.seq == job.seq
    assert (await api.routes.find("shop.example.org")).job.seq == job.seq
    await none_at(api, f"shop.{DOMAIN}")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases do not wait for a next job."""
    monkeypatch.setattr("roost.gateways.routes.HANDOVER", 0.0)


async def test_who_comes_between_two_jobs_of_a_workspace_waits_for_the_second(api: Api) -> None:
    first = await opened(api, workspace_id="w")
    await alias(api, "shop", "w")
    await stop(api, first)
    visitors = [asyncio.create_task(api.routes.find(f"shop.{DOMAIN}")) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert not any(visitor.done() for visitor in visitors)
    second = await opened(api, workspace_id="w")
    assert {(await visitor).job.seq for visitor in visitors} == {second.seq} != {first.seq}


@pytest.mark.usefixtures("at_once")
async def test_an_alias_follows_its_workspaces_job_from_one_to_the_next(api: Api) -> None:
    first = await opened(api, workspace_id="w")
    await alias(api, "shop", "w", port=5000)
    host = f"shop.{DOMAIN}"
    assert (await api.routes.find(host)).job.seq == first.seq
    assert api.routes.known(host) is not None
    await stop(api, first)
    assert "no job has the workspace" in await none_at(api, host)
    second = await opened(api, workspace_id="w")
    route = await api.routes.find(host)
    assert (route.job.seq, route.port) == (second.seq, 5000)
    assert route.job.seq != first.seq


@pytest.mark.usefixtures("at_once")
async def test_an_alias_of_a_workspace_that_was_deleted_waits_for_one_of_that_name(api: Api) -> None:
    await api.fill("w")
    await alias(api, "shop", "w")
    await api.json("/mags-workspaces/w", method="DELETE")
    assert "no job has the workspace" in await none_at(api, f"shop.{DOMAIN}")
    again = await opened(api, workspace_id="w")
    assert (await api.routes.find(f"shop.{DOMAIN}")).job.seq == again.seq


async def test_what_is_remembered_ends_with_the_job(api: Api) -> None:
    job = await opened(api)
    host = f"{job.subdomain}.{DOMAIN}"
    await api.routes.find(host)
    await stop(api, job)
    assert "has ended" in await none_at(api, host)


async def test_a_job_that_woke_from_cold_is_another_sandbox_of_the_same_name(api: Api) -> None:
    job = await opened(api, workspace_id="w")
    await alias(api, "shop", "w")
    host = f"shop.{DOMAIN}"
    before = await api.routes.find(host)
    await api.json(f"/mags-jobs/{job.request_id}/sleep", method="POST", json={"depth": "cold"})
    await until(lambda: api.live.run_of(job) is None)
    assert api.routes.known(host) is None
    asleep = await api.routes.find(host)
    assert asleep.run is None and asleep.job.status == "sleeping"
    assert asleep.job.vm_id != before.job.vm_id
    run = await api.routes.awake(asleep, 5)
    after = await api.routes.find(host)
    assert after.run is run
    assert run.job.vm_id == after.job.vm_id == asleep.job.vm_id


async def test_nothing_is_remembered_of_a_look_up_that_a_change_overtook(api: Api) -> None:
    job = await opened(api, 8080)
    host = f"{job.subdomain}.{DOMAIN}"
    looking = asyncio.create_task(api.routes.find(host))
    await asyncio.sleep(0)  # its read is under way
    api.routes.job_changed(job)
    await looking
    assert api.routes.known(host) is None


async def test_a_changed_port_is_the_next_requests_port(api: Api) -> None:
    job = await opened(api, 8080)
    host = f"{job.subdomain}.{DOMAIN}"
    for port in (8081, 8082, 8083):
        assert (await api.routes.find(host)).port == port - 1
        await api.json(f"/mags-jobs/{job.request_id}/access", method="POST", json={"port": port})
        assert api.routes.known(host) is None
    assert (await api.routes.find(host)).port == 8083


async def test_a_removed_alias_leads_nowhere_at_once(api: Api) -> None:
    await opened(api, workspace_id="w")
    await alias(api, "shop", "w")
    await api.routes.find(f"shop.{DOMAIN}")
    await api.json("/mags-url-aliases/shop", method="DELETE")
    await none_at(api, f"shop.{DOMAIN}")


async def test_a_proxy_target_follows_the_job_that_had_its_address(api: Api) -> None:
    job = await opened(api, workspace_id="w")
    body = {"ipv6_address": address_of(job.vm_id), "port": 7000, "subdomain": "target"}
    await api.json("/proxy-targets", 201, "POST", json=body)
    route = await api.routes.find(f"target.{DOMAIN}")
    assert (route.job.seq, route.port, route.access.kind) == (job.seq, 7000, "public")
    await stop(api, job)
    assert "has ended" in await none_at(api, f"target.{DOMAIN}")


async def test_memory_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.gateways.routes.REMEMBERED", 2)
    await opened(api, workspace_id="w")
    for name in ("one", "two", "three"):
        await alias(api, name, "w")
        await api.routes.find(f"{name}.{DOMAIN}")
    known = [name for name in ("one", "two", "three") if api.routes.known(f"{name}.{DOMAIN}")]
    assert known == ["two", "three"]


async def test_a_job_whose_wake_is_refused_is_said_to_have_ended(api: Api) -> None:
    job = await opened(api)
    route = await api.routes.find(f"{job.subdomain}.{DOMAIN}")
    await stop(api, job)
    with pytest.raises(Conflict):
        await api.routes.awake(route, 5)


async def test_looking_a_prefix_up_reads_an_index(api: Api) -> None:
    from sqlalchemy import select, text
    from sqlalchemy.dialects import sqlite

    from roost.db.schema import jobs as table
    from roost.gateways.routes import _begins  # pyright: ignore[reportPrivateUsage]

    query = select(table.c.seq).where(_begins("01234567-89a"))
    compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    (plan,) = await api.database.read(text(f"EXPLAIN QUERY PLAN {compiled}"))
    assert "SEARCH jobs USING INDEX" in plan[3] and "request_id>" in plan[3]
