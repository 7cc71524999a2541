"""An agent: the official client, over either transport."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from roost.mcp.api import session
from roost.mcp.server import http_app
from tests.served import served

TRANSPORTS = ("stdio", "http")


@dataclass
class Agent:
    client: Client

    async def __call__(self, tool: str, progress: Any = None, **arguments: Any) -> Any:
        """What the tool answers."""
        result = await self.client.call_tool(tool, arguments, progress_callback=progress)
        assert not result.is_error, result.content
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error, result
        return result.content[0].text  # type: ignore[union-attr]


@asynccontextmanager
async def mcp_server(api_url: str, *names: str) -> AsyncIterator[str]:
    """Over HTTP; its URL."""
    async with session() as connections, served(http_app(connections, api_url, names), lifespan="on") as url:
        yield f"{url}/mcp"


@asynccontextmanager
async def http_agent(url: str, token: str) -> AsyncIterator[Agent]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield Agent(client)


@asynccontextmanager
async def stdio_agent(api_url: str, token: str) -> AsyncIterator[Agent]:
    program = StdioServerParameters(
        command=sys.executable, args=["-m", "roost.cli", "mcp"],
        env={"MAGS_API_URL": api_url, "MAGS_API_TOKEN": token, "PATH": os.environ["PATH"]},
    )  # fmt: skip
    async with Client(program) as client:
        yield Agent(client)


@asynccontextmanager
async def agent(transport: str, api_url: str, token: str) -> AsyncIterator[Agent]:
    if transport == "stdio":
        async with stdio_agent(api_url, token) as one:
            yield one
    else:
        async with mcp_server(api_url) as url, http_agent(url, token) as one:
            yield one
