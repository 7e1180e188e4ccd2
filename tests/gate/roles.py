"""Who is to be let in where, written by hand from docs/roles.md. It is not read from the actions' own rules, which it is to judge.

Five letters for each role, one for each relation: one's own, of the same project, of the same domain, of another
domain, and what does not exist. The lists of a role say `s` (told of it) or `h` (not told of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ROLES: Final = ("anonymous", "user", "project admin", "domain admin", "superadmin", "monitor")
RELATIONS: Final = ("own", "same project", "same domain", "other domain", "nonexistent")
#: What a letter stands for; `o` is the answer of the action when all is well.
LETTERS: Final[Mapping[str, str]] = {
    "s": "200 told",
    "h": "200 not told",
    "b": "400",
    "u": "401",
    "f": "403",
    "n": "404",
}
NOBODY: Final = "uuuuu"


@dataclass(frozen=True)
class Family:
    user: str
    project_admin: str
    domain_admin: str
    superadmin: str
    monitor: str
    anonymous: str = NOBODY

    def letters(self, role: str) -> str:
        return str(getattr(self, role.replace(" ", "_")))


def everybody(letters: str) -> Family:
    return Family(letters, letters, letters, letters, letters)


FAMILIES: Final[Mapping[str, Family]] = {
    # sessions               user      project   domain    super     monitor
    "look":           Family("onnnn", "oonnn", "ooonn", "oooon", "oooon"),
    "steer":          Family("onnnn", "oonnn", "ooonn", "oooon", "ffffn"),
    "enter":          Family("onnnn", "ofnnn", "ooonn", "oooon", "ffffn"),
    "exempt":         Family("fnnnn", "ffnnn", "fffnn", "oooon", "ffffn"),
    "create for":     Family("offff", "offff", "oooff", "oooon", "ffffn"),
    "list":           Family("shhhh", "shhhh", "shhhh", "shhhh", "shhhh"),
    "list all":       Family("fffff", "sshhh", "ssshh", "ssssh", "ssssh"),
    "list for":       Family("sffff", "sffff", "sssff", "ssssn", "ssssn"),
    "told in reach":  Family("shhhh", "shhhh", "ssshh", "ssssh", "ssssh"),
    "events of one":  Family("snnnn", "ssnnn", "sssnn", "ssssn", "ssssn"),
    "top all":        Family("fffff", "ooooo", "ooooo", "ooooo", "ooooo"),
    # people and credentials
    "list people":    Family("fffff", "fffff", "ssshh", "ssssh", "ssssh"),
    "see people":     Family("fffff", "fffff", "ooonn", "oooon", "oooon"),
    "keep people":    Family("fffff", "fffff", "ooonn", "oooon", "fffff"),
    "remove people":  Family("fffff", "fffff", "foonn", "fooon", "fffff"),
    "password":       Family("offff", "offff", "ooonn", "oooon", "offff"),
    "list credentials of": Family("fffff", "fffff", "sssnn", "ssssn", "ssssn"),
    "make credentials for": Family("offff", "offff", "ooonn", "oooon", "fffff"),
    "make tokens for": Family("onnnn", "onnnn", "ooonn", "oooon", "fffff"),
    "credentials":    Family("onnnn", "onnnn", "ooonn", "oooon", "fffff"),
    "open credentials": Family("fnnnn", "fnnnn", "ooonn", "oooon", "fffff"),
    # projects, domains, limits
    "list projects":  Family("sshhh", "sshhh", "ssshh", "ssssh", "ssssh"),
    "see projects":   Family("oonnn", "oonnn", "ooonn", "oooon", "oooon"),
    "keep projects":  Family("fffff", "fffff", "ooonn", "oooon", "fffff"),
    "members":        Family("fffff", "oonnn", "ooonn", "oooon", "fffff"),
    "appoint":        Family("fffff", "ffnnn", "ooonn", "oooon", "fffff"),
    "list domains":   Family("fffff", "fffff", "fffff", "ssssh", "ssssh"),
    "see domains":    Family("fffff", "fffff", "fffff", "oooon", "oooon"),
    "keep domains":   Family("fffff", "fffff", "fffff", "oooon", "fffff"),
    "see limits":     Family("fffff", "fffff", "ooonn", "oooon", "oooon"),
    "keep limits":    Family("fffff", "fffff", "ooonn", "oooon", "fffff"),
    "keep limits of domains": Family("fffff", "fffff", "fffnn", "oooon", "fffff"),
    "list policies":  Family("fffff", "fffff", "ssshh", "ssssh", "ssssh"),
    "usage of":       Family("fffff", "fffff", "ooonn", "oooon", "oooon"),
    # of the installation
    "see the installation":  Family("fffff", "fffff", "fffff", "oooon", "oooon"),
    "keep the installation": Family("fffff", "fffff", "fffff", "oooon", "fffff"),
    "watch the installation": Family("fffff", "fffff", "fffff", "ooooo", "ooooo"),
    "run the installation":  Family("fffff", "fffff", "fffff", "ooooo", "fffff"),
    # volumes, templates, tasks, keys
    "see volumes":    Family("onnnn", "onnnn", "onnnn", "oooon", "oooon"),
    "keep volumes":   Family("onnnn", "onnnn", "onnnn", "oooon", "fffff"),
    "change files":   Family("onnnn", "onnnn", "onnnn", "oooon", "ffffn"),
    "list one's own": Family("shhhh", "shhhh", "shhhh", "shhhh", "shhhh"),
    "list or everybody's": Family("shhhh", "shhhh", "shhhh", "ssssh", "ssssh"),
    "see templates":  Family("onnnn", "onnnn", "ooonn", "oooon", "oooon"),
    "keep templates": Family("onnnn", "onnnn", "ooonn", "oooon", "fffff"),
    "call apps":      Family("onnnn", "onnnn", "ooonn", "oooon", "fffff"),
    "cancel calls":   Family("onnnn", "ofnnn", "ooonn", "oooon", "fffff"),
    "keep one's own": Family("onnnn", "onnnn", "onnnn", "onnnn", "fffff"),
    "groups":         Family("sshhh", "sshhh", "sshhh", "ssssh", "ssssh"),
    "see groups":     Family("oonnn", "oonnn", "oonnn", "oooon", "oooon"),
    "anybody":        everybody("ooooo"),
    "all but monitors": Family("ooooo", "ooooo", "ooooo", "ooooo", "fffff"),
    "leave":          Family("nooon", "nooon", "nooon", "nooon", "fffff"),
    "no sign-in":     everybody("bbbbb"),
    "nobody signs in so": everybody("uuuuu"),
    # the proxy asks for a pass, and nothing else counts
    "pass":           Family("ouuuu", "ouuuu", "ouuuu", "ouuuu", "uuuuu"),
    "no pass":        everybody("uuuuu"),
}  # fmt: skip

_LOOK = (
    "get_session_info get_status_history explain_session get_container_logs list_executions read_execution "
    "follow_execution get_statistics get_metrics get_session_devices get_dependency_graph get_commit_status "
    "list_deliveries get_abusing_report list_calls get_call follow_call"
)
_ENTER = (
    "execute_session interrupt complete kill_execution open_process issue_ssh_certificate list_files upload_files "
    "upload_files:form download_files download_file manage_files unpack_archive download_results start_service "
    "shutdown_service list_services open_service get_direct_access_info open_port commit_session "
    "convert_session_to_image restart_session check_and_transit_status list_state get_state set_state delete_state "
    "start_call keepalive_session"
)
#: action, or `action:variant` where it may be asked in more than one way -> family
_BY_FAMILY: Final[Mapping[str, str]] = {
    "look": _LOOK,
    "steer": "modify_session rename_session destroy_session",
    "enter": _ENTER,
    "exempt": "exempt_session",
    "create for": "create_from_params create_cluster create_from_template dry_run",
    "list": "search_sessions match_sessions",
    "list all": "search_sessions:all",
    "list for": "search_sessions:for match_sessions:for",
    "told in reach": "read_events list_keypairs list_templates list_apps",
    "events of one": "read_events:one",
    "top all": "get_top:all",
    "list people": "list_users",
    "see people": "get_user",
    "keep people": "create_user modify_user",
    "remove people": "delete_user",
    "password": "set_password",
    "list credentials of": "list_keypairs:of list_tokens:of",
    "make credentials for": "create_keypair:for",
    "make tokens for": "create_token:for",
    "credentials": "modify_keypair rotate_keypair set_signing delete_keypair delete_token",
    "open credentials": "modify_keypair:enable",
    "list projects": "list_projects",
    "see projects": "get_project",
    "keep projects": "create_project delete_project",
    "members": "modify_project",
    "appoint": "modify_project:appoint",
    "list domains": "list_domains",
    "see domains": "get_domain",
    "keep domains": "modify_domain delete_domain",
    "see limits": "list_quotas:of get_policy",
    "keep limits": "set_quota create_policy modify_policy delete_policy assign_policy unassign_policy",
    "keep limits of domains": "set_quota:domain",
    "list policies": "list_policies",
    "usage of": "get_usage:of",
    "see the installation": "get_agent list_devices",
    "keep the installation": (
        "modify_agent remove_agent cordon_agent uncordon_agent drain_agent revoke_agent take_device_out put_device_in "
        "alias_image modify_resource_group delete_resource_group modify_resource_group_access set_weight"
    ),
    "watch the installation": (
        "list_agents list_devices:all fsck get_trace list_audit export_audit verify_audit search_abusing_reports"
    ),
    "run the installation": (
        "create_agent_token create_domain create_resource_group register_image pull_image rescan_images collect_images "
        "set_watch_rules fsck_repair set_registry:common"
    ),
    "see volumes": "get_task get_task:events get_volume list_volume_files download_volume_file "
    "download_volume_files manage_volume_files:stat",
    "keep volumes": (
        "modify_volume delete_volume share_volume unshare_volume clone_volume "
        "unpack_volume_archive upload_volume_files forget_image share_image cancel_task"
    ),
    "change files": "manage_volume_files",
    "list one's own": "list_volumes list_ssh_keys list_registries list_tokens",
    "list or everybody's": "list_volumes:all list_tasks list_images",
    "see templates": "get_template get_app",
    "keep templates": "modify_template delete_template delete_app",
    "call apps": "call_app",
    "cancel calls": "cancel_call delete_call",
    "keep one's own": "remove_ssh_key remove_registry",
    "groups": "list_resource_groups",
    "see groups": "get_resource_group",
    "anybody": "get_top list_shares get_usage get_watch_rules list_quotas who_am_i",
    "all but monitors": (
        "add_ssh_key create_volume create_template deploy_app create_keypair create_token create_webhook_secret set_registry"
    ),
    "leave": "leave_volume",
    "no sign-in": "sign_out",
    "nobody signs in so": "sign_in",
    "pass": "proxy:pass proxy:pass-websocket",
    "no pass": "proxy:key proxy:ticket",
}
#: row -> family
EXPECTED: Final[Mapping[str, str]] = {row: family for family, rows in _BY_FAMILY.items() for row in rows.split()}


def expected(row: str, role: str, relation: str) -> str:
    return FAMILIES[EXPECTED[row]].letters(role)[RELATIONS.index(relation)]
