"""Alembic's entry: applies the versions beside it to one SQLite file, all of them or none.

The driver is told to leave transactions alone, because by itself it commits before each DDL statement and a crash
would leave half a schema.
"""

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, event

from roost.db.schema import metadata


def apply() -> None:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")

    @event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


apply()
