"""What callers may do: scopes of tokens, roles of members, and which of the one a role comes to.

A scope includes those before it. What a token may do is the less of its own scope and its maker's role.
"""

from typing import Literal, TypeAlias

from roost.errors import Invalid

Scope: TypeAlias = Literal["read", "run", "admin"]
Role: TypeAlias = Literal["owner", "member", "viewer"]

SCOPES: tuple[Scope, ...] = ("read", "run", "admin")
ROLES: tuple[Role, ...] = ("owner", "member", "viewer")
OF_ROLE: dict[Role, Scope] = {"viewer": "read", "member": "run", "owner": "admin"}


def includes(scope: Scope, wanted: Scope) -> bool:
    return SCOPES.index(scope) >= SCOPES.index(wanted)


def lesser(one: Scope, other: Scope) -> Scope:
    return other if includes(one, other) else one


def scope(text: str) -> Scope:
    """Raises Invalid."""
    if text not in SCOPES:
        raise Invalid(f"scope: {text[:40]!r} is none of {', '.join(SCOPES)}")
    return text


def role(text: str) -> Role:
    """Raises Invalid."""
    if text not in ROLES:
        raise Invalid(f"role: {text[:40]!r} is none of {', '.join(ROLES)}")
    return text
