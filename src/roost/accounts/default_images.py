"""The image of jobs that name none: the installation's (`--default-image`), or what an account chose instead."""

from sqlalchemy import select, update

from roost.db.database import Database
from roost.db.schema import accounts


class DefaultImages:
    """Answers from memory: the one control plane that there is makes every change."""

    def __init__(self, database: Database, installation: str) -> None:
        self.installation = installation
        self._database = database
        self._chosen: dict[int, str] = {}

    async def load(self) -> None:
        query = select(accounts.c.id, accounts.c.default_image).where(accounts.c.default_image.is_not(None))
        self._chosen = {row.id: row.default_image for row in await self._database.read(query)}

    def of(self, account_id: int) -> str:
        return self._chosen.get(account_id, self.installation)

    def chosen(self, account_id: int) -> str | None:
        return self._chosen.get(account_id)

    async def choose(self, account_id: int, name: str | None) -> None:
        """None: the installation's. Durable on return. Raises StateUnwritable."""
        await self._database.write(update(accounts).where(accounts.c.id == account_id).values(default_image=name))
        if name is None:
            self._chosen.pop(account_id, None)
        else:
            self._chosen[account_id] = name

    def uses(self, name: str) -> str | None:
        """For whom it is the default, in words."""
        if name == self.installation:
            return "it is the default image of this Roost (`roost up --default-image`)"
        count = sum(1 for chosen in self._chosen.values() if chosen == name)
        return f"it is the default image of {count} account(s); see `roost image default --unset`" if count else None
