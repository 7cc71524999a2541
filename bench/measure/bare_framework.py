"""One constant answer of the size of a job's status, by the server and framework that Roost's API is made of."""

import sys

import msgspec
import uvicorn
from litestar import Litestar, get


class Status(msgspec.Struct):
    request_id: str = "c05e4595-a6ea-404f-8f12-f835052fae2b"
    status: str = "completed"
    name: str = "job"
    vm_id: str = "84fa9262"
    exit_code: int = 0
    created_at: str = "2026-01-01T00:00:00.000000000Z"
    started_at: str = "2026-01-01T00:00:00.000000000Z"
    completed_at: str = "2026-01-01T00:00:00.000000000Z"


@get("/status")
async def status() -> Status:
    return Status()


if __name__ == "__main__":
    app = Litestar([status], openapi_config=None, logging_config=None)
    uvicorn.run(
        app, host=sys.argv[1], port=int(sys.argv[2]), loop="uvloop", http="httptools", log_config=None, access_log=False
    )
