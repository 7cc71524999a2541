"""Ids that are given by how they begin, as people type them."""

import re
from typing import Any

from sqlalchemy import ColumnElement, and_, select

from roost.db.database import Database
from roost.errors import Conflict

SHOWN = 4  # of those that begin alike
# short words of these letters alone, like `cafe`, are more likely names
_BEGINNING = re.compile(r"(?=.*[0-9]|.{8})[0-9a-f][0-9a-f-]{3,}")


async def whole_id(database: Database, column: ColumnElement[Any], mine: ColumnElement[bool], given: str) -> str | None:
    """The one id of `column`, where `mine` holds, that begins as `given` does, and is longer; None: there is none.

    At least 4 characters, one of them a digit unless they are 8. Raises Conflict when several begin so.
    """
    if not _BEGINNING.fullmatch(given):
        return None
    begins = and_(column > given, column < given + "g")  # by its index, which LIKE would not use
    rows = await database.read(select(column).where(mine, begins).order_by(column).limit(SHOWN))
    if len(rows) > 1:
        ids = ", ".join(row[0] for row in rows)
        raise Conflict(f"several ids begin with {given!r}: {ids}{', …' if len(rows) == SHOWN else ''}; give more of it")
    return rows[0][0] if rows else None
