"""Volumes: whose they are, who may use them, and which sessions have them mounted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from domain.errors import (
    NoVolumeStore,
    ShareNotFound,
    VolumeAmbiguous,
    VolumeMounted,
    VolumeNameTaken,
    VolumeNotFound,
    VolumeNotReady,
    VolumeReadOnly,
)
from domain.ids import AgentId, SessionId
from domain.names import as_uuid
from domain.session import FINAL
from domain.volumes import Share, Volume
from repositories.database import Connection
from repositories.kernels import Intent
from repositories.limits import check_owned

_FINAL: Final = ", ".join(f"'{status}'" for status in sorted(FINAL))


def _access(user: str) -> str:
    """What shares give to a user: `a.read_only` is NULL when none does."""
    return f"""
        LEFT JOIN LATERAL (
            SELECT bool_and(sh.read_only) AS read_only FROM volume_shares sh WHERE sh.volume_id = v.id AND (
                sh.user_id = {user} OR
                sh.project_id IN (SELECT pm.project_id FROM project_members pm WHERE pm.user_id = {user}))
        ) a ON true
    """


_SELECT: Final = f"""
    SELECT v.id, v.name, v.user_id, u.email AS owner, v.store, v.status, v.quota_bytes, v.quota_files, v.uid, v.gid,
        v.user_id = $1 AS owned, v.created_at,
        CASE WHEN v.user_id = $1 THEN false ELSE coalesce(a.read_only, $2::boolean IS NOT TRUE) END AS read_only,
        (SELECT count(DISTINCT m.session_id) FROM volume_mounts m JOIN sessions s ON s.id = m.session_id
         WHERE m.volume_id = v.id AND s.status NOT IN ({_FINAL})) AS sessions,
        (SELECT jsonb_agg(jsonb_build_array(su.email, sp.name, sh.read_only) ORDER BY su.email, sp.name)
         FROM volume_shares sh LEFT JOIN users su ON su.id = sh.user_id LEFT JOIN projects sp ON sp.id = sh.project_id
         WHERE sh.volume_id = v.id) AS shares
    FROM volumes v JOIN users u ON u.id = v.user_id {_access("$1")}
    WHERE v.status <> 'removing' AND (v.user_id = $1 OR a.read_only IS NOT NULL OR $2 IS NOT NULL)
"""


def _volume(row: Mapping[str, Any]) -> Volume:
    values = dict(row)
    shares = tuple(Share(user=user, project=project, read_only=ro) for user, project, ro in values.pop("shares") or [])
    return Volume(**values, shares=shares if row["owned"] or not row["read_only"] else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A mount that has been resolved."""

    volume: Volume
    path: str
    subpath: str
    read_only: bool

    def to_spec(self) -> dict[str, Any]:
        """As `agent.wire.KernelSpec.mounts` has it."""
        v = self.volume
        return _spec(v.id, v.name, v.store, v.uid, v.gid, self.path, self.subpath, self.read_only, None)


def _spec(
    volume: UUID, name: str, store: str, uid: int, gid: int, path: str, subpath: str, read_only: bool, why: str | None
) -> dict[str, Any]:
    return {
        "volume": str(volume),
        "name": name,
        "store": store,
        "uid": uid,
        "gid": gid,
        "path": path,
        "subpath": subpath,
        "read_only": read_only,
        "refused": why,
    }


class VolumeRepository:
    """As one user may see them. `sees_all`: administrators reach everybody's by id; True may write, False may look."""

    def __init__(
        self, connection: Connection, viewer: UUID, *, sees_all: bool | None, now: datetime, domain: str
    ) -> None:
        self._connection = connection
        self._viewer = viewer
        self._sees_all = sees_all
        self._now = now
        self._domain = domain

    async def get(self, name_or_id: str | UUID) -> Volume:
        """Own ones go before those that are shared. Raises VolumeNotFound, VolumeAmbiguous."""
        volume_id = name_or_id if isinstance(name_or_id, UUID) else as_uuid(name_or_id)
        if volume_id is not None:
            rows = await self._connection.fetch(f"{_SELECT} AND v.id = $3", self._viewer, self._sees_all, volume_id)
        else:
            rows = await self._connection.fetch(f"{_SELECT} AND v.name = $3", self._viewer, None, str(name_or_id))
        found = [row for row in rows if row["owned"]] or rows
        if not found:
            raise VolumeNotFound(volume=str(name_or_id))
        if len(found) > 1:
            owners = ", ".join(f"{row['owner']}: {row['id']}" for row in found)
            raise VolumeAmbiguous(
                f"Several volumes named '{name_or_id}' are shared with you ({owners}); name it by its id."
            )
        return _volume(found[0])

    async def owned(self, name_or_id: str) -> Volume:
        """To be changed: locked, and the asker's own, or an administrator's to change."""
        volume = await self.get(name_or_id)
        await self._connection.execute("SELECT FROM volumes WHERE id = $1 FOR UPDATE", volume.id)
        volume = await self.get(volume.id)
        if not volume.owned and not self._sees_all:
            raise VolumeNotFound(
                f"The volume '{volume.name}' belongs to {volume.owner}, who alone can change it.", volume=volume.name
            )
        return volume

    async def all(self, *, everybodys: bool, limit: int, after: tuple[datetime, UUID] | None) -> list[Volume]:
        at, volume_id = after or (None, None)
        rows = await self._connection.fetch(
            f"""
            {_SELECT} AND ($3::timestamptz IS NULL OR (v.created_at, v.id) > ($3, $4::uuid))
            ORDER BY v.created_at, v.id LIMIT $5
            """,
            self._viewer,
            self._sees_all if everybodys else None,
            at,
            volume_id,
            limit,
        )
        return [_volume(row) for row in rows]

    async def create(
        self,
        volume_id: UUID,
        name: str,
        *,
        store: str,
        quota_bytes: int | None,
        quota_files: int | None,
        uid: int,
        gid: int,
        task_id: UUID | None = None,
    ) -> Volume:
        """Raises VolumeNameTaken, or QuotaExceeded."""
        # One at a time for a user, so that the count below is right.
        await self._connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", self._viewer)
        there = await self._connection.fetchval(
            "SELECT count(*) FROM volumes WHERE user_id = $1 AND status <> 'removing'", self._viewer
        )
        await check_owned(self._connection, "volumes", self._viewer, there, otherwise=None)
        made = await self._connection.fetchval(
            """
            INSERT INTO volumes (id, name, user_id, store, status, quota_bytes, quota_files, uid, gid, task_id, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (user_id, name) WHERE status <> 'removing' DO NOTHING RETURNING true
            """,
            volume_id,
            name,
            self._viewer,
            store,
            "ready" if task_id is None else "making",
            quota_bytes,
            quota_files,
            uid,
            gid,
            task_id,
            self._now,
        )
        if not made:
            raise VolumeNameTaken(f"You already have a volume named '{name}'; choose another name.", name=name)
        return await self.get(volume_id)

    async def change(self, volume: Volume, changes: Mapping[str, Any]) -> Volume:
        """Of a row that is locked."""
        name = changes.get("name", volume.name)
        if name != volume.name and await self._connection.fetchval(
            "SELECT true FROM volumes WHERE user_id = $1 AND name = $2 AND status <> 'removing'", volume.user_id, name
        ):
            raise VolumeNameTaken(f"There is a volume named '{name}' already; choose another name.", name=name)
        await self._connection.execute(
            "UPDATE volumes SET name = $2, quota_bytes = $3, quota_files = $4 WHERE id = $1 AND status <> 'removing'",
            volume.id,
            name,
            changes.get("quota_bytes", volume.quota_bytes),
            changes.get("quota_files", volume.quota_files),
        )
        return await self.get(volume.id)

    async def doom(self, volume: Volume, task_id: UUID) -> None:
        """From now on nobody sees it; its files go in the background. Raises VolumeMounted while sessions have it."""
        if volume.status == "making":
            raise VolumeNotReady(f"The volume '{volume.name}' is still being made; cancel that task first.")
        rows = await self._connection.fetch(
            f"""
            SELECT DISTINCT s.name FROM volume_mounts m JOIN sessions s ON s.id = m.session_id
            WHERE m.volume_id = $1 AND s.status NOT IN ({_FINAL}) ORDER BY 1 LIMIT 10
            """,
            volume.id,
        )
        if names := [row["name"] for row in rows]:
            raise VolumeMounted(
                f"The volume '{volume.name}' is mounted in {', '.join(names)}; end these sessions first.",
                sessions=names,
            )
        await self._connection.execute("DELETE FROM volume_shares WHERE volume_id = $1", volume.id)
        await self._connection.execute(
            "UPDATE volumes SET status = 'removing', task_id = $2 WHERE id = $1", volume.id, task_id
        )

    # -- shares ------------------------------------------------------------------------------------------------------
    async def share(
        self,
        volume: Volume,
        share_ids: Sequence[UUID],
        *,
        users: Sequence[UUID],
        projects: Sequence[UUID],
        read_only: bool,
    ) -> Volume:
        """Whom it is shared with already gets it in the new way. `share_ids`: one for each."""
        for column, wanted, ids in (("user_id", users, share_ids), ("project_id", projects, share_ids[len(users) :])):
            for one, share_id in zip(wanted, ids, strict=False):
                await self._connection.execute(
                    f"""
                    INSERT INTO volume_shares (id, volume_id, {column}, read_only, created_at) VALUES ($1, $2, $3, $4, $5)
                    ON CONFLICT (volume_id, {column}) DO UPDATE SET read_only = excluded.read_only
                    """,
                    share_id,
                    volume.id,
                    one,
                    read_only,
                    self._now,
                )
        return await self.get(volume.id)

    async def unshare(self, volume: Volume, *, users: Sequence[UUID], projects: Sequence[UUID]) -> Volume:
        gone = await self._connection.fetch(
            "DELETE FROM volume_shares WHERE volume_id = $1 AND (user_id = ANY($2) OR project_id = ANY($3)) RETURNING id",
            volume.id,
            list(users),
            list(projects),
        )
        if len(gone) < len(set(users)) + len(set(projects)):
            raise ShareNotFound(volume=volume.name)
        return await self.get(volume.id)

    async def leave(self, volume: Volume) -> None:
        gone = await self._connection.fetchval(
            "DELETE FROM volume_shares WHERE volume_id = $1 AND user_id = $2 RETURNING true", volume.id, self._viewer
        )
        if not gone:
            raise ShareNotFound(
                f"'{volume.name}' is yours; delete it instead."
                if volume.owned
                else f"'{volume.name}' is shared with a project of yours, not with you alone; its owner can unshare it."
            )

    # -- mounts ------------------------------------------------------------------------------------------------------
    async def mount(self, session_id: SessionId, places: Sequence[Place]) -> None:
        """Put on record what a new session mounts; whether its owner may is asked again by the same statement.

        The volumes stay locked against removal until the transaction ends.
        """
        wanted = {place.volume.id for place in places}
        await self._connection.execute("SELECT FROM volumes WHERE id = ANY($1) ORDER BY id FOR SHARE", sorted(wanted))
        rows = await self._connection.fetch(
            f"""
            INSERT INTO volume_mounts (session_id, path, volume_id, subpath, read_only)
            SELECT $1, w.path, v.id, w.subpath, w.read_only
            FROM unnest($3::uuid[], $4::text[], $5::text[], $6::boolean[]) AS w(volume_id, path, subpath, read_only)
            JOIN volumes v ON v.id = w.volume_id {_access("$2")}
            WHERE v.status = 'ready' AND (v.user_id = $2 OR a.read_only = false OR (a.read_only AND w.read_only))
            RETURNING volume_id
            """,
            session_id,
            self._viewer,
            [place.volume.id for place in places],
            [place.path for place in places],
            [place.subpath for place in places],
            [place.read_only for place in places],
        )
        if len(rows) == len(places):
            return
        mounted = {row["volume_id"] for row in rows}
        missing = next(place for place in places if place.volume.id not in mounted)
        now = await self.get(missing.volume.id)
        if now.status != "ready":
            raise VolumeNotReady
        raise VolumeReadOnly(
            f"The volume '{now.name}' is shared with you for reading only; mount it as '{now.name}:ro'.",
            volume=now.name,
        )


async def hold_mounts(connection: Connection, session_id: SessionId) -> dict[str, dict[str, Any]]:
    """What a session mounts, by path, its volumes locked against removal."""
    await connection.execute(
        """
        SELECT FROM volumes WHERE id IN (SELECT volume_id FROM volume_mounts WHERE session_id = $1)
        ORDER BY id FOR SHARE
        """,
        session_id,
    )
    return (await still_mountable(connection, [session_id])).get(session_id, {})


async def still_mountable(
    connection: Connection, session_ids: Collection[SessionId]
) -> dict[SessionId, dict[str, dict[str, Any]]]:
    """What these sessions mount, by path, as it may be mounted now; `refused` says why something may not."""
    rows = await connection.fetch(
        f"""
        SELECT m.session_id, m.path, m.subpath, m.read_only, v.id, v.name, v.store, v.uid, v.gid, v.status = 'ready' AS ready,
            CASE WHEN v.user_id = s.user_id THEN false ELSE a.read_only END AS only_read
        FROM volume_mounts m JOIN sessions s ON s.id = m.session_id JOIN volumes v ON v.id = m.volume_id
        {_access("s.user_id")}
        WHERE m.session_id = ANY($1::uuid[]) ORDER BY m.session_id, m.path
        """,
        list(session_ids),
    )
    found: dict[SessionId, dict[str, dict[str, Any]]] = {}
    for row in rows:
        why = None
        if not row["ready"]:
            why = f"the volume '{row['name']}' is being removed"
        elif row["only_read"] is None:
            why = f"the volume '{row['name']}' is no longer shared with the session's owner"
        elif row["only_read"] and not row["read_only"]:
            why = f"the volume '{row['name']}' is shared for reading only by now"
        found.setdefault(SessionId(row["session_id"]), {})[row["path"]] = _spec(
            row["id"],
            row["name"],
            row["store"],
            row["uid"],
            row["gid"],
            row["path"],
            row["subpath"],
            row["read_only"],
            why,
        )
    return found


async def mounts_asked_again(connection: Connection, intents: Sequence[Intent]) -> list[Intent]:
    """The same, with every mount as its session's owner may have it at this moment; the agent refuses the others."""
    concerned = {i.session_id for i in intents if i.spec is not None and i.spec.mounts}
    if not concerned:
        return list(intents)
    now = await still_mountable(connection, concerned)
    return [
        replace(
            intent, spec=replace(intent.spec, mounts=_asked_again(intent.spec.mounts, now.get(intent.session_id, {})))
        )
        if intent.spec is not None and intent.spec.mounts
        else intent
        for intent in intents
    ]


def _asked_again(mounts: Sequence[Mapping[str, Any]], now: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        now.get(mount["path"]) or {**mount, "refused": f"the volume '{mount['name']}' has been removed"}
        for mount in mounts
    ]


# -- stores ----------------------------------------------------------------------------------------------------------
async def stores(connection: Connection) -> list[tuple[str, int]]:
    """The stores that hosts have told of, those of most hosts first."""
    rows = await connection.fetch(
        """
        SELECT info ->> 'volumes' AS store, count(*) AS hosts FROM agents
        WHERE info ->> 'volumes' IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, min(created_at), 1
        """
    )
    return [(row["store"], row["hosts"]) for row in rows]


async def hosts_with(connection: Connection, store: str) -> list[AgentId]:
    rows = await connection.fetch("SELECT id FROM agents WHERE info ->> 'volumes' = $1 AND NOT lost ORDER BY id", store)
    return [AgentId(row["id"]) for row in rows]


async def chosen_store(connection: Connection, asked: str | None) -> str:
    known = [store for store, _ in await stores(connection)]
    if asked is not None and asked in known:
        return asked
    if asked is not None or not known:
        raise NoVolumeStore(
            f"No host has a store '{asked}' for volumes."
            if asked is not None
            else "No host of this installation keeps volumes; an administrator names a folder as 'volumes' in agent.toml."
        )
    return known[0]


# -- by the tasks that make and remove them ------------------------------------------------------------------------------
async def by_task(connection: Connection, volume_id: UUID) -> Mapping[str, Any] | None:
    row = await connection.fetchrow(
        "SELECT id, name, store, status, uid, gid, quota_bytes, quota_files FROM volumes WHERE id = $1", volume_id
    )
    return None if row is None else dict(row)


async def made(connection: Connection, volume_id: UUID) -> bool:
    done = await connection.fetchval(
        "UPDATE volumes SET status = 'ready' WHERE id = $1 AND status = 'making' RETURNING true", volume_id
    )
    return bool(done)


async def forget(connection: Connection, volume_id: UUID) -> None:
    """Of a volume whose files are gone, or were never made."""
    await connection.execute("DELETE FROM volumes WHERE id = $1 AND status <> 'ready'", volume_id)


async def keep(connection: Connection, volume_id: UUID) -> None:
    """It was to be removed, and was not; another may have its name by now."""
    await connection.execute(
        """
        UPDATE volumes v SET status = 'ready', name = CASE WHEN EXISTS (
            SELECT FROM volumes o WHERE o.user_id = v.user_id AND o.name = v.name AND o.status <> 'removing')
            THEN left(v.name, 50) || '-' || right(v.id::text, 12) ELSE v.name END
        WHERE v.id = $1 AND v.status = 'removing'
        """,
        volume_id,
    )
