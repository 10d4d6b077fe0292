"""Who calls: the one dependency that says which tenant a call acts for and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from gateway.problems import Kind, Problem
from schemas.request import DEFAULT_TENANT

Scope = Literal["submit", "read", "cancel", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel", "admin"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and the scopes of its token."""

    tenant: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raises: Problem 403 when the token lacks this scope."""
        if scope not in self.scopes:
            raise Problem(Kind.FORBIDDEN, f"this needs the scope {scope}")


_EVERYONE = Caller(DEFAULT_TENANT, ALL_SCOPES)


async def caller(request: Request) -> Caller:
    """Return who calls. With auth `none` everyone is admin of tenant `default` and `Authorization` is ignored."""
    return _EVERYONE
