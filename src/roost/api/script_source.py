"""A script that is named by its URL: fetched when the job is submitted, by the unprivileged control plane.

So what is wrong with it is told at once, and a restart runs the same text. The node would fetch as root, and a sandbox
could not tell a script that is too large from one that fails.
"""

import asyncio

import aiohttp
import yarl

from roost.api.submission import MAX_SCRIPT
from roost.errors import Invalid, Refused, TooLarge
from roost.outward import Allowed, Refusal, check_url

SECONDS = 10.0  # for everything
REDIRECTS = 5


async def fetched(url: str, may: Allowed) -> str:
    """The text behind it. Raises Invalid for an address that may not be used, Refused, TooLarge."""
    target = check_url("script", url, may)
    try:
        async with asyncio.timeout(SECONDS):
            content = await _follow(target, may)
    except TimeoutError:
        raise Refused(f"script: {target.host} did not send it within {SECONDS:g} s; send the text itself") from None
    except aiohttp.ClientError as error:
        raise _unreached(target, error) from None
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Invalid(f"script: what {target.host} sent is not UTF-8 text") from None


async def _follow(target: yarl.URL, may: Allowed) -> bytes:
    """Each step is checked as the first was."""
    for _ in range(REDIRECTS + 1):
        free = may.name(target.host or "")
        connector = aiohttp.TCPConnector() if free else aiohttp.TCPConnector(socket_factory=may.socket)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            headers = {"Accept": "*/*", "User-Agent": "roost"}
            async with session.get(target, allow_redirects=False, headers=headers) as answer:
                place = answer.headers.get("Location")
                if answer.status not in (301, 302, 303, 307, 308) or place is None:
                    return await _body(target, answer)
        target = check_url("script", str(target.join(yarl.URL(place))), may)
    raise Refused(f"script: more than {REDIRECTS} redirects, at last to {target.host}; give the final URL")


async def _body(target: yarl.URL, answer: aiohttp.ClientResponse) -> bytes:
    if answer.status != 200:
        raise Refused(f"script: {target.host} answered {answer.status}; check the URL")
    content = bytearray()
    async for chunk in answer.content.iter_chunked(64 * 1024):
        content += chunk
        if len(content) > MAX_SCRIPT:
            raise TooLarge(f"script: what {target.host} sends is larger than {MAX_SCRIPT} bytes (1 MiB)")
    return bytes(content)


def _unreached(target: yarl.URL, error: aiohttp.ClientError) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Refusal):
            return Invalid(f"script: {target.host} has the address {cause.strerror}")
        cause = cause.__cause__ or cause.__context__
    return Refused(f"script: {target.host} could not be reached ({type(error).__name__}); check the URL")
