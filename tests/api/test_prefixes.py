"""Ids by how they begin, as far as only one does."""

from pathlib import Path

import pytest

from roost.db.database import Database
from roost.db.prefixes import whole_id
from roost.db.schema import accounts, revisions, workspaces
from roost.errors import Conflict
from tests.jobs.fresh import fresh_database
from tests.workspaces.conftest import Api

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
MINE = revisions.c.workspace_id == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("1a2b", "1a2b000000000000"), ("1a2b000000000000", None), ("cafe", None), ("cafebabe", "cafebabe00000000"),
        ("1a2", None), ("1A2B", None), ("2f00", None), ("9%", None), ("", None), ("0f%_", None),
    ],
)  # fmt: skip
async def test_a_beginning_that_one_id_has_is_enough(tmp_path: Path, given: str, found: str | None) -> None:
    fresh_database(tmp_path / "roost.db")
    async with Database(tmp_path / "roost.db") as database:
        row = {"size": 0, "stored": False, "stored_bytes": 0, "image": "x", "created_ns": 1, "periodic": False}
        await database.write(
            accounts.insert().values(id=1, name="a", created_ns=1),
            *(
                workspaces.insert().values(id=n, account_id=1, name=f"w{n}", persistent=False, created_ns=1, used_ns=1)
                for n in (1, 2)
            ),
            *(
                revisions.insert().values(id=id, workspace_id=1, **row)
                for id in ("1a2b000000000000", "cafebabe00000000", "77aa000000000000", "77aab00000000000")
            ),
            revisions.insert().values(id="2f00000000000000", workspace_id=2, **row),  # somebody else's
        )
        assert await whole_id(database, revisions.c.id, MINE, given) == found
        with pytest.raises(Conflict, match="77aa000000000000, 77aab00000000000; give more of it"):
            await whole_id(database, revisions.c.id, MINE, "77aa")


async def test_every_call_that_takes_an_id_takes_its_beginning(api: Api) -> None:
    job = (await api.json("/mags-jobs", 202, "POST", json={"script": "x"}))["request_id"]
    cron = {"name": "c", "cron_expression": "0 0 1 1 *", "script": "x"}
    hook = {"url": "https://example.com/x"}
    made = {
        "/mags-jobs": job,
        "/mags-cron": (await api.json("/mags-cron", 201, "POST", json=cron))["id"],
        "/webhooks": (await api.json("/webhooks", 201, "POST", json=hook))["id"],
    }
    for path, id in made.items():
        shown = await api.json(f"{path}/{str(id)[:13]}")
        assert id in (shown.get("id"), shown.get("request_id")), path
