"""Virtual folders in Backend.AI's words: volumes, as far as one maps onto the other.

Their contents are sent and fetched through a storage proxy there; here through sessions, or by `moorage volume put` and `get`.
"""

from __future__ import annotations

import re
import stat as modes
from typing import Any, Final

from aiohttp import web

from actions import (
    CloneVolumeAction,
    CreateVolumeAction,
    DeleteVolumeAction,
    GetVolumeAction,
    LeaveVolumeAction,
    ListVolumeFilesAction,
    ManageVolumeFilesAction,
    ModifyVolumeAction,
    ShareVolumeAction,
    UnshareVolumeAction,
)
from actions.files import FileList
from actions.views import UserData
from actions.volumes import VolumeData
from agent.client import FileStat
from domain.errors import FileError, InvalidRequest
from domain.names import as_uuid
from manager.compat.backendai import gql_rows, shapes
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.gql_lists import Lists
from manager.compat.backendai.table import Route
from manager.rest.json import dumps
from manager.world import validated

_MOST_LISTED: Final = 10_000
_BARE: Final = re.compile(r"\d{1,18}")
_KINDS: Final = {"file": modes.S_IFREG, "directory": modes.S_IFDIR, "link": modes.S_IFLNK}


# -- the folders ---------------------------------------------------------------------------------------------------------
async def list_all(ask: Ask) -> web.StreamResponse:
    """One's own and those that are shared with one; with `all`, for administrators, everybody's."""
    everybodys = (await ask.body()).get("all") is True and ask.by.sees_all
    lists = Lists(ask, ask.door.world.service.now(), "")
    volumes = await lists.volumes(everybodys=everybodys)
    return ask.answer([_row(volume, await lists.user(volume.owner)) for volume in volumes])


def _row(volume: VolumeData, owner: UserData | None) -> dict[str, Any]:
    told = gql_rows.folder(volume)
    return {
        "name": volume.name,
        "id": volume.id.hex,
        "host": gql_rows.VOLUME_HOST,
        "status": told["status"],
        "usage_mode": "general",
        "created_at": shapes.moment(volume.created_at),
        "is_owner": volume.owned,
        "permission": told["permission"],
        "user": None if owner is None else str(owner.id),
        "user_email": volume.owner,
        "group": None,
        "group_name": None,
        "creator": volume.owner,
        "ownership_type": "user",
        "type": "user",
        "unmanaged_path": None,
        "cloneable": True,
        "max_files": told["max_files"],
        "max_size": told["max_size"],
        "cur_size": volume.used_bytes,
    }


async def create(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    for name, why in (
        (
            "group",
            "Volumes belong to users; share one with the project: 'moorage volume share NAME --project PROJECT'.",
        ),
        ("unmanaged_path", "Folders of hosts are not mounted; ask an administrator for a volume store."),
    ):
        if body.get(name):
            raise InvalidRequest(why, field=name)
    quota = body.get("quota")
    asked = CreateVolumeAction(name=body.get("name", ""), quota_bytes=_bytes(quota))
    volume = (await ask.run(validated(asked))).volume
    return ask.answer(_row(volume, None) | {"user": str(ask.by.user_id)}, 201)


def _bytes(quota: Any) -> int | None:
    """No quota is written 0; a bare number is bytes there."""
    if quota in (None, "", 0, "0"):
        return None
    return int(quota) if _BARE.fullmatch(str(quota)) else shapes.memory_mib(quota, "quota") << 20


async def info(ask: Ask) -> web.StreamResponse:
    volume = (await ask.run(validated(GetVolumeAction(volume=_name(ask))))).volume
    owner = await Lists(ask, ask.door.world.service.now(), "").user(volume.owner)
    more = {"numFiles": volume.used_files, "used_bytes": volume.used_bytes, "created": shapes.moment(volume.created_at)}
    return ask.answer(_row(volume, owner) | more)


async def rename(ask: Ask) -> web.StreamResponse:
    new = (await ask.body(required=True)).get("new_name")
    if not isinstance(new, str):
        raise InvalidRequest("The new name is missing: 'new_name'.", field="new_name")
    await ask.run(validated(ModifyVolumeAction(volume=_name(ask), name=new)))
    return web.Response(status=201)


async def delete(ask: Ask) -> web.StreamResponse:
    await ask.run(validated(DeleteVolumeAction(volume=_name(ask))))
    return ask.nothing()


async def delete_by_id(ask: Ask) -> web.StreamResponse:
    named = (await ask.body(required=True)).get("id")
    if not isinstance(named, str) or (found := as_uuid(named)) is None:
        raise InvalidRequest("Say which folder, by its 'id'.", field="id")
    await ask.run(DeleteVolumeAction(volume=str(found)))
    return ask.nothing()


async def hosts(ask: Ask) -> web.StreamResponse:
    """One by name: which store a volume is on, Moorage chooses."""
    host = gql_rows.VOLUME_HOST
    told = {"backend": "moorage", "capabilities": ["vfolder"], "usage": {"percentage": None}}
    return ask.answer({"default": host, "allowed": [host], "volume_info": {host: told}})


async def types(ask: Ask) -> web.StreamResponse:
    return ask.answer(["user"])


async def clone(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    asked = CloneVolumeAction(volume=_name(ask), name=body.get("target_name", ""))
    task = (await ask.run(validated(asked))).task
    return ask.answer({"name": body["target_name"], "bgtask_id": str(task.id), "host": gql_rows.VOLUME_HOST}, 201)


# -- for whom ------------------------------------------------------------------------------------------------------------
async def share(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    emails, permission = _emails(body), body.get("permission") or body.get("perm") or "ro"
    if permission not in ("ro", "rw", "wd"):  # the folder itself is removed by its owner alone
        raise InvalidRequest("A folder is shared for reading (ro) or for writing as well (rw).", field="permission")
    await ask.run(validated(ShareVolumeAction(volume=_name(ask), users=emails, read_only=permission == "ro")))
    return ask.answer({"shared_emails": list(emails)}, 201)


async def unshare(ask: Ask) -> web.StreamResponse:
    emails = _emails(await ask.body(required=True))
    await ask.run(validated(UnshareVolumeAction(volume=_name(ask), users=emails)))
    return ask.answer({"unshared_emails": list(emails)})


async def leave(ask: Ask) -> web.StreamResponse:
    await ask.run(validated(LeaveVolumeAction(volume=_name(ask))))
    return ask.answer({"msg": f"left the shared vfolder {_name(ask)}"})


def _emails(body: dict[str, Any]) -> tuple[str, ...]:
    emails = body.get("emails")
    if not isinstance(emails, list) or not all(isinstance(one, str) for one in emails):
        raise InvalidRequest("'emails' is a list of e-mail addresses.", field="emails")
    return tuple(emails)


# -- what is in them -----------------------------------------------------------------------------------------------------
async def files(ask: Ask) -> web.StreamResponse:
    """The list is JSON within JSON, as that of a session's files."""
    path = ask.query_value("path") or (await ask.body()).get("path") or "."
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < _MOST_LISTED:
        page: FileList = await ask.run(
            validated(ListVolumeFilesAction(volume=_name(ask), path=str(path), cursor=cursor))
        )
        found += [_file(stat) for stat in page.items]
        if (cursor := page.next_cursor) is None:
            break
    return ask.answer({"items": found, "files": dumps(found).decode(), "folder_path": str(path), "error_msg": ""})


def _file(stat: FileStat) -> dict[str, Any]:
    return {
        "name": stat.name,
        "filename": stat.name,
        "type": "DIRECTORY" if stat.type == "directory" else "FILE",
        "mode": modes.filemode(_KINDS.get(stat.type, 0) | stat.mode & 0o7777),
        "size": stat.size,
        "mtime": stat.mtime,
        "ctime": stat.mtime,
        "atime": stat.mtime,
    }


async def mkdir(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    path, parents = _text(body, "path"), body.get("parents") is True
    try:
        await _manage(ask, op="mkdir", path=path, parents=parents)
    except FileError:
        if body.get("exist_ok") is not True:
            raise
    return web.Response(status=201)


async def rename_file(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    path, new = _text(body, "target_path"), _text(body, "new_name")
    if "/" in new:
        raise InvalidRequest("The new name is no path; see move-file.", field="new_name")
    folder, slash, _ = path.rpartition("/")
    await _manage(ask, op="move", path=path, to=f"{folder}{slash}{new}")
    return ask.answer({}, 201)


async def move_file(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    await _manage(ask, op="move", path=_text(body, "src"), to=_text(body, "dst"))
    return ask.answer({}, 201)


async def delete_files(ask: Ask) -> web.StreamResponse:
    body = await ask.body(required=True)
    paths = body.get("files")
    if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
        raise InvalidRequest("'files' is a list of paths.", field="files")
    for path in paths:
        await _manage(ask, op="remove", path=path, recursive=body.get("recursive") is True)
    return ask.answer({})


async def transfer(ask: Ask) -> web.StreamResponse:
    raise InvalidRequest(
        "There is no storage proxy here: use 'moorage volume put' and 'moorage volume get', or mount the folder in a session "
        "and use 'backend.ai session upload' and 'download'."
    )


async def _manage(ask: Ask, **fields: Any) -> None:
    await ask.run(validated(ManageVolumeFilesAction(volume=_name(ask), **fields)))


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"'{name}' is missing.", field=name)
    return value


def _name(ask: Ask) -> str:
    """An id is written without dashes there."""
    found = as_uuid(ask.path["folder"])
    return ask.path["folder"] if found is None else str(found)


ROUTES: Final = (
    Route("GET", "/folders", list_all),
    Route("POST", "/folders", create),
    Route("DELETE", "/folders", delete_by_id),
    Route("GET", "/folders/_/hosts", hosts),
    Route("GET", "/folders/_/all_hosts", hosts),
    Route("GET", "/folders/_/allowed_types", types),
    Route("GET", "/folders/{folder}", info),
    Route("DELETE", "/folders/{folder}", delete),
    Route("POST", "/folders/{folder}/rename", rename),
    Route("POST", "/folders/{folder}/clone", clone),
    Route("POST", "/folders/{folder}/share", share),
    Route("DELETE", "/folders/{folder}/unshare", unshare),
    Route("POST", "/folders/{folder}/leave", leave),
    Route("GET", "/folders/{folder}/files", files),
    Route("POST", "/folders/{folder}/mkdir", mkdir),
    Route("POST", "/folders/{folder}/rename-file", rename_file),
    Route("POST", "/folders/{folder}/move-file", move_file),
    Route("DELETE", "/folders/{folder}/delete-files", delete_files),
    Route("POST", "/folders/{folder}/request-upload", transfer),
    Route("POST", "/folders/{folder}/request-download", transfer),
)
