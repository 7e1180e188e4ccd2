"""Answers of actions as the JSON that the API promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Final

from actions.administration import JoinToken
from actions.credentials import TokenData
from actions.execution import RunOutput, RunPiece
from actions.files import FileList, FileManaged, FilesResult
from actions.lifecycle import TransitOutcomes
from actions.people import WhoAmI
from actions.views import KeypairData
from agent.client import FileStat
from repositories.event import StampedEvent


def iso(seconds: float | None) -> str | None:
    """Unix seconds, as hosts tell them, in ISO 8601. What no calendar holds is left out."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


def file_stat(stat: FileStat) -> dict[str, Any]:
    return {
        "name": stat.name,
        "type": stat.type,
        "size": stat.size,
        "mtime": iso(stat.mtime),
        "mode": f"{stat.mode & 0o7777:04o}",
        "owner": stat.owner,
        "group": stat.group,
        "link_target": stat.link_target,
    }


def files(result: FilesResult) -> dict[str, Any]:
    return {"items": [file_stat(stat) for stat in result.items]}


def file_list(result: FileList) -> dict[str, Any]:
    return {"items": [file_stat(stat) for stat in result.items], "next_cursor": result.next_cursor}


def managed_file(result: FileManaged) -> dict[str, Any]:
    return {"file": None if result.file is None else file_stat(result.file)}


def run_output(output: RunOutput) -> dict[str, Any]:
    values = {f.name: getattr(output, f.name) for f in fields(output)}
    return {**values, "started_at": iso(output.started_at), "finished_at": iso(output.finished_at)}


def in_iso(data: Mapping[str, Any]) -> dict[str, Any]:
    """What hosts say of themselves, its times as everywhere in the API."""
    return {
        name: iso(value) if name in _TIMES and isinstance(value, int | float) else value for name, value in data.items()
    }


_TIMES: Final = frozenset({"time", "at", "started_at", "finished_at"})


def record(data: Mapping[str, Any]) -> dict[str, Any]:
    made = in_iso(data)
    if made["kind"] == "done":
        made["data"] = in_iso(made["data"])
    return made


def run_piece(piece: RunPiece) -> dict[str, Any]:
    values = {f.name: getattr(piece, f.name) for f in fields(piece)}
    return {**values, "records": [record(data) for data in piece.records]}


def transit_outcomes(result: TransitOutcomes) -> dict[str, Any]:
    """`events` are named as in /v1/events."""
    return {
        "outcomes": [
            {**asdict(outcome), "events": [f"session.{status.lower()}" for status in outcome.path]}
            for outcome in result.outcomes
        ]
    }


def event(stamped: StampedEvent) -> dict[str, Any]:
    return {
        "id": event_id(stamped.epoch, stamped.seq),
        "type": stamped.type,
        "session_id": stamped.session_id,
        "name": stamped.data.get("name") or stamped.name,
        "at": stamped.at,
        "cause": stamped.cause,
        "data": stamped.data,
    }


def event_id(epoch: int, seq: int) -> str:
    return f"{epoch}.{seq}"


def keypair(data: KeypairData) -> dict[str, Any]:
    """A secret is a field of the answer that made it, and of no other."""
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    for secret in ("secret_key", "signing_secret"):
        if values[secret] is None:
            del values[secret]
    return values


def token(data: TokenData) -> dict[str, Any]:
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    secret = values.pop("secret_token")
    return values if secret is None else {**values, "token": secret}


def who_am_i(result: WhoAmI) -> dict[str, Any]:
    return {f.name: getattr(result, f.name) for f in fields(result)}


def join_token(result: JoinToken, whole: str | None) -> dict[str, Any]:
    return {"token": whole, "expires_at": result.expires_at}
