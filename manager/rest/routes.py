"""The one table of all addresses: a row per action says where its fields come from and how it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, TypeAlias, cast, get_origin, get_type_hints

from aiohttp import web

import actions as a
from actions.base import Action
from manager.rest import answers, apps, executions, files, graphs, information, reports, sign_ins, streams, terminals
from manager.rest.exchange import Exchange, decode_segment
from manager.rest.json import MAX_BODY_BYTES, MAX_CODE_BODY_BYTES

Handler: TypeAlias = Callable[[Exchange], Awaitable[web.StreamResponse]]
#: What stands in a path for a field of the action.
PATH_FIELDS: Final[Mapping[str, str]] = {
    "session": "session_name",
    "run": "run_id",
    "task": "task_id",
    "token": "token_id",
    "call": "call_id",
}
#: Never from outside: who asks is told by the credential, whose session by a parameter of its own.
_HIDDEN: Final = frozenset({"access_key", "owner_access_key", "session_name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row. Fields of the action that the path does not name come from the query (GET, DELETE) or the JSON body."""

    method: str
    path: str  #: `{name}` is one segment, `{name*}` the rest of the path
    action: type[Action[Any, Any]]
    answer: Callable[[Any], Any] = lambda result: result
    status: int | Callable[[Any], int] = 200
    handler: Handler | None = None  #: for what is not one JSON question and one JSON answer
    rename: Mapping[str, str] = field(default_factory=dict)  #: names outside -> fields of the action
    hidden: frozenset[str] = frozenset()  #: fields that are not told from outside, or by a header
    query: tuple[str, ...] = ()  #: parameters that the handler reads itself
    settles: bool = False  #: takes `?wait=SECONDS`
    etag: bool = False
    if_match: bool = False
    max_body_bytes: int = MAX_BODY_BYTES
    paged: bool = False  #: the action answers a whole list, of which the door gives pages
    media: tuple[str, ...] = ("application/json",)  #: of the answer
    head: bool = True  #: HEAD is answered like GET
    public: bool = False  #: takes no credential

    # derived, so that a request costs no thought
    segments: tuple[str, ...] = field(init=False)
    told: Mapping[str, str] = field(init=False)  #: names outside -> fields, of what query or body may hold
    lists: frozenset[str] = field(init=False)  #: fields that take several values from a query
    body_required: bool = field(init=False)
    owned: bool = field(init=False)  #: takes `?owner_access_key=`
    field_in_path: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "segments", tuple(self.path.strip("/").split("/")))
        put(self, "field_in_path", {name: PATH_FIELDS.get(name, name) for name in self.path_names})
        in_path = set(self.field_in_path.values())
        outside = {inside: name for name, inside in self.rename.items()}
        told = {
            f.name: f for f in fields(cast("type[Any]", self.action)) if f.name not in in_path | _HIDDEN | self.hidden
        }
        put(self, "told", {outside.get(name, name): name for name in told})
        hints = get_type_hints(self.action, include_extras=False)
        put(self, "lists", frozenset(name for name in told if get_origin(hints[name]) in (list, tuple)))
        required = any(f.default is MISSING and f.default_factory is MISSING for f in told.values())
        put(self, "body_required", self.has_body and required)
        put(self, "owned", self.path.startswith("/v1/sessions") or self.path == "/v1/events")

    @property
    def path_names(self) -> list[str]:
        return [part.strip("{}*") for part in self.path.split("/") if part.startswith("{")]

    @property
    def has_body(self) -> bool:
        return self.method in ("POST", "PUT", "PATCH")


_S: Final = "/v1/sessions/{session}"
_V: Final = "/v1/volumes/{volume}"
session_data = attrgetter("session_data")


def page(result: Any) -> dict[str, Any]:
    return {"items": result.items, "next_cursor": result.next_cursor}


def keypair_page(result: Any) -> dict[str, Any]:
    return {"items": [answers.keypair(data) for data in result.items], "next_cursor": result.next_cursor}


def token_page(result: Any) -> dict[str, Any]:
    return {"items": [answers.token(data) for data in result.items], "next_cursor": result.next_cursor}


def _row(method: str, path: str, action: type[Action[Any, Any]], **more: Any) -> Route:
    return Route(method=method, path=path, action=action, **more)


NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
# fmt: off
ROUTES: Final[tuple[Route, ...]] = (
    # sessions
    _row("POST", "/v1/sessions", a.CreateFromParamsAction, handler=information.create, settles=True, etag=True,
         query=("dry_run",), answer=session_data, status=lambda result: 201 if result.created else 200),
    _row("POST", "/v1/sessions/cluster", a.CreateClusterAction, handler=information.create, settles=True, etag=True,
         query=("dry_run",), answer=session_data, status=lambda result: 201 if result.created else 200),
    _row("POST", "/v1/sessions/from-template", a.CreateFromTemplateAction, handler=information.create, settles=True,
         query=("dry_run",), etag=True, answer=session_data, status=lambda result: 201 if result.created else 200),
    _row("GET", "/v1/sessions", a.SearchSessionsAction, answer=page),
    _row("GET", "/v1/sessions/match", a.MatchSessionsAction, answer=page),
    _row("POST", "/v1/sessions/transit", a.CheckAndTransitStatusAction, answer=answers.transit_outcomes),
    _row("GET", _S, a.GetSessionInfoAction, answer=attrgetter("session_info"), etag=True),
    _row("PATCH", _S, a.ModifySessionAction, answer=session_data, etag=True, if_match=True, hidden=frozenset({"version"})),
    _row("DELETE", _S, a.DestroySessionAction, answer=session_data, settles=True, etag=True),
    _row("POST", f"{_S}/rename", a.RenameSessionAction, answer=session_data, etag=True),
    _row("POST", f"{_S}/restart", a.RestartSessionAction, answer=session_data, settles=True, etag=True),
    _row("GET", f"{_S}/status-history", a.GetStatusHistoryAction, answer=attrgetter("status_history")),
    _row("GET", f"{_S}/explain", a.ExplainSessionAction),
    _row("GET", f"{_S}/metrics", a.GetMetricsAction),
    _row("GET", f"{_S}/gpus", a.GetSessionDevicesAction),
    _row("GET", f"{_S}/abusing-report", a.GetAbusingReportAction),
    _row("GET", f"{_S}/deliveries", a.ListDeliveriesAction, answer=page),
    _row("POST", f"{_S}/exempt", a.ExemptSessionAction, answer=session_data, etag=True),
    _row("GET", f"{_S}/statistics", a.GetStatisticsAction, answer=lambda r: answers.in_iso(r.statistics)),
    _row("GET", f"{_S}/logs", a.GetContainerLogsAction, handler=information.logs, media=("text/plain",), head=False),
    _row("GET", f"{_S}/dependency-graph", a.GetDependencyGraphAction, handler=graphs.dependency_graph,
         answer=attrgetter("graph"), media=("application/json", graphs.SVG, graphs.DOT)),
    _row("GET", f"{_S}/results", a.DownloadResultsAction, handler=files.archive, media=("application/x-tar",), head=False),
    _row("POST", f"{_S}/commit", a.CommitSessionAction, answer=attrgetter("task"), status=202),
    _row("GET", f"{_S}/commit", a.GetCommitStatusAction, answer=attrgetter("commit_status")),
    _row("POST", f"{_S}/image", a.ConvertSessionToImageAction, answer=attrgetter("task"), status=202),
    # executions
    _row("POST", f"{_S}/execute", a.ExecuteSessionAction, handler=executions.execute, answer=answers.run_output,
         max_body_bytes=MAX_CODE_BODY_BYTES, query=("binary",), media=("application/json", NDJSON, SSE)),
    _row("POST", f"{_S}/interrupt", a.InterruptAction),
    _row("POST", f"{_S}/complete", a.CompleteAction),
    _row("GET", f"{_S}/state", a.ListStateAction),
    _row("GET", f"{_S}/state/{{key}}", a.GetStateAction),
    _row("PUT", f"{_S}/state/{{key}}", a.SetStateAction),
    _row("DELETE", f"{_S}/state/{{key}}", a.DeleteStateAction),
    _row("GET", f"{_S}/executions", a.ListExecutionsAction, answer=page),
    _row("GET", f"{_S}/executions/{{run}}", a.ReadExecutionAction, handler=executions.read, answer=answers.run_piece,
         query=("follow",), media=("application/json", NDJSON, SSE), head=False),
    _row("POST", f"{_S}/executions/{{run}}/kill", a.KillExecutionAction),
    _row("GET", f"{_S}/executions/{{run}}/stream", a.FollowExecutionAction, handler=executions.socket,
         query=("binary",), media=("websocket",), head=False),
    # services
    _row("POST", f"{_S}/services/{{service}}", a.StartServiceAction, hidden=frozenset({"login_session_token"})),
    _row("DELETE", f"{_S}/services/{{service}}", a.ShutdownServiceAction),
    _row("GET", f"{_S}/services", a.ListServicesAction),
    _row("POST", f"{_S}/services/{{service}}/ticket", a.OpenServiceAction),
    _row("GET", f"{_S}/direct-access", a.GetDirectAccessInfoAction),
    _row("POST", f"{_S}/ports/{{port}}/pass", a.OpenPortAction),
    # calls
    _row("POST", f"{_S}/calls", a.StartCallAction, handler=apps.start_call, answer=attrgetter("call"),
         max_body_bytes=MAX_CODE_BODY_BYTES),
    _row("GET", f"{_S}/calls", a.ListCallsAction, answer=page),
    _row("POST", f"{_S}/keepalive", a.KeepaliveSessionAction, answer=session_data, etag=True),
    _row("GET", "/v1/calls/{call}", a.GetCallAction, handler=apps.get_call, answer=attrgetter("call"), head=False),
    _row("GET", "/v1/calls/{call}/stream", a.FollowCallAction, handler=apps.follow_call, query=("binary", "follow"),
         media=(NDJSON, SSE), head=False),
    _row("DELETE", "/v1/calls/{call}", a.DeleteCallAction, status=204),
    _row("POST", "/v1/calls/{call}/cancel", a.CancelCallAction, answer=attrgetter("call")),
    # apps
    _row("GET", "/v1/apps", a.ListAppsAction, answer=page, paged=True),
    _row("POST", "/v1/apps", a.DeployAppAction, handler=apps.deploy, answer=attrgetter("app"), status=201,
         hidden=frozenset({"archive"})),
    _row("GET", "/v1/apps/{app}", a.GetAppAction, answer=attrgetter("app")),
    _row("DELETE", "/v1/apps/{app}", a.DeleteAppAction, status=204),
    _row("POST", "/v1/apps/{app}/calls", a.CallAppAction, status=201, max_body_bytes=MAX_CODE_BODY_BYTES,
         answer=attrgetter("call")),
    # terminals and SSH
    _row("GET", f"{_S}/pty", a.OpenProcessAction, handler=terminals.socket, query=("command",),
         hidden=frozenset({"command", "terminal", "shell", "program", "environ"}), media=("websocket",), head=False),
    _row("POST", f"{_S}/ssh-certificate", a.IssueSshCertificateAction, status=201),
    _row("GET", "/v1/ssh-keys", a.ListSshKeysAction, answer=page, paged=True),
    _row("POST", "/v1/ssh-keys", a.AddSshKeyAction, answer=attrgetter("ssh_key"), status=201),
    _row("DELETE", "/v1/ssh-keys/{ssh_key}", a.RemoveSshKeyAction, answer=attrgetter("ssh_key")),
    # files
    _row("GET", f"{_S}/files", a.ListFilesAction, answer=answers.file_list),
    _row("POST", f"{_S}/files", a.UploadFilesAction, handler=files.upload_form, hidden=frozenset({"files", "kernel"}),
         query=("kernel",), answer=answers.files),
    _row("POST", f"{_S}/files/archive", a.DownloadFilesAction, handler=files.archive, media=("application/x-tar",)),
    _row("POST", f"{_S}/files/manage", a.ManageFilesAction, answer=answers.managed_file),
    _row("PUT", f"{_S}/files/{{path*}}", a.UploadFilesAction, handler=files.upload, hidden=frozenset({"files", "kernel"}),
         query=("mode", "kernel")),
    _row("GET", f"{_S}/files/{{path*}}", a.DownloadFileAction, handler=files.download,
         hidden=frozenset({"offset", "length"}), media=("application/octet-stream",)),
    _row("POST", f"{_S}/files/unpack", a.UnpackArchiveAction, handler=files.unpack, query=("path", "overwrite", "kernel"),
         hidden=frozenset({"content", "path", "size", "overwrite", "kernel"})),
    # volumes
    _row("GET", "/v1/volumes", a.ListVolumesAction, answer=page),
    _row("POST", "/v1/volumes", a.CreateVolumeAction, answer=attrgetter("volume"), status=201),
    _row("GET", _V, a.GetVolumeAction, answer=attrgetter("volume")),
    _row("PATCH", _V, a.ModifyVolumeAction, answer=attrgetter("volume")),
    _row("DELETE", _V, a.DeleteVolumeAction, answer=attrgetter("task"), status=202),
    _row("POST", f"{_V}/share", a.ShareVolumeAction, answer=attrgetter("volume")),
    _row("POST", f"{_V}/unshare", a.UnshareVolumeAction, answer=attrgetter("volume")),
    _row("POST", f"{_V}/leave", a.LeaveVolumeAction, status=204),
    _row("POST", f"{_V}/clone", a.CloneVolumeAction, answer=attrgetter("task"), status=202),
    _row("GET", f"{_V}/files", a.ListVolumeFilesAction, answer=answers.file_list),
    _row("POST", f"{_V}/files/archive", a.DownloadVolumeFilesAction, handler=files.archive, media=("application/x-tar",)),
    _row("POST", f"{_V}/files/manage", a.ManageVolumeFilesAction, answer=answers.managed_file),
    _row("POST", f"{_V}/files/unpack", a.UnpackVolumeArchiveAction, handler=files.unpack, query=("path", "overwrite"),
         hidden=frozenset({"content", "path", "size", "overwrite"})),
    _row("PUT", f"{_V}/files/{{path*}}", a.UploadVolumeFilesAction, handler=files.upload, hidden=frozenset({"files"}),
         query=("mode",)),
    _row("GET", f"{_V}/files/{{path*}}", a.DownloadVolumeFileAction, handler=files.download,
         hidden=frozenset({"offset", "length"}), media=("application/octet-stream",)),
    # what happens
    _row("GET", "/v1/events", a.ReadEventsAction, handler=streams.events, hidden=frozenset({"after", "epoch", "limit"}),
         query=("follow",), media=(SSE,), head=False),
    _row("GET", "/v1/tasks", a.ListTasksAction, answer=page),
    _row("GET", "/v1/tasks/{task}", a.GetTaskAction, answer=attrgetter("task")),
    _row("DELETE", "/v1/tasks/{task}", a.CancelTaskAction, answer=attrgetter("task")),
    _row("GET", "/v1/tasks/{task}/events", a.GetTaskAction, handler=streams.task_events, media=(SSE,), head=False),
    _row("GET", "/v1/top", a.GetTopAction),
    _row("GET", "/v1/abusing-reports", a.SearchAbusingReportsAction, answer=page),
    _row("GET", "/v1/policies/watch", a.GetWatchRulesAction),
    _row("PUT", "/v1/policies/watch", a.SetWatchRulesAction, rename={"rules": "settings"}),
    _row("GET", "/v1/usage", a.GetUsageAction, handler=reports.usage, query=("format",),
         media=("application/json", "text/csv")),
    _row("GET", "/v1/usage/trace", a.GetTraceAction),
    _row("GET", "/v1/fsck", a.FsckAction),
    _row("POST", "/v1/fsck/repair", a.FsckRepairAction),
    # who may ask
    _row("POST", "/v1/sign-in", a.SignInAction, handler=sign_ins.sign_in, answer=lambda r: answers.token(r.token), status=201,
         public=True, max_body_bytes=16 * 1024),
    _row("POST", "/v1/sign-out", a.SignOutAction, status=204),
    _row("GET", "/v1/whoami", a.WhoAmIAction, answer=answers.who_am_i),
    _row("GET", "/v1/users", a.ListUsersAction, answer=page),
    _row("POST", "/v1/users", a.CreateUserAction, answer=attrgetter("user"), status=201),
    _row("GET", "/v1/users/{user}", a.GetUserAction, answer=attrgetter("user")),
    _row("PATCH", "/v1/users/{user}", a.ModifyUserAction, answer=attrgetter("user")),
    _row("DELETE", "/v1/users/{user}", a.DeleteUserAction, status=204),
    _row("PUT", "/v1/users/{user}/password", a.SetPasswordAction),
    _row("GET", "/v1/keypairs", a.ListKeypairsAction, answer=keypair_page, paged=True),
    _row("POST", "/v1/keypairs", a.CreateKeypairAction, answer=lambda r: answers.keypair(r.keypair), status=201),
    _row("PATCH", "/v1/keypairs/{keypair}", a.ModifyKeypairAction, answer=lambda r: answers.keypair(r.keypair)),
    _row("POST", "/v1/keypairs/{keypair}/rotate", a.RotateKeypairAction, answer=lambda r: answers.keypair(r.keypair)),
    _row("PUT", "/v1/keypairs/{keypair}/signing", a.SetSigningAction, answer=lambda r: answers.keypair(r.keypair)),
    _row("DELETE", "/v1/keypairs/{keypair}", a.DeleteKeypairAction, status=204),
    _row("GET", "/v1/tokens", a.ListTokensAction, answer=token_page, paged=True),
    _row("POST", "/v1/tokens", a.CreateTokenAction, rename={"name": "token_name"}, status=201,
         answer=lambda r: answers.token(r.token)),
    _row("DELETE", "/v1/tokens/{token}", a.DeleteTokenAction, status=204),
    _row("GET", "/v1/projects", a.ListProjectsAction, answer=page, paged=True),
    _row("POST", "/v1/projects", a.CreateProjectAction, rename={"name": "project"}, answer=attrgetter("project"), status=201),
    _row("GET", "/v1/projects/{project}", a.GetProjectAction, answer=attrgetter("project")),
    _row("PATCH", "/v1/projects/{project}", a.ModifyProjectAction, answer=attrgetter("project")),
    _row("DELETE", "/v1/projects/{project}", a.DeleteProjectAction, status=204),
    _row("GET", "/v1/domains", a.ListDomainsAction, answer=page, paged=True),
    _row("POST", "/v1/domains", a.CreateDomainAction, rename={"name": "domain"}, answer=attrgetter("domain"), status=201),
    _row("GET", "/v1/domains/{domain}", a.GetDomainAction, answer=attrgetter("domain")),
    _row("PATCH", "/v1/domains/{domain}", a.ModifyDomainAction, answer=attrgetter("domain")),
    _row("DELETE", "/v1/domains/{domain}", a.DeleteDomainAction, status=204),
    _row("POST", "/v1/webhooks/secret", a.CreateWebhookSecretAction, status=201),
    _row("GET", "/v1/templates", a.ListTemplatesAction, answer=page, paged=True),
    _row("POST", "/v1/templates", a.CreateTemplateAction, answer=attrgetter("template"), status=201),
    _row("GET", "/v1/templates/{template}", a.GetTemplateAction, answer=attrgetter("template"), etag=True),
    _row("PATCH", "/v1/templates/{template}", a.ModifyTemplateAction, answer=attrgetter("template"), etag=True,
         if_match=True, hidden=frozenset({"version"})),
    _row("DELETE", "/v1/templates/{template}", a.DeleteTemplateAction, status=204),
    _row("GET", "/v1/quota", a.ListQuotasAction, answer=page, paged=True),
    _row("PUT", "/v1/quota/{scope}/{of}", a.SetQuotaAction, answer=page),
    _row("GET", "/v1/policies", a.ListPoliciesAction, answer=page, paged=True),
    _row("POST", "/v1/policies", a.CreatePolicyAction, rename={"name": "policy"}, answer=attrgetter("policy"), status=201),
    _row("GET", "/v1/policies/{policy}", a.GetPolicyAction, answer=attrgetter("policy")),
    _row("PATCH", "/v1/policies/{policy}", a.ModifyPolicyAction, answer=attrgetter("policy")),
    _row("DELETE", "/v1/policies/{policy}", a.DeletePolicyAction, status=204),
    _row("PUT", "/v1/policies/{policy}/assignments/{scope}/{of}", a.AssignPolicyAction, answer=attrgetter("policy")),
    _row("DELETE", "/v1/policies/{policy}/assignments/{scope}/{of}", a.UnassignPolicyAction, answer=attrgetter("policy")),
    # where sessions run, and of what
    _row("GET", "/v1/images", a.ListImagesAction, answer=page, paged=True, query=("all",)),
    _row("POST", "/v1/images", a.RegisterImageAction, rename={"name": "image"}, answer=attrgetter("image"), status=201),
    _row("POST", "/v1/images/pull", a.PullImageAction, rename={"name": "image"}, answer=attrgetter("task"), status=202),
    _row("POST", "/v1/images/rescan", a.RescanImagesAction, answer=attrgetter("task"), status=202),
    _row("POST", "/v1/images/collect", a.CollectImagesAction, answer=attrgetter("task"), status=202),
    _row("PATCH", "/v1/images/{image}", a.ShareImageAction, answer=attrgetter("image")),
    _row("POST", "/v1/images/{image}/alias", a.AliasImageAction, answer=attrgetter("image")),
    _row("DELETE", "/v1/images/{image}", a.ForgetImageAction, status=204),
    _row("GET", "/v1/registries", a.ListRegistriesAction, answer=page, paged=True),
    _row("PUT", "/v1/registries/{host}", a.SetRegistryAction, answer=attrgetter("registry")),
    _row("DELETE", "/v1/registries/{host}", a.RemoveRegistryAction, status=204),
    _row("GET", "/v1/agents", a.ListAgentsAction, answer=page, paged=True),
    _row("POST", "/v1/agents/tokens", a.CreateAgentTokenAction, handler=information.agent_token, status=201),
    _row("GET", "/v1/agents/{agent}", a.GetAgentAction, answer=attrgetter("agent")),
    _row("PATCH", "/v1/agents/{agent}", a.ModifyAgentAction, answer=attrgetter("agent")),
    _row("DELETE", "/v1/agents/{agent}", a.RemoveAgentAction, status=204),
    _row("GET", "/v1/devices", a.ListDevicesAction, answer=page, paged=True),
    _row("GET", "/v1/agents/{agent}/devices", a.ListDevicesAction, answer=page, paged=True),
    _row("POST", "/v1/agents/{agent}/devices/{device}/out", a.TakeDeviceOutAction, answer=attrgetter("device")),
    _row("POST", "/v1/agents/{agent}/devices/{device}/in", a.PutDeviceInAction, answer=attrgetter("device")),
    _row("POST", "/v1/agents/{agent}/cordon", a.CordonAgentAction, answer=attrgetter("agent")),
    _row("POST", "/v1/agents/{agent}/drain", a.DrainAgentAction, answer=attrgetter("agent")),
    _row("POST", "/v1/agents/{agent}/uncordon", a.UncordonAgentAction, answer=attrgetter("agent")),
    _row("POST", "/v1/agents/{agent}/revoke", a.RevokeAgentAction, answer=attrgetter("agent")),
    _row("GET", "/v1/audit", a.ListAuditAction, rename={"action": "of_action", "target": "of_target"}),
    _row("GET", "/v1/audit/export", a.ExportAuditAction, rename={"action": "of_action", "target": "of_target"},
         handler=reports.audit_export, media=("application/x-ndjson",), head=False),
    _row("GET", "/v1/audit/verify", a.VerifyAuditAction),
    _row("GET", "/v1/resource-groups", a.ListResourceGroupsAction, answer=page, paged=True),
    _row("POST", "/v1/resource-groups", a.CreateResourceGroupAction, rename={"name": "resource_group"}, status=201,
         answer=attrgetter("resource_group")),
    _row("GET", "/v1/resource-groups/{resource_group}", a.GetResourceGroupAction, answer=attrgetter("resource_group")),
    _row("PATCH", "/v1/resource-groups/{resource_group}", a.ModifyResourceGroupAction, answer=attrgetter("resource_group")),
    _row("DELETE", "/v1/resource-groups/{resource_group}", a.DeleteResourceGroupAction, status=204),
    _row("POST", "/v1/resource-groups/{resource_group}/access", a.ModifyResourceGroupAccessAction,
         answer=attrgetter("resource_group")),
    _row("PUT", "/v1/resource-groups/{resource_group}/weights/{user}", a.SetWeightAction, answer=attrgetter("resource_group")),
    _row("GET", "/v1/shares", a.ListSharesAction),
)
# fmt: on
#: Actions without an address of their own, and why.
NOT_ADDRESSED: Final[Mapping[str, str]] = {"dry_run": "it is asked for by ?dry_run=true with what it would create"}


class _Node:
    __slots__ = ("literals", "parameter", "rest", "routes")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.rest: _Node | None = None
        self.routes: dict[str, Route] = {}


class Table:
    """Finds the row of a request by walking its path once."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._root = _Node()
        for route in routes:
            node = self._root
            for segment in route.segments:
                if segment.endswith("*}"):
                    node.rest = node.rest or _Node()
                    node = node.rest
                elif segment.startswith("{"):
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node = node.literals.setdefault(segment, _Node())
            if route.method in node.routes:
                raise ValueError(f"two rows for {route.method} {route.path}")
            node.routes[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, list[str]] | frozenset[str]:
        """The row of a request, with the segments (percent-encoded) that stand for its names; else what is allowed there."""
        allowed: set[str] = set()
        # A literal goes before a name, a name before a rest; what a literal does not take may still be a name.
        waiting: list[tuple[_Node, int, list[str]]] = [(self._root, 0, [])]
        segments = path[1:].split("/")
        while waiting:
            node, at, values = waiting.pop()
            if at == len(segments):
                if (route := node.routes.get(method)) is not None:
                    return route, values
                allowed |= node.routes.keys()
                continue
            segment = segments[at]
            if node.rest is not None and segment:
                waiting.append((node.rest, len(segments), [*values, "/".join(segments[at:])]))
            if node.parameter is not None and segment:
                waiting.append((node.parameter, at + 1, [*values, segment]))
            if (below := node.literals.get(segment)) is not None:
                waiting.append((below, at + 1, values))
        return frozenset(allowed)


def path_values(route: Route, raw: list[str]) -> dict[str, Any]:
    """What the path says, decoded, by the action's field names. Slashes within a rest may be encoded or not."""
    values: dict[str, Any] = {}
    for name, segment in zip(route.field_in_path.values(), raw, strict=True):
        values[name] = "/".join(decode_segment(part) for part in segment.split("/"))
    return values
