"""Query parameters that a call does not have are refused: a filter that is misspelt must not list everything."""

import difflib
from collections.abc import Iterable
from typing import Any

from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute

from roost.errors import Invalid

SHOWN = 80  # characters of the caller's own text in an error
ANY = "any"  # `opt={"query": ANY}`: what others append to an address of ours


def remember(app: Litestar) -> None:
    """What each call has, by handler: looked up once, when the application is built."""
    app.state.queries = {
        handler.handler_id: tuple(sorted(one.field_alias for one in model.expected_query_params))
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler, model in route.route_handler_map.values()
    }


def require_known_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A guard. Raises Invalid."""
    if not connection.scope["query_string"] or handler.opt.get("query") == ANY:
        return
    name_of_it = connection.route_handler.handler_id  # `handler` is a copy, which has another
    known: tuple[str, ...] | None = connection.app.state.queries.get(name_of_it, handler.opt.get("query"))
    if known is None:
        return
    require_known(connection.query_params, known)


def require_known(names: Iterable[str], known: tuple[str, ...]) -> None:
    """Raises Invalid."""
    for name in names:
        if name not in known:
            raise Invalid(_unknown(name, known))


def _unknown(name: str, known: tuple[str, ...]) -> str:
    said = f"unknown query parameter {name[:SHOWN]!r}"
    if close := difflib.get_close_matches(name[:SHOWN], known, n=1):
        return f"{said}; did you mean {close[0]!r}?"
    return f"{said}; known are {', '.join(known)}" if known else f"{said}; this call takes none"
