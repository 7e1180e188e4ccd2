"""The volumes that a session is created with, each looked up and in its place."""

from __future__ import annotations

from collections.abc import Sequence

from actions.base import Work
from domain.errors import InvalidMount, VolumeNotFound, VolumeNotReady, VolumeReadOnly
from domain.session import Session
from domain.volumes import Mount, check_apart, mount_path, mount_subpath
from repositories.volumes import Place, hold_mounts


async def places_of(call: Work, mounts: Sequence[Mount]) -> list[Place]:
    """Volumes that the owner of the session may use in this way. All of them are in one store: a session has one host."""
    places = [await _place(call, mount) for mount in mounts]
    check_apart([(place.volume.id, place.subpath, place.path) for place in places])
    if len({place.volume.store for place in places}) > 1:
        raise InvalidMount(
            "These volumes are in different stores, and no host has all of them; clone one to where the others are.",
            field="mounts",
        )
    return places


async def check_still_there(call: Work, session: Session) -> None:
    """Before a new attempt: its volumes are held from here on, as at its creation. Raises VolumeNotFound."""
    now = await hold_mounts(call.db.connection, session.id)
    for mount in session.mounts:
        place = now.get(mount["path"])
        why = f"the volume '{mount['name']}' has been removed" if place is None else place["refused"]
        if why is not None:
            raise VolumeNotFound(f"The session cannot be started again: {why}.", volume=mount["name"])


async def _place(call: Work, mount: Mount) -> Place:
    volume = await call.db.volumes.get(mount.volume)
    if volume.status != "ready":
        raise VolumeNotReady(volume=volume.name)
    if volume.read_only and not mount.read_only:
        raise VolumeReadOnly(
            f"The volume '{volume.name}' is shared with you for reading only; mount it as '{volume.name}:ro'.",
            volume=volume.name,
        )
    return Place(
        volume=volume, path=mount_path(mount, volume.name), subpath=mount_subpath(mount), read_only=mount.read_only
    )
