"""What belongs to a user, a project or a domain and is kept in versions: whose it is, and who sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.principal import Principal, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose: exactly one of the three."""

    user_id: UUID | None = None
    project_id: UUID | None = None
    domain: str | None = None

    @property
    def values(self) -> tuple[UUID | None, UUID | None, str | None]:
        """$1 to $3 of `OF_SCOPE`."""
        return self.user_id, self.project_id, self.domain


OF_SCOPE: Final = """
    user_id IS NOT DISTINCT FROM $1 AND project_id IS NOT DISTINCT FROM $2 AND domain IS NOT DISTINCT FROM $3
"""
#: Of a row `t`, with its user `u` and project `p`.
OWNER_COLUMNS: Final = """
    CASE WHEN t.user_id IS NOT NULL THEN 'user' WHEN t.project_id IS NOT NULL THEN 'project' ELSE 'domain' END AS scope,
    coalesce(u.email, p.name, t.domain) AS of, coalesce(u.domain, p.domain, t.domain) AS owner_domain
"""
OWNER_JOINS: Final = "LEFT JOIN users u ON u.id = t.user_id LEFT JOIN projects p ON p.id = t.project_id"
#: $2 who looks, $3 of which domain, $4 whether at all of it, $5 whether at everything
VISIBLE: Final = """
    ($5 OR t.user_id = $2 OR t.domain = $3
        OR t.project_id IN (SELECT m.project_id FROM project_members m WHERE m.user_id = $2)
        OR $4 AND coalesce(u.domain, p.domain) = $3)
"""
#: $6 a name; another's is named by its id.
BY_NAME: Final = "t.name = $6 AND (t.user_id IS NULL OR t.user_id = $2)"
#: The viewer's own first, then those of projects, then the domain's.
NEAREST_FIRST: Final = "t.user_id IS NOT DISTINCT FROM $2 DESC, t.project_id IS NULL, t.domain IS NULL, t.created_at"


def seen_by(viewer: Principal) -> tuple[object, ...]:
    """$2 to $5."""
    return viewer.user_id, viewer.domain, viewer.role is Role.DOMAIN_ADMIN, viewer.sees_all
