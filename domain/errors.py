"""Every failure a caller can be told about: a stable code, an HTTP status, one sentence that says what to do next.

A class's docstring is its default message; `python -m domain` prints docs/errors.md from these classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class MoorageError(Exception):
    """The request could not be carried out."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    #: whether the same request may succeed when it is sent again, unchanged
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, **facts: object) -> None:
        self.message = message or (self.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip()
        super().__init__(self.message)
        self.facts = facts


# -- the request itself -------------------------------------------------------------------------------------------
class InvalidRequest(MoorageError):
    """The request is malformed: check its fields against /docs."""

    code, http_status = "invalid_request", 400


class InvalidJson(InvalidRequest):
    """The body is not valid JSON."""

    code = "invalid_json"


class UnsupportedMediaType(MoorageError):
    """The body is of a kind that this address does not take; send application/json."""

    code, http_status = "unsupported_media_type", 415


class RequestTooLarge(MoorageError):
    """The body is larger than this address takes; send files through the file routes."""

    code, http_status = "request_too_large", 413


class InputTooLarge(RequestTooLarge):
    """The input of a call has at most 4 MiB as JSON; put larger things into files of the session and name them."""

    code = "input_too_large"


class InvalidName(InvalidRequest):
    """A session's name has 4 to 64 letters, digits, '_', '-' or '.', and begins and ends with a letter, digit or '_'."""

    code = "invalid_name"


class InvalidLabel(InvalidRequest):
    """A label has a name of up to 63 letters, digits, '.', '_', '/' or '-', and a value of up to 256 characters."""

    code = "invalid_label"


class InvalidSshKey(InvalidRequest):
    """This is no public key as OpenSSH writes it: give the one line of a file such as ~/.ssh/id_ed25519.pub."""

    code = "invalid_ssh_key"


class InvalidRange(InvalidRequest):
    """This is no span of time that can be told of; write 900, 15m, 6h or 7d."""

    code = "invalid_range"


class InvalidTrace(InvalidRequest):
    """This is no workload that can be replayed; docs/simulation.md says what a trace is made of."""

    code = "invalid_trace"


class InvalidSimulation(InvalidRequest):
    """This fleet, policy or workload cannot be simulated; docs/simulation.md says how they are described."""

    code = "invalid_simulation"


class TooManyPoints(InvalidRequest):
    """So short a step over so long a range makes too many points; take a longer step."""

    code = "too_many_points"


class InvalidConfiguration(MoorageError):
    """The session's parameters contradict each other or the image; change the named field."""

    code, http_status = "invalid_configuration", 422


class MountedTwice(InvalidConfiguration):
    """Two of the mounts are the same volume, or lie at the same place or inside each other; leave one out."""

    code = "mounted_twice"


class InvalidMount(InvalidConfiguration):
    """A mount is NAME[:subpath][:/PATH][:ro], with a path that no system folder has."""

    code = "invalid_mount"


class SharedWithNobody(InvalidConfiguration):
    """Nobody was named to share the volume with; name at least one user or project other than its owner."""

    code = "shared_with_nobody"


class InvalidVolumeName(InvalidRequest):
    """A volume's name has 1 to 64 letters, digits, '_', '-' or '.', and begins with a letter, digit or '_'."""

    code = "invalid_volume_name"


class InvalidResources(InvalidConfiguration):
    """The requested resources make no sense; give positive amounts such as cpu=2 and mem='4g'."""

    code = "invalid_resources"


class InvalidApp(InvalidConfiguration):
    """The app makes no sense; the message says which part of it."""

    code = "invalid_app"


class FunctionUnknown(InvalidConfiguration):
    """The app has no such function; 'moorage app show NAME' lists those that may be called."""

    code = "function_unknown"


class InvalidTemplate(InvalidConfiguration):
    """The template makes no sense; the message says which part of it."""

    code = "invalid_template"


class GpuModelUnknown(InvalidResources):
    """No device of the resource group is of the model that is asked for; the message names those that there are."""

    code = "gpu_model_unknown"


class GpuNotShared(InvalidResources):
    """Devices are not shared here; ask for whole ones with gpu=1, or for a resource group that shares its devices."""

    code = "gpu_not_shared"


class ResourcesImpossible(InvalidConfiguration):
    """No host of this installation could ever hold this session, not even an empty one; ask for less."""

    code = "resources_impossible"


class NoMatchingHosts(InvalidConfiguration):
    """No host of the resource group is as the constraints demand, so the session could never start; change them."""

    code = "no_matching_hosts"


class ContradictoryPolicy(InvalidConfiguration):
    """The policy contradicts itself; change the named field."""

    code = "contradictory_policy"


class RouteNotFound(MoorageError):
    """There is nothing at this address; the routes are listed at /docs."""

    code, http_status = "route_not_found", 404


class MethodNotAllowed(MoorageError):
    """This address does not take this method; the routes are listed at /docs."""

    code, http_status = "method_not_allowed", 405


# -- who is asking ------------------------------------------------------------------------------------------------
class Unauthenticated(MoorageError):
    """The request carries no valid credential; send 'Authorization: Bearer ACCESS_KEY.SECRET_KEY'."""

    code, http_status = "unauthenticated", 401


class PermissionDenied(MoorageError):
    """You may not do this; ask an administrator."""

    code, http_status = "permission_denied", 403


class ScopeMissing(PermissionDenied):
    """The token is not for this; use one of a wider scope, or the keypair."""

    code = "scope_missing"


class ResourceGroupDenied(PermissionDenied):
    """You may not use this resource group; 'moorage resource-group ls' lists those that you may use."""

    code = "resource_group_denied"


class TooManyRequests(MoorageError):
    """Too many requests; wait as long as Retry-After says."""

    code, http_status, retryable = "too_many_requests", 429, True


class RateLimited(TooManyRequests):
    """The keypair's requests come faster than it may send them; wait as long as Retry-After says."""

    code = "rate_limited"


class SignInRefused(Unauthenticated):
    """The e-mail address or the password is wrong, or the account is closed."""

    code = "sign_in_refused"


class TooManySignIns(TooManyRequests):
    """Too many wrong passwords; wait as long as Retry-After says."""

    code = "too_many_sign_ins"
    first = False  #: of those for the same reason


class PasswordTooWeak(InvalidRequest):
    """A password has 10 to 256 characters and is not the e-mail address."""

    code = "password_too_weak"


# -- things that are not there --------------------------------------------------------------------------------------
class NotFound(MoorageError):
    """There is no such thing, or it is not yours."""

    code, http_status = "not_found", 404


class SessionNotFound(NotFound):
    """There is no such session, or it is not yours; 'moorage ps' lists yours."""

    code = "session_not_found"


class ImageNotFound(NotFound):
    """No image of this name is registered here; 'moorage image ls' lists what there is."""

    code = "image_not_found"


class RunNotFound(NotFound):
    """There is no such execution, or its output is no longer kept; 'moorage execution ls SESSION' lists those there are."""

    code = "run_not_found"


class StateKeyNotFound(NotFound):
    """The session's state has no such key; 'moorage state ls SESSION' shows those it has."""

    code = "state_key_not_found"


class AppNotFound(NotFound):
    """There is no such app, or it is not visible to you; 'moorage app ls' lists those that are."""

    code = "app_not_found"


class CallNotFound(NotFound):
    """There is no such call, or it is not yours, or it is no longer kept."""

    code = "call_not_found"


class TaskNotFound(NotFound):
    """There is no such background task, or it is not yours; 'moorage task ls' lists yours."""

    code = "task_not_found"


class AgentNotFound(NotFound):
    """There is no such agent; 'moorage admin agent ls' lists them."""

    code = "agent_not_found"


class AgentRevoked(PermissionDenied):
    """This agent was revoked: no certificate of it counts; an administrator can make a new join token for the host."""

    code = "agent_revoked"


class DeviceNotFound(NotFound):
    """The host has no such device; 'moorage admin gpu ls' lists them by UUID."""

    code = "device_not_found"


class UserNotFound(NotFound):
    """There is no such user; 'moorage admin user ls' lists those that you may see."""

    code = "user_not_found"


class DomainNotFound(NotFound):
    """There is no such domain; 'moorage admin domain ls' lists them."""

    code = "domain_not_found"


class ProjectNotFound(NotFound):
    """There is no such project, or you are not a member of it; 'moorage admin project ls' lists yours."""

    code = "project_not_found"


class ResourceGroupNotFound(NotFound):
    """There is no such resource group; 'moorage resource-group ls' lists those that you may use."""

    code = "resource_group_not_found"


class KernelNotFound(NotFound):
    """The session has no kernel of this name; 'moorage info NAME' lists its kernels."""

    code = "kernel_not_found"


class VolumeNotFound(NotFound):
    """There is no such volume, or it is not shared with you; 'moorage volume ls' lists what you have."""

    code = "volume_not_found"


class ShareNotFound(NotFound):
    """The volume is not shared with them; 'moorage volume show NAME' says with whom it is."""

    code = "share_not_found"


class DependencyNotFound(NotFound):
    """There is no such session of yours to depend on; 'moorage ps -a' lists yours."""

    code = "dependency_not_found"


class ResultsNotFound(NotFound):
    """No results are kept of this session: it has not ended, left none, or they are older than they are kept."""

    code = "results_not_found"


class TemplateNotFound(NotFound):
    """There is no such template, or it is not visible to you; 'moorage template ls' lists those that are."""

    code = "template_not_found"


class SshKeyNotFound(NotFound):
    """There is no such SSH key among yours; 'moorage ssh-key ls' lists them."""

    code = "ssh_key_not_found"


class PtyNotFound(NotFound):
    """There is no such terminal any more; open a new one."""

    code = "pty_not_found"


class KeypairNotFound(NotFound):
    """There is no such keypair; 'moorage admin keypair ls' lists those that you may see."""

    code = "keypair_not_found"


# -- conflicts ------------------------------------------------------------------------------------------------------
class Conflict(MoorageError):
    """This contradicts what is there already."""

    code, http_status = "conflict", 409


class DeviceUnhealthy(Conflict):
    """Its host says that the device is not fit to be used; repair it, and it comes back by itself."""

    code = "device_unhealthy"


class NameTaken(Conflict):
    """You already have a live session with this name; choose another, or take that one (--reuse, reuse_if_exists)."""

    code = "name_taken"


class SshKeyTaken(Conflict):
    """This SSH key is registered already; a key belongs to one user, so make another with 'ssh-keygen -t ed25519'."""

    code = "ssh_key_taken"


class TooManySshKeys(Conflict):
    """You have registered as many SSH keys as a user may; remove some with 'moorage ssh-key rm'."""

    code = "too_many_ssh_keys"


class AlreadyExists(Conflict):
    """There is one of this name already; choose another name, or remove that one first."""

    code = "already_exists"


class DependencyFailed(Conflict):
    """A session that this one depends on has failed; restart that one, or leave the dependency out."""

    code = "dependency_failed"


class DependencyCycle(Conflict):
    """The sessions would wait for each other for ever; take another dependency away first."""

    code = "dependency_cycle"


class VolumeNameTaken(Conflict):
    """You already have a volume with this name; choose another."""

    code = "volume_name_taken"


class VolumeAmbiguous(Conflict):
    """Several volumes of this name are shared with you; name the one you mean by its id."""

    code = "volume_ambiguous"


class VolumeMounted(Conflict):
    """The volume is mounted in sessions that have not ended; end them first."""

    code = "volume_mounted"


class VolumeNotReady(Conflict):
    """The volume is still being made; wait for its task."""

    code, retryable = "volume_not_ready", True


class VolumeReadOnly(PermissionDenied):
    """The volume is shared with you for reading only; its owner can share it for writing."""

    code = "volume_read_only"


class ResourceGroupInactive(Conflict):
    """This resource group takes no new sessions; choose another, or ask an administrator."""

    code = "resource_group_inactive"


class StillInUse(Conflict):
    """It is still in use; end what uses it first."""

    code = "still_in_use"


class WrongStatus(Conflict):
    """The session is in a status that does not allow this."""

    code = "wrong_status"


class SessionNotReady(WrongStatus):
    """The session is not running yet; wait for RUNNING ('moorage wait NAME') and ask again."""

    code, retryable = "session_not_ready", True


class SessionEnded(WrongStatus):
    """The session has ended; restart it, or create a new one."""

    code, http_status = "session_ended", 410


class SessionExpired(SessionEnded):
    """The session has expired: nobody called it within its idle_timeout; create a new one."""

    code = "session_expired"


class AppEnded(SessionEnded):
    """The app has ended its session; create a new one."""

    code = "app_ended"


class AppLoaded(Conflict):
    """An app is loaded in this session already; create a new session for another one."""

    code = "app_loaded"


class AppNotLoaded(Conflict):
    """No app is loaded in this session; a worker session loads its own when it starts."""

    code = "app_not_loaded"


class NotAWorker(WrongStatus):
    """Only worker sessions are called; create one with app=NAME, or run code with mode 'query'."""

    code = "not_a_worker"


class PreconditionFailed(MoorageError):
    """The session was changed by someone else in between; read it again and repeat with its new ETag."""

    code, http_status = "precondition_failed", 412


class IdempotencyMismatch(MoorageError):
    """This Idempotency-Key was used for another request; use a new key for a new request."""

    code, http_status = "idempotency_mismatch", 422


class RequestInProgress(Conflict):
    """The same request is being carried out right now; ask again with the same Idempotency-Key."""

    code, retryable = "request_in_progress", True


# -- resources and places -------------------------------------------------------------------------------------------
class ResourceUnavailable(MoorageError):
    """The resources did not become free within max_wait; ask for less, or wait longer."""

    code, http_status, retryable = "resource_unavailable", 503, True


class StartFailed(MoorageError):
    """The session could not be started; its status history says why."""

    code, http_status = "start_failed", 502


class InvalidLimit(InvalidRequest):
    """There is no such limit, or it cannot be so much; 'moorage admin policy create --help' names all limits."""

    code = "invalid_limit"


class InvalidPolicy(MoorageError):
    """The policy contradicts itself; change its limits so that all of them can be meant."""

    code, http_status = "invalid_policy", 422


class PolicyNotFound(NotFound):
    """There is no such policy; 'moorage admin policy ls' lists them."""

    code = "policy_not_found"


class PolicyInUse(Conflict):
    """The policy is assigned; take it from whoever has it ('moorage admin policy unassign') first."""

    code = "policy_in_use"


class QuotaExceeded(MoorageError):
    """This would exceed a quota; end or remove something, or ask an administrator for more."""

    code, http_status = "quota_exceeded", 422


class AgentUnavailable(MoorageError):
    """The session's host cannot be reached at the moment; the session goes on there: ask again shortly."""

    code, http_status, retryable = "agent_unavailable", 503, True


class NoVolumeStore(AgentUnavailable):
    """No host that is connected has the folder of this volume; an administrator names one as 'volumes' in agent.toml."""

    code = "no_volume_store"


class NoAgents(AgentUnavailable):
    """No host is connected that could take this session; an administrator adds one with 'moorage agent join'."""

    code = "no_agents"


class DatabaseUnavailable(MoorageError):
    """The database cannot be reached at the moment; nothing was lost: ask again shortly, with the same Idempotency-Key."""

    code, http_status, retryable = "database_unavailable", 503, True


class StorageFull(DatabaseUnavailable):
    """The manager's disk is full; running sessions go on, new ones are not admitted."""

    code = "storage_full"


# -- running code -----------------------------------------------------------------------------------------------------
class ExecutionTimeout(MoorageError):
    """The code ran longer than its timeout and was stopped; its output so far is kept."""

    code, http_status = "execution_timeout", 408


class ResourceExhausted(MoorageError):
    """The session ran out of memory, processes or disk space; use less, or ask for more when you create it."""

    code, http_status = "resource_exhausted", 507


class RunnerLost(MoorageError):
    """The session's runner is gone, and with it the running code; restart the session."""

    code, http_status = "runner_lost", 502


class NoShell(InvalidConfiguration):
    """The image has no shell; name a program to run."""

    code = "no_shell"


class SshGatewayOff(MoorageError):
    """This installation runs no SSH gateway; set ssh_port in its manager.toml."""

    code, http_status = "ssh_gateway_off", 501


class NoPython(InvalidConfiguration):
    """The image has no Python; run commands with mode 'batch' instead."""

    code = "no_python"


class NotWaitingForInput(Conflict):
    """This execution is not running any more, so nothing can be fed to it."""

    code = "not_waiting_for_input"


# -- files --------------------------------------------------------------------------------------------------------------
class FileError(MoorageError):
    """The file operation failed."""

    code, http_status = "file_error", 400


class FileNotFound(FileError):
    """There is no such file in the session; 'moorage ls SESSION' shows what is there."""

    code, http_status = "file_not_found", 404


class FilePermissionDenied(FileError):
    """The session's user may not read or write this file."""

    code, http_status = "file_permission_denied", 403


class InvalidPath(FileError):
    """The path leads outside the session's folders or through a symbolic link; name a file under /home/work."""

    code = "invalid_path"


class NotARegularFile(FileError):
    """This is a directory, device, pipe or link, not a regular file."""

    code = "not_a_regular_file"


class FileExists(FileError):
    """There is a file of this name already; pass overwrite, or choose another name."""

    code, http_status = "file_exists", 409


class StateFull(InvalidRequest):
    """A session's state takes 1 MiB in 1,000 keys of 128 characters, and 64 KiB a value; put more into files."""

    code, http_status = "state_full", 422


class StateBusy(Conflict):
    """A program of the session holds its state's lock and does not let go; try again, or end that program."""

    code, retryable = "state_busy", True


class StateDamaged(Conflict):
    """The file of the session's state is not what Moorage has written: a program of the session has changed it."""

    code = "state_damaged"


class ArchiveRefused(FileError):
    """The archive holds something that is not unpacked; nothing of it was kept."""

    code, http_status = "archive_refused", 422


class RangeNotSatisfiable(FileError):
    """The requested range lies outside the file."""

    code, http_status = "range_not_satisfiable", 416


class TransferFailed(FileError):
    """The transfer broke off and nothing was kept; repeat it."""

    code, http_status, retryable = "transfer_failed", 502, True


# -- services (declared here with the rest of the seed's scenarios; raised by the service actions) -----------------------
class ServiceError(MoorageError):
    """The service could not be started or reached."""

    code, http_status = "service_error", 502


class PortConflict(Conflict):
    """Another service of this session uses this port already; choose another port."""

    code = "port_conflict"


class ServiceFailed(ServiceError):
    """The service's process ended or did not answer in time; its last output is attached."""

    code = "service_failed"


class NothingListens(ServiceError):
    """Nothing listens on this port in the session; start a program that does, on 127.0.0.1 or on all addresses."""

    code, retryable = "nothing_listens", True


class ServiceEnded(ServiceFailed):
    """The service's process ended before it answered; its last output is attached."""

    code = "service_ended"


class ServiceSilent(ServiceFailed):
    """The service's process runs, and did not answer in time; its last output is attached."""

    code = "service_silent"


class ServiceNotFound(NotFound):
    """The session has no service of this name; 'moorage service ls' lists those that it has."""

    code = "service_not_found"


class ServiceUnknown(InvalidConfiguration):
    """The image declares no such service, and no command and no port was given; give one of them."""

    code = "service_unknown"


class ServiceRuns(Conflict):
    """The session runs a service of this name with other settings; shut it down first, or choose another name."""

    code = "service_runs"


class TicketInvalid(MoorageError):
    """This ticket is not valid, or not for this service; ask for a new address with 'moorage service url'."""

    code, http_status = "ticket_invalid", 401


class TicketUsed(TicketInvalid):
    """This ticket was used before, and is good for one use; ask for a new address with 'moorage service url'."""

    code = "ticket_used"


class TicketExpired(TicketInvalid):
    """This ticket has expired; ask for a new address with 'moorage service url'."""

    code = "ticket_expired"


class ServiceUnreachable(ServiceError):
    """The service cannot be reached through the proxy at the moment; ask again shortly."""

    code, retryable = "service_unreachable", True


# -- snapshots, images and registries -------------------------------------------------------------------------------
class InvalidImageName(InvalidRequest):
    """A snapshot's name has 1 to 128 letters, digits, '_', '-' or '.'; an image for a registry is HOST/REPOSITORY:TAG in lower case."""

    code = "invalid_image_name"


class RegistryNotFound(NotFound):
    """No registry of this name is known here; 'moorage registry ls' lists those that are."""

    code = "registry_not_found"


class ImageNameTaken(Conflict):
    """There is an image of this name already; choose another name, or remove it with 'moorage image rm'."""

    code = "image_name_taken"


class ImageNotReady(Conflict):
    """This image is still being made; 'moorage task ls' shows how far it is."""

    code, retryable = "image_not_ready", True


class CommitInProgress(Conflict):
    """The session stands still for a moment because it is being committed; ask again shortly."""

    code, retryable = "commit_in_progress", True


class CommitFailed(MoorageError):
    """The session could not be committed, and nothing was kept of the attempt; the session goes on."""

    code, http_status = "commit_failed", 502


class HostStorageFull(ResourceExhausted):
    """The session's host has no disk space left for this, and nothing was kept of it; remove images or files there first."""

    code = "host_storage_full"


class RegistryUnreachable(MoorageError):
    """The registry does not answer; check its address, and that the hosts may reach it."""

    code, http_status = "registry_unreachable", 502


class RegistryDenied(MoorageError):
    """The registry refuses these credentials; set others with 'moorage registry login HOST'."""

    code, http_status = "registry_denied", 403


class PushFailed(MoorageError):
    """The registry did not take the image, and nothing was kept of the attempt; the session goes on."""

    code, http_status = "push_failed", 502


class SecretUnreadable(MoorageError):
    """The password that is kept for this registry cannot be read any more; set it again with 'moorage registry login HOST'."""

    code, http_status = "secret_unreadable", 500


class Internal(MoorageError):
    """Something went wrong in Moorage itself; report the request id to your administrator."""

    code, http_status = "internal", 500


def all_errors(base: type[MoorageError] = MoorageError) -> Iterator[type[MoorageError]]:
    """Every error class of this file, depth first, in its order. A front's own kinds speak with their parent's code."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == __name__:
            yield from all_errors(child)


#: By code, for both ends of a wire: an error sent as a code comes back as the same class.
BY_CODE = {error.code: error for error in all_errors()}


def from_code(code: str, message: str, **facts: object) -> MoorageError:
    return BY_CODE.get(code, Internal)(message, **facts)


def as_markdown() -> str:
    rows = [
        f"| `{error.code}` | {error.http_status} | {'yes' if error.retryable else ''} | {error().message} |"
        for error in sorted(all_errors(), key=lambda e: (e.http_status, e.code))
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            "Generated by `python -m domain`; do not edit. Every error is an RFC 9457 problem document with a",
            "stable `code`. *Retry*: the same request, unchanged, may succeed later.",
            "",
            "| code | HTTP | retry | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
