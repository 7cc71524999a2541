"""The parts of accounts that know people: made in one place, so that a change is seen by all who remember callers."""

import os
from dataclasses import dataclass

from roost.accounts.devices import Devices
from roost.accounts.invitations import Invitations
from roost.accounts.members import Members
from roost.accounts.oidc import Oidc, provider_of
from roost.accounts.passwords import Passwords
from roost.accounts.sessions import Sessions
from roost.accounts.throttle import Throttle
from roost.accounts.tokens import Tokens
from roost.accounts.users import Users
from roost.db.database import Database
from roost.db.secret import Secret
from roost.settings import OIDC_SECRET_VARIABLE, ServeSettings


@dataclass(frozen=True)
class Identity:
    sessions: Sessions
    users: Users
    members: Members
    invitations: Invitations
    devices: Devices
    oidc: Oidc | None  # None: there is no OpenID provider


def identity_of(
    database: Database, tokens: Tokens, secret: Secret, settings: ServeSettings, passwords: Passwords | None = None
) -> Identity:
    sessions, throttle = Sessions(database), Throttle()

    def changed() -> None:
        tokens.forget()
        sessions.forget()

    users = Users(database, passwords or Passwords(), throttle, changed)
    provider = provider_of(settings, os.environ.get(OIDC_SECRET_VARIABLE))
    oidc = Oidc(provider, secret, users) if provider else None
    members, invitations = Members(database, changed), Invitations(database, changed)
    return Identity(sessions, users, members, invitations, Devices(database, throttle), oidc)
