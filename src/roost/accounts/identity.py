"""The parts of accounts that know people: made in one place, so that a change is seen by all who remember callers."""

from dataclasses import dataclass

from roost.accounts.members import Members
from roost.accounts.passwords import Passwords
from roost.accounts.sessions import Sessions
from roost.accounts.throttle import Throttle
from roost.accounts.tokens import Tokens
from roost.accounts.users import Users
from roost.db.database import Database
from roost.db.secret import Secret
from roost.settings import ServeSettings


@dataclass(frozen=True)
class Identity:
    sessions: Sessions
    users: Users
    members: Members
    throttle: Throttle


def identity_of(database: Database, tokens: Tokens, secret: Secret, settings: ServeSettings) -> Identity:
    sessions, throttle = Sessions(database), Throttle()

    def changed() -> None:
        tokens.forget()
        sessions.forget()

    users = Users(database, Passwords(), throttle, changed)
    return Identity(sessions, users, Members(database, changed), throttle)
