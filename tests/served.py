"""An application behind a socket, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from roost.listening import bound
from roost.serve import Server

LEAVING = 1  # seconds that clients have; one that a failed test left is not waited for


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[str]:
    """Its URL. `options` are uvicorn's."""
    with bound("127.0.0.1", 0, "--listen") as listener:
        config = uvicorn.Config(
            app, **({"lifespan": "off"} | options), log_config=None, timeout_graceful_shutdown=LEAVING
        )
        server = Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
