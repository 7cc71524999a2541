"""What the server hands out to everybody: guides, `llms.txt`, the skill for coding agents, `mags.sh` and `mags`."""

from litestar import MediaType, Response, get

from roost import handouts
from roost.errors import NotFound
from roost.handouts.client import NAMES, checksum, client

MARKDOWN = "text/markdown"
SUM = ".sha256"


@get("/llms.txt", include_in_schema=False, sync_to_thread=True)
def llms() -> Response[str]:
    return Response(handouts.llms(), media_type=MediaType.TEXT)


@get("/mags.md", include_in_schema=False, sync_to_thread=True)
def skill() -> Response[str]:
    return Response(handouts.SKILL.read_text(), media_type=MARKDOWN)


@get("/mags.sh", include_in_schema=False, sync_to_thread=True)
def shell() -> Response[str]:
    return Response(handouts.SHELL.read_text(), media_type=MediaType.TEXT)


@get("/mags/latest/{name:str}", include_in_schema=False, sync_to_thread=True)
def program(name: str) -> Response[bytes]:
    """The client, where the documents' downloads are."""
    wanted = name.removesuffix(SUM)
    if wanted not in NAMES:
        raise NotFound(f"there is no such file; there are {', '.join(NAMES)}, and {SUM} of each")
    if name.endswith(SUM):
        return Response(checksum(wanted).encode(), media_type=MediaType.TEXT)
    return Response(client(), media_type="application/octet-stream")


@get("/docs/{name:str}", include_in_schema=False, sync_to_thread=True)
def guide(name: str) -> Response[str]:
    text = handouts.guide(name)
    if text is None:
        raise NotFound("there is no such guide; /llms.txt lists them")
    return Response(text, media_type=MARKDOWN)
