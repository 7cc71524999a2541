"""Who one is: the account, its members, limits and API tokens."""

from roost.sdk import wire
from roost.sdk.results import (
    AccountList,
    AccountRecord,
    Declined,
    Health,
    InvitationList,
    InvitedList,
    MadeInvitation,
    MadeToken,
    MemberList,
    MembersDone,
    QuotaState,
    Revoked,
    TokenList,
    Who,
)
from roost.sdk.wire import Call, given, quoted


def whoami() -> Call[Who]:
    """Show whom the token stands for, and what it may do."""
    return (yield from wire.call("GET", "/whoami"))


def health() -> Call[Health]:
    """Show whether the server is alive, and its node."""
    return (yield from wire.call("GET", "/health"))


def list_tokens() -> Call[TokenList]:
    """List API tokens, without their secrets."""
    return (yield from wire.call("GET", "/tokens"))


def create_token(name: str, *, scope: str | None = None, expires_in: int | None = None) -> Call[MadeToken]:
    """Make an API token, of scope read, run or admin. `token` of the answer is shown this once."""
    return (yield from wire.call("POST", "/tokens", {"name": name} | given(scope=scope, expires_in=expires_in)))


def revoke_token(token_id: str) -> Call[Revoked]:
    """Revoke an API token at once."""
    return (yield from wire.call("DELETE", "/tokens" + quoted(token_id)))


def quotas() -> Call[QuotaState]:
    """Show what the account may use, and uses."""
    return (yield from wire.call("GET", "/quotas"))


def list_accounts() -> Call[AccountList]:
    """List the accounts that one may speak for."""
    return (yield from wire.call("GET", "/accounts"))


def list_members() -> Call[MemberList]:
    """List the account's members."""
    return (yield from wire.call("GET", "/members"))


def add_member(user: str, *, role: str | None = None) -> Call[MadeInvitation]:
    """Invite a user to the account, who is in it once they accept."""
    return (yield from wire.call("POST", "/members", {"user": user} | given(role=role)))


def change_member(user: str, role: str) -> Call[MembersDone]:
    """Change a member's role."""
    return (yield from wire.call("PATCH", "/members" + quoted(user), {"role": role}, repeatable=True))


def remove_member(user: str) -> Call[MembersDone]:
    """Remove a member, and what speaks for them here."""
    return (yield from wire.call("DELETE", "/members" + quoted(user)))


def list_invited() -> Call[InvitedList]:
    """List whom the account has invited, who have not answered yet."""
    return (yield from wire.call("GET", "/invited"))


def withdraw_invitation(user: str) -> Call[MembersDone]:
    """Withdraw an invitation to the account."""
    return (yield from wire.call("DELETE", "/invited" + quoted(user)))


def list_invitations() -> Call[InvitationList]:
    """List the accounts that one is invited to; for tokens of `roost login`, as the next two."""
    return (yield from wire.call("GET", "/invitations"))


def accept_invitation(account: str) -> Call[AccountRecord]:
    """Accept an invitation to an account."""
    return (yield from wire.call("POST", "/invitations" + quoted(account) + "/accept"))


def decline_invitation(account: str) -> Call[Declined]:
    """Decline an invitation to an account."""
    return (yield from wire.call("DELETE", "/invitations" + quoted(account)))
