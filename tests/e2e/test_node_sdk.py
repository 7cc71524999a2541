"""The Node SDK against `roost up`: sdk/node/test/sandbox.test.js."""

from tests.e2e.instance import RunningRoost
from tests.e2e.test_mags_program import DEVTOOLS
from tests.sdk.node import run_tests


async def test_the_node_sdk_runs_enters_reaches_browses_and_schedules(roost: RunningRoost) -> None:
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    await run_tests("sandbox.test.js", GATEWAY=roost.gateway, DEVTOOLS=DEVTOOLS, **access)
