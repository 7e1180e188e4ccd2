"""What manager and agent say to each other. Both sides import this file; nothing else is shared.

Messages are msgpack maps over one WebSocket per manager process (`agent/rpc.py` carries them). Bulk data goes over
TCP connections of its own, which the agent dials with a ticket. Times are unix seconds, sizes bytes unless the name
says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from domain.errors import InvalidRequest

PROTOCOL_VERSION: Final = 2
#: The release before this one speaks it, and each release understands the one before.
OLDEST_PROTOCOL: Final = 1
#: One WebSocket frame; longer messages are split, so that none holds up the others.
MAX_FRAME_BYTES: Final = 64 * 1024
#: One whole message, put together again.
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024

# Requests from manager to agent. Each name is a method of `agent.client.AgentClient`, whose docstring says what it does.
ENSURE: Final = "ensure"
EXECUTE: Final = "execute"
READ: Final = "read"
INPUT: Final = "input"
INTERRUPT: Final = "interrupt"
KILL: Final = "kill"
COMPLETE: Final = "complete"
STATE: Final = "state"
LIST_FILES: Final = "list_files"
MANAGE_FILE: Final = "manage_file"
OPEN_STREAM: Final = "open_stream"
STATISTICS: Final = "statistics"
START_SERVICE: Final = "start_service"
STOP_SERVICE: Final = "stop_service"
GRANT_DIRECT: Final = "grant_direct"
PULL_IMAGE: Final = "pull_image"
PUSH_IMAGE: Final = "push_image"
COMMIT: Final = "commit"
CANCEL_JOB: Final = "cancel_job"
VOLUME_USAGE: Final = "volume_usage"
CLONE_VOLUME: Final = "clone_volume"
REMOVE_VOLUME: Final = "remove_volume"
LIST_IMAGES: Final = "list_images"
REMOVE_IMAGE: Final = "remove_image"
CENSUS: Final = "census"
PING: Final = "ping"

# From agent to manager. `hello` opens a connection; what it tells of is answered, and sent again until it is.
HELLO: Final = "hello"
HEARTBEAT: Final = "heartbeat"
FACTS: Final = "facts"
RUNS_DONE: Final = "runs_done"
SAMPLES: Final = "samples"
SERVICES: Final = "services"
DEVICES: Final = "devices"
DEVICE_CHECKS: Final = "device_checks"
PROGRESS: Final = "progress"
CREDENTIALS: Final = "credentials"
RENEW: Final = "renew"

# From manager to agent, without an answer: the list of managers has changed.
MANAGERS: Final = "managers"

_AGENT_ID: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


def check_agent_id(agent_id: str) -> str:
    """Raises ValueError for what no host may be called."""
    if not _AGENT_ID.fullmatch(agent_id):
        raise ValueError(f"'{agent_id[:80]}' is no name for an agent: use letters, digits, '-' and '.'")
    return agent_id


M = TypeVar("M", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A value that travels as a msgpack map of its fields."""

    def pack(self) -> dict[str, Any]:
        """Its fields as they are, not copies: it is on its way into msgpack or JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def unpack(cls, data: dict[str, Any]) -> Self:
        """From the other side: unknown fields are left out, so that N and N-1 understand each other."""
        known = cls.__dataclass_fields__
        return cls(**{k: v for k, v in data.items() if k in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec(Message):
    """Everything an agent needs to bring one kernel up. Holds no credential, key id or e-mail address."""

    session_id: str
    session_name: str
    role: str = "main"  #: main, or worker
    index: int = 1
    image: str  #: as the engine knows it
    #: this attempt has been heard of: it is to go on where it is there, and never to begin a second time
    begun: bool = False
    architecture: str = "x86_64"
    slots: dict[str, int] = field(default_factory=dict)  #: milli-CPU, MiB, units
    devices: dict[str, int] = field(default_factory=dict)  #: allocated devices, by slot name `gpu/UUID`
    environ: dict[str, str] = field(default_factory=dict)
    bootstrap_script: str | None = None
    bootstrap_required: bool = False
    #: a batch session's work: the kernel is EXITED with its result when this ends. Its run id is the kernel id.
    startup_command: str | None = None
    #: a worker session: its main work is an app that is loaded and called; the kernel is EXITED when the app's process ends
    worker: bool = False
    outputs: list[str] = field(default_factory=list)  #: globs below /home/work of what is kept after the end
    preopen_ports: list[int] = field(default_factory=list)  #: that services may have from the start
    shm_mib: int | None = None  #: None: half of the memory
    disk_quota_mib: int | None = None  #: of /home/work; None: the agent's default
    pids: int | None = None  #: None: the agent's default
    #: a kernel of a cluster: the mode of its session, single-node or multi-node
    cluster: str | None = None
    network: dict[str, Any] | None = None  #: the cluster's; fields as in `ClusterNetwork`
    #: volumes: {volume, name, store, uid, gid, path, subpath, read_only, refused: why it may not be mounted any more}
    mounts: list[dict[str, Any]] = field(default_factory=list)
    uid: int | None = None  #: of everything in the container, for homes on NFS; None: the agent's usual one
    gid: int | None = None
    #: it is ended when no control process has answered for so long, for it is begun anew elsewhere then; None: never
    lease_seconds: float | None = None
    profile: str = "hardened"  #: domain.isolation.Profile
    egress: str = "open"  #: domain.isolation.Egress


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNetwork(Message):
    """A cluster session's network, as one of its kernels is to see it. It changes when kernels come and go."""

    subnet: str
    gateway: str  #: of this host: each host of the session has its own
    address: str  #: of this kernel
    vni: int  #: the number of the VXLAN between the session's hosts
    hosts: list[list[str]]  #: [name, address] of all kernels by rank, the main one first
    peers: list[str] = field(default_factory=list)  #: addresses of the session's other hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec(Message):
    """A process to attach to: a new one, or a terminal that is known by its id."""

    process: str | None = None  #: a terminal's id; one that is known is attached to, whatever else is said
    resume: bool = False  #: it must be known
    after: int | None = None  #: output bytes that have been seen already, and are not to come again
    terminal: bool = False  #: on a terminal of its own; else stdin, stdout and stderr are pipes
    rows: int = 24
    cols: int = 80
    term: str = "xterm-256color"
    argv: list[str] | None = None  #: None: the user's shell
    shell: str | None = None  #: a command for the shell, instead
    program: str | None = None  #: one of the runner's own, instead: sftp
    cwd: str | None = None
    environ: dict[str, str] = field(default_factory=dict)
    idle_seconds: float | None = None  #: a terminal on which nothing moves for so long is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact(Message):
    """What is true of one kernel on its agent. A newer (boot_no, seq) replaces an older one, whoever carries it."""

    kernel_id: str
    attempt: int
    generation: int  #: of the intent that the agent has taken on
    observed: str  #: domain.session.KernelState
    exit: dict[str, Any] | None = None  #: {reason, exit_code, signal, message, finished}; see `exit_record`
    started_at: float | None = None
    #: notices for the owner: {kind, message, log_tail}, such as a bootstrap script that failed
    notices: list[dict[str, Any]] = field(default_factory=list)
    container_id: str | None = None
    boot_no: int = 0
    seq: int = 0


def digest(facts: Iterable[Fact]) -> str:
    """Two sides with the same digest know the same of every kernel that is not gone."""
    lines = sorted(f"{f.kernel_id} {f.attempt} {f.generation} {f.observed}" for f in facts if f.observed != "GONE")
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def exit_record(
    reason: str,
    message: str,
    *,
    exit_code: int | None = None,
    signal: int | None = None,
    finished: bool = False,
) -> dict[str, Any]:
    """How a kernel ended.

    `reason` is one of finished, out_of_memory, killed, disappeared, runner_lost, image_missing, create_failed,
    bootstrap_failed, mount_refused, agent_restarted, device_failed (a device of it is not fit to be used, and is reported
    as such), ended (a worker session's app has ended it), worker_lost (the app's process was lost), fenced (its lease was
    over), superseded (a manager says so: a later attempt is there), gpu_unsupported (the host's engine hands no devices to
    containers), gpu_overused, quota_exceeded, disk_full (see agent.disk); `finished` is true when the main work came to
    its own end.
    """
    return {"reason": reason, "message": message, "exit_code": exit_code, "signal": signal, "finished": finished}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHello(Message):
    """The first message on every connection."""

    protocol: int = PROTOCOL_VERSION  #: the newest that the agent speaks
    oldest_protocol: int = OLDEST_PROTOCOL  #: and the oldest; protocol 1 does not say
    agent_id: str
    uid: str  #: of the data dir: a new one means that the agent remembers nothing
    boot_no: int  #: counts starts of the daemon on this data dir
    version: str
    hostname: str
    architecture: str
    resources: dict[str, int]  #: advertised capacity, after --reserve: cpu milli, mem MiB, ...
    info: dict[str, Any] = field(default_factory=dict)  #: engine version, live_restore, kernel, warnings for admins
    facts: list[dict[str, Any]] = field(default_factory=list)  #: the full inventory
    images: list[str] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)  #: `DeviceFact`s; amounts: `resources`
    devices_seq: int = 0  #: as that of `DeviceList`: the list of which this is, or came after
    holds: dict[str, dict[str, int]] = field(default_factory=dict)  #: the slots of each kernel that has a container
    beside: bool = False  #: the connection before still works: what was asked over it is answered there


def common_protocol(said: AgentHello) -> int:
    """What both sides speak: the newest of the older one. Raises InvalidRequest when that is too old for either."""
    common = min(said.protocol, PROTOCOL_VERSION)
    if common < max(OLDEST_PROTOCOL, said.oldest_protocol if said.protocol > 1 else 1):
        older = "agent" if said.protocol < PROTOCOL_VERSION else "manager"
        raise InvalidRequest(
            f"The agent speaks protocol {said.protocol}, the manager {PROTOCOL_VERSION}, and they understand only one "
            f"release apart; upgrade the {older} (version {said.version} is the agent's)."
        )
    return common


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFact(Message):
    """What is true of a GPU, or of a MIG instance, which is a device of its own, as its driver tells it.

    A device that is not `healthy` is to be given to nobody: it has its `reason`, and stays in the list as long as anybody
    knows of it. `offered_mib` is its amount in the host's resources: what it has, less what is kept for others.
    """

    name: str  #: gpu/UUID
    model: str
    memory_mib: int  #: all it has
    offered_mib: int
    index: int = 0  #: the driver's number
    numa: int | None = None
    #: how close other devices are, 0 to 100, by name: 90 NVLink (more with more links), 60 a PCIe switch, 40 the same
    #: host bridge, 20 the same NUMA node, 10 the same machine
    links: dict[str, int] = field(default_factory=dict)
    parent: str | None = None  #: of a MIG instance: its GPU, which is in nobody's list
    profile: str | None = None  #: of a MIG instance: 1g.10gb
    whole_only: bool = False  #: is not shared: a MIG instance
    #: people outside Moorage are on it, which is what this says; it can be shared, but is not to be given out whole
    shared_only: str | None = None
    outside_mib: int = 0  #: what they use of its memory
    driver: str = ""  #: 570.86.15
    cuda: str = ""  #: the newest that the driver can: 12.8
    healthy: bool = True
    reason: str | None = None  #: why it is not, in words
    simulated: bool = False  #: a mock of the driver's library made it up: tests


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceList(Message):
    """All devices of a host, whenever something about one has changed since hello. The newest (boot_no, seq) is true."""

    devices: list[dict[str, Any]]  #: each a `DeviceFact`
    resources: dict[str, int]  #: of these devices, by name: replaces what hello said of names that begin with gpu/
    boot_no: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck(Message):
    """A device was looked at. Told again until it is taken: `check_id` stays the same."""

    check_id: str
    device: str  #: gpu/UUID
    phase: str  #: handover, release, watch
    passed: bool
    at: float
    kernel_id: str | None = None
    session_id: str | None = None
    attempt: int = 1
    #: {message, findings: [words], warning, model, memory_mib, memory_used_mib, temperature_c, power_watts, ecc_uncorrected,
    #: retired_pages, throttle: [words], xid: [numbers], processes: how many, processes_mib, driver, simulated,
    #: test: {name, passed, seconds, output, skipped}}; of a watch: {message, used_mib, share_mib, seconds, ended}
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """The manager's answer to hello."""

    manager_id: str
    role: str  #: api, control or proxy; facts go to a control
    managers: list[dict[str, Any]] = field(
        default_factory=list
    )  #: [{id, role, url}] to dial; the first has `closed`, too
    heartbeat_seconds: float = 5.0
    lease_seconds: float = 30.0
    protocol: int = 1  #: what both sides speak from now on
    #: of the database: a new one means that it was restored from a backup, and is to be told everything again. 0: unknown
    epoch: int = 0
    authorities: str | None = None  #: PEM: all that are to be trusted, the one that signs first


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRead(Message):
    """A piece of one run's output: ring records as the runner wrote them, `!IQBd` header (length, seq, kind, time) and payload."""

    run_id: str
    records: bytes = b""
    next_seq: int = 0  #: read on from here
    gap: tuple[int, int] | None = None  #: [first, last] sequence numbers that are no longer kept, before `records`
    status: str = "running"  #: queued, running, waiting_input, done
    #: {exit_code, signal, reason, namespace_lost, finished_at, started_at, bytes}; reason as in docs/runner.md
    done: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDone(Message):
    """A finished run, told again until acknowledged."""

    run_id: str
    kernel_id: str
    attempt: int
    started_at: float | None
    finished_at: float
    exit_code: int | None
    signal: int | None = None
    reason: str = "finished"
    last_seq: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """What one kernel used during some seconds that ended at `at`. Told again until it is taken."""

    kernel_id: str
    attempt: int
    at: float
    seconds: float
    cpu_seconds: float = 0.0
    mem_bytes: int = 0  #: at the end, without file cache that nobody uses
    disk_bytes: int | None = None  #: of its working folder, as last counted
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    pids: int = 0  #: processes and threads, at the end
    forks_refused: int = 0  #: for want of room under its limit of processes
    oom_kills: int = 0
    gpus: int = 0  #: devices that told of themselves
    gpu_seconds: float = 0.0  #: 1 per second for each device that was at work all the time
    gpu_mem_bytes: int = 0  #: of a share, what the kernel's own processes use; of whole devices, all that is used
    gpu_power_watts: float = 0.0  #: at the end, over its devices; of a shared one, its part by memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec(Message):
    """A program that an agent keeps running in one kernel, or only a port of it that is watched."""

    name: str
    generation: int
    port: int
    argv: list[str] = field(default_factory=list)  #: empty: somebody else starts what listens there
    environ: dict[str, str] = field(default_factory=dict)
    path: str | None = None  #: answers to GET when it is ready and healthy; None: a connection is enough
    ready_seconds: float = 60.0  #: from its start to its first answer
    most_restarts: int = 5  #: within 10 minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFact(Message):
    """What is true of one service in one kernel. A newer (boot_no, seq) replaces an older one."""

    kernel_id: str
    attempt: int
    name: str
    generation: int
    state: str  #: starting, healthy, unhealthy, failed, stopped
    restarts: int = 0
    message: str | None = None
    log_tail: str | None = None  #: of the run that ended last, when it ended by itself
    run_id: str | None = None  #: whose output is its log
    at: float = 0.0
    boot_no: int = 0
    seq: int = 0


# -- ring records, as the runner wrote them (docs/runner.md) --------------------------------------------------------------
RECORD: Final = struct.Struct("!IQBd")
RECORD_KINDS: Final = ("", "stdout", "stderr", "result", "error", "input_request", "status", "done")


@dataclass(frozen=True, slots=True)
class Record:
    seq: int
    kind: str  #: one of RECORD_KINDS
    time: float
    payload: bytes  #: output bytes, or JSON; from a container, so anything at all

    @property
    def data(self) -> dict[str, Any]:
        """The JSON of a record that is not output; what is no object becomes an empty one."""
        try:
            data = json.loads(self.payload)
        except (ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}


def decode_records(data: bytes) -> Iterator[Record]:
    """The whole records in `data`; stops at the first that is broken."""
    at = 0
    while at + RECORD.size <= len(data):
        length, seq, kind, time = RECORD.unpack_from(data, at)
        end = at + RECORD.size + length
        if end > len(data) or not 0 < kind < len(RECORD_KINDS):
            return
        yield Record(seq, RECORD_KINDS[kind], time, data[at + RECORD.size : end])
        at = end
