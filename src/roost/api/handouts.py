"""Texts that the server hands out to everybody: guides, `llms.txt`, the skill for coding agents and `mags.sh`."""

from litestar import MediaType, Response, get

from roost import handouts
from roost.errors import NotFound

MARKDOWN = "text/markdown"


@get("/llms.txt", include_in_schema=False, sync_to_thread=True)
def llms() -> Response[str]:
    return Response(handouts.llms(), media_type=MediaType.TEXT)


@get("/mags.md", include_in_schema=False, sync_to_thread=True)
def skill() -> Response[str]:
    return Response(handouts.SKILL.read_text(), media_type=MARKDOWN)


@get("/mags.sh", include_in_schema=False, sync_to_thread=True)
def shell() -> Response[str]:
    return Response(handouts.SHELL.read_text(), media_type=MediaType.TEXT)


@get("/docs/{name:str}", include_in_schema=False, sync_to_thread=True)
def guide(name: str) -> Response[str]:
    text = handouts.guide(name)
    if text is None:
        raise NotFound("there is no such guide; /llms.txt lists them")
    return Response(text, media_type=MARKDOWN)
