"""Quotas hold for every way in, however many race, and say what to do."""

import asyncio

import httpx
import pytest
from sqlalchemy import insert

from roost.accounts.quotas import Limits, Quotas, defaults
from roost.api.submission import Submission, order_of
from roost.db.schema import files
from roost.errors import Invalid
from roost.sandboxes.placement import Machine
from tests.jobs.memory_node import until
from tests.workspaces.conftest import JOBS, Api

SCRIPT = {"script": "x", "type": "inline"}
OWN = "/accounts/1/quotas"
NONE = dict.fromkeys(Limits.__struct_fields__)


async def limit(api: Api, account: int = 1, **limits: object) -> None:
    await api.json(f"/accounts/{account}/quotas", 200, "PUT", json=limits)


async def submit(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post(JOBS, json={**SCRIPT, **fields})


async def test_without_quotas_everything_goes_and_use_is_shown(api: Api) -> None:
    await api.run(memory_mb=100, disk_gb=3, vcpus=1)
    shown = await api.json("/quotas")
    assert shown["limits"] == NONE
    assert shown["used"] == {"running": 1, "vcpus": 1.0, "memory_mb": 100, "disk_gb": 3, "stored_bytes": 0}


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        ({"running": 2}, {}),
        ({"vcpus": 1}, {"vcpus": 0.5}),
        ({"memory_mb": 250}, {"memory_mb": 100}),
        ({"disk_gb": 5}, {"disk_gb": 2}),
    ],
)
async def test_what_does_not_fit_now_is_refused_until_something_has_ended(
    api: Api, limits: dict[str, object], fields: dict[str, object]
) -> None:
    await limit(api, **limits)
    vm_id = await api.run(**fields)
    await api.run(**fields)
    refused = await submit(api.client, **fields)
    assert refused.status_code == 429
    (name,) = limits
    assert name in refused.json()["error"] and "stop one" in refused.json()["error"]
    api.node.end(vm_id)

    async def fits() -> bool:
        return (await submit(api.client, **fields)).status_code == 202

    await until(fits)


async def test_what_could_never_fit_is_refused_as_wrong(api: Api) -> None:
    await limit(api, memory_mb=200)
    refused = await submit(api.client, memory_mb=300)
    assert (refused.status_code, "ask for less" in refused.json()["error"]) == (400, True)


async def test_a_hundred_submissions_at_once_do_not_exceed_it(api: Api) -> None:
    await limit(api, running=7)
    answers = await asyncio.gather(*(submit(api.client, memory_mb=50) for _ in range(100)))
    assert [one.status_code for one in answers].count(202) == 7
    assert (await api.json("/quotas"))["used"]["running"] == 7


async def test_sleepers_do_not_count_and_a_wake_must_fit(api: Api) -> None:
    await limit(api, running=1)
    await api.run(name="sleeper", persistent=True)
    await api.json(f"{JOBS}/sleeper/sleep", 200, "POST", json={"depth": "frozen"})
    await api.run(name="other", persistent=True)
    refused = await api.client.post(f"{JOBS}/sleeper/wake")
    assert refused.status_code == 429 and "running" in refused.json()["error"]
    await api.json(f"{JOBS}/other/sleep", 200, "POST", json={"depth": "cold"})
    await api.json(f"{JOBS}/sleeper/wake", 200, "POST")
    assert (await api.client.post(f"{JOBS}/other/wake")).status_code == 429


async def test_whatever_submits_is_held_to_it(api: Api) -> None:
    await limit(api, running=0)
    assert (await api.client.post("/jobs", json={"script": "true"})).status_code == 400
    with pytest.raises(Invalid, match="quota"):
        await api.live.submit(1, order_of(Submission(script="true"), Machine(2, 4000), "standard"))
    assert (await api.json("/jobs"))["total"] == 0


async def test_who_stores_as_much_as_may_be_stored_stores_no_more(api: Api) -> None:
    upload = {"id": "f", "account_id": 1, "name": "f", "size": 500, "created_ns": 1, "expires_ns": 2**62}
    await api.database.write(insert(files).values(**upload))
    await limit(api, stored_bytes=500)
    refused = await submit(api.client, workspace_id="w")
    assert refused.status_code == 429 and "stored_bytes" in refused.json()["error"]
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--\r\n'
    refused = await api.client.post("/mags-files", content=form, headers=boundary)
    assert refused.status_code == 429, refused.text
    assert (await submit(api.client)).status_code == 202
    assert (await api.json("/quotas"))["used"]["stored_bytes"] == 500


async def test_requests_beyond_the_rate_are_told_when_to_come_back(api: Api, stranger: httpx.AsyncClient) -> None:
    await limit(api, 77, requests_per_second=3)
    answers = [await stranger.get(JOBS) for _ in range(40)]
    assert [one.status_code for one in answers][:3] == [200, 200, 200]
    refused = next(one for one in answers if one.status_code == 429)
    assert refused.headers["Retry-After"] == "1" and "3 requests a second" in refused.json()["error"]
    assert (await api.client.get(JOBS)).status_code == 200
    await limit(api, 77)
    assert (await stranger.get(JOBS)).status_code == 200


async def test_one_accounts_quota_is_not_anothers(api: Api, stranger: httpx.AsyncClient) -> None:
    await limit(api, running=0)
    assert (await submit(stranger)).status_code == 202
    assert (await stranger.get("/quotas")).json()["used"]["running"] == 1


async def test_only_the_first_account_sets_quotas(api: Api, stranger: httpx.AsyncClient) -> None:
    assert (await stranger.put("/accounts/77/quotas", json={"running": 1000})).status_code == 403
    assert (await stranger.get(OWN)).status_code == 403
    await api.json("/accounts/nobody/quotas", 404, "PUT", json={})
    assert (await api.json("/accounts/stranger/quotas"))["account_id"] == 77
    await api.json(OWN, 400, "PUT", json={"running": -1})
    await api.json(OWN, 400, "PUT", json={"nonsense": 1})


@pytest.mark.usefixtures("stranger")
async def test_the_installations_defaults_hold_for_all_but_the_first_account(api: Api) -> None:
    quotas = Quotas(api.database, defaults(["running=5", "requests-per-second=10"]))
    assert await quotas.of(1) == Limits()
    assert await quotas.of(77) == Limits(running=5, requests_per_second=10)
    await quotas.set(77, Limits(running=9))
    assert await quotas.of(77) == Limits(running=9, requests_per_second=10)


@pytest.mark.parametrize("word", ["running", "running=many", "nonsense=3", "running=-1"])
def test_defaults_that_mean_nothing_are_refused(word: str) -> None:
    with pytest.raises(Invalid, match="--default-quota"):
        defaults([word])
