"""Backend.AI's task templates and Moorage's, each as the other: `api_version`, `metadata`, `spec`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from actions.template_document import MOST_BYTES, load
from actions.templates import TemplateData
from domain.errors import InvalidResources, InvalidTemplate
from domain.resources import ResourceSlot
from manager.compat.backendai import shapes
from manager.compat.backendai.creation import config_fields, kind_of

_KINDS: Final = frozenset({"taskTemplate", "task_template"})
_API_VERSION: Final = "6"


def read(payload: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, document) of each template in YAML or JSON: one, or a list of `{"template": ...}`. Raises InvalidTemplate."""
    if not isinstance(payload, str):
        raise InvalidTemplate("A template is sent as text, YAML or JSON, in 'payload'.", field="payload")
    if len(payload.encode("utf-8", "replace")) > MOST_BYTES:
        raise InvalidTemplate(f"Templates have at most {MOST_BYTES // 1024} KiB; put long scripts into the image.")
    found = load(payload)
    several = found if isinstance(found, list) else [found]
    if not 1 <= len(several) <= 10:
        raise InvalidTemplate("Send one template, or a list of up to 10.")
    return [_read(one.get("template", one) if isinstance(one, Mapping) else one) for one in several]


def _read(given: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(given, Mapping):
        raise InvalidTemplate("A template is a mapping of api_version, kind, metadata and spec.")
    if given.get("kind") not in _KINDS:
        raise InvalidTemplate("Only templates of the kind 'taskTemplate' are kept; for clusters see 'clusterSize'.")
    metadata, spec = _part(given, "metadata"), _part(given, "spec")
    name = metadata.get("name")
    if not isinstance(name, str):
        raise InvalidTemplate("The template lacks its name: metadata.name.", field="metadata.name")
    fields = {**_session(spec), "tag": metadata.get("tag")}
    return name, {"format": 1, "session": {key: value for key, value in fields.items() if value is not None}}


def _session(spec: Mapping[str, Any]) -> dict[str, Any]:
    kernel = _part(spec, "kernel")
    if kernel.get("git"):
        raise InvalidTemplate(
            "Moorage clones nothing by itself: put the 'git clone' into spec.kernel.run.bootstrap.",
            field="spec.kernel.git",
        )
    run = _part(kernel, "run")
    mounts = {str(name): path for name, path in _part(spec, "mounts").items()}
    config = {
        "resources": spec.get("resources"),
        "environ": kernel.get("environ"),
        "mounts": list(mounts),
        "mount_map": {name: path for name, path in mounts.items() if path},
        "scaling_group": spec.get("scaling_group"),
        "agent_list": spec.get("agent_list"),
    }
    kind = kind_of(spec.get("session_type"))
    return {
        "image": shapes.image_name(kernel.get("image")),
        "architecture": kernel.get("architecture"),
        "session_type": None if kind is None else str(kind),
        "bootstrap_script": run.get("bootstrap") or None,
        "startup_command": run.get("startup_command") or run.get("startup") or None,
        **as_json(config_fields(config)),
    }


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a creation as a template keeps them."""
    told = {name: value for name, value in fields.items() if value is not None}
    if (slots := told.get("resource_slots")) is not None:
        told["resource_slots"] = slots.to_json()
    if (mounts := told.get("mounts")) is not None:
        told["mounts"] = [
            {name: value for name, value in (("volume", mount.volume), ("path", mount.path)) if value is not None}
            for mount in mounts
        ]
    return told


def write(template: TemplateData) -> dict[str, Any]:
    """As Backend.AI has it. Of what only Moorage knows, nothing is said."""
    session = template.session
    mounts = session.get("mounts")
    agent = session.get("agent")
    return {
        "api_version": _API_VERSION,
        "kind": "taskTemplate",
        "metadata": {"name": template.name, "tag": session.get("tag")},
        "spec": {
            "session_type": session.get("session_type", "interactive"),
            "kernel": {
                "image": session.get("image"),
                "architecture": session.get("architecture", "x86_64"),
                "environ": session.get("environ", {}),
                "run": _run(session),
                "git": None,
            },
            "scaling_group": session.get("resource_group"),
            "mounts": {
                m["volume"]: m.get("path", "") for m in mounts or () if isinstance(m, Mapping) and "volume" in m
            },
            "resources": _resources(session.get("resource_slots")),
            "agent_list": None if agent is None else [agent],
        },
    }


def _run(session: Mapping[str, Any]) -> dict[str, Any] | None:
    told = {"bootstrap": session.get("bootstrap_script"), "startup_command": session.get("startup_command")}
    return told if any(told.values()) else None


def _resources(slots: Any) -> dict[str, Any]:
    """A parameter of Moorage's stays what it is."""
    if not isinstance(slots, Mapping):
        return {}
    try:
        return dict(shapes.amounts(ResourceSlot(slots)))
    except InvalidResources:
        return dict(slots)


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTemplate(f"'{name}' of a template is a mapping.", field=name)
    return value
