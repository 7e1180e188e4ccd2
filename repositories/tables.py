"""Every table, as Alembic's target; the invariants that a row can break are constraints here.

Nothing executes through these objects but dynamic searches: the statements of the hot paths are text beside their use.
Triggers and functions are in migrations/versions; `tests/repositories/test_schema.py` holds both against each other.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, JSONB

from domain.dependency import Condition
from domain.principal import Role, TokenScope
from domain.session import FINAL, Event, KernelState, OnAgentLost, SessionTypes, Status, Want

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

#: Grown tables that are cut into ranges of time and forgotten by dropping whole partitions.
PARTITIONED: Final = ("events", "audit", "samples", "sample_minutes")


def _one_of(column: str, words: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(w)) for w in words)})"


def _at(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def _now(name: str) -> sa.Column[Any]:
    return _at(name, nullable=False, server_default=sa.func.now())


def _json(name: str, default: str | None = "{}", nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, JSONB, nullable=nullable, server_default=sa.text(f"'{default}'") if default else None)


def _int(name: str, default: int = 0) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text(str(default)))


def _flag(name: str, default: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.true() if default else sa.false())


_SCOPES: Final = ",".join(sorted(TokenScope))
NOT_FINAL: Final = f"status NOT IN ({', '.join(repr(str(s)) for s in sorted(FINAL))})"

# -- who ---------------------------------------------------------------------------------------------------------
domains = sa.Table(
    "domains", metadata, sa.Column("name", sa.Text, primary_key=True), _flag("active", True), _now("created_at")
)
projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("domain", sa.ForeignKey("domains.name"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _now("created_at"),
    sa.UniqueConstraint("domain", "name"),
)
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.Text, nullable=False, unique=True),
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("domain", sa.ForeignKey("domains.name"), nullable=False),
    sa.Column("role", sa.Text, nullable=False, server_default="user"),
    _flag("active", True),
    _now("created_at"),
    sa.Column("uid", sa.BigInteger),  # of their containers and volumes; NULL: everybody's
    sa.Column("gid", sa.BigInteger),
    sa.CheckConstraint(_one_of("role", Role), name="role"),
    sa.CheckConstraint("uid > 0 AND gid > 0", name="ids"),
)
project_members = sa.Table(
    "project_members",
    metadata,
    sa.Column("project_id", sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    _flag("administers"),
    sa.Index(None, "user_id"),
)
keypairs = sa.Table(
    "keypairs",
    metadata,
    sa.Column("access_key", sa.Text, primary_key=True),
    sa.Column(
        "secret_hash", sa.LargeBinary, nullable=False
    ),  # sha256 of 32 random bytes: nothing to guess, so no slow hash
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    _flag("active", True),
    _now("created_at"),
    sa.Column("requests_per_second", sa.Double),  # NULL: as many as it likes
    sa.Column("previous_hash", sa.LargeBinary),  # of the secret before the last one: good until `previous_until`
    _at("previous_until"),
    _at("rotated_at"),
    sa.Column("signing_sealed", sa.LargeBinary),  # what requests may be signed with, sealed; NULL: with nothing
    _at("signing_since"),
    sa.Index(None, "user_id"),
    sa.CheckConstraint("requests_per_second > 0", name="requests_per_second"),
    sa.CheckConstraint("(previous_hash IS NULL) = (previous_until IS NULL)", name="previous"),
    sa.CheckConstraint("(signing_sealed IS NULL) = (signing_since IS NULL)", name="signing"),
)
#: Of requests that changed something: each is good for one.
used_signatures = sa.Table(
    "used_signatures",
    metadata,
    sa.Column("signature", sa.LargeBinary, primary_key=True),
    _at("good_until", nullable=False),
    sa.Index(None, "good_until"),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("token_hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("access_key", sa.ForeignKey("keypairs.access_key", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _at("expires_at", nullable=False),
    _now("created_at"),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False, server_default=sa.text(f"'{{{_SCOPES}}}'")),
    sa.Column("kind", sa.Text, nullable=False, server_default="token"),  # sign_in: given for a password
    sa.Index(None, "access_key"),
    sa.CheckConstraint("kind IN ('token', 'sign_in')", name="kind"),
    sa.CheckConstraint(f"scopes <@ '{{{_SCOPES}}}' AND 'read' = ANY (scopes)", name="scopes"),
)
#: argon2id, in PHC's words.
passwords = sa.Table(
    "passwords",
    metadata,
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("hash", sa.Text, nullable=False),
    _now("set_at"),
)
#: Until when the wrong passwords of an account, or from an address, are paid for; by a hash of its name.
sign_in_debts = sa.Table(
    "sign_in_debts",
    metadata,
    sa.Column("key", sa.LargeBinary, primary_key=True),
    _at("until_at", nullable=False),
    sa.Index(None, "until_at"),
)
ssh_keys = sa.Table(
    "ssh_keys",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("access_key", sa.ForeignKey("keypairs.access_key", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False, unique=True),
    _now("created_at"),
    sa.Index(None, "access_key"),
)

# -- what runs where ---------------------------------------------------------------------------------------------
images = sa.Table(
    "images",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("architecture", sa.Text, nullable=False),
    _json("labels"),
    _now("created_at"),
    sa.Column("kind", sa.Text, nullable=False, server_default="registered"),
    sa.Column("status", sa.Text, nullable=False, server_default="ready"),
    sa.Column("title", sa.Text),  # what its owner calls it
    sa.Column("owner_id", sa.ForeignKey("users.id", ondelete="SET NULL")),
    sa.Column("visibility", sa.Text, nullable=False, server_default="public"),
    sa.Column("project_id", sa.ForeignKey("projects.id", ondelete="SET NULL")),  # that it is visible to
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE")),  # the only host that has it
    sa.Column("session_id", sa.Uuid),  # that it was made of
    sa.Column("task_id", sa.Uuid),  # by which it was made
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("digest", sa.Text),  # in its registry
    sa.CheckConstraint("kind IN ('registered', 'snapshot', 'built')", name="kind"),
    sa.CheckConstraint("status IN ('making', 'ready')", name="status"),
    sa.CheckConstraint("visibility IN ('public', 'project', 'user')", name="visibility"),
    sa.Index("images_title_key", "owner_id", "title", unique=True, postgresql_where=sa.text("title IS NOT NULL")),
    sa.Index(None, "agent_id"),
)
#: Credentials for registries; the password is sealed with a key that is not in the database.
registries = sa.Table(
    "registries",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("owner_id", sa.ForeignKey("users.id", ondelete="CASCADE")),  # NULL: for everybody's images
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    _now("created_at"),
    _now("changed_at"),
    sa.Index("registries_common_key", "host", unique=True, postgresql_where=sa.text("owner_id IS NULL")),
    sa.Index("registries_own_key", "host", "owner_id", unique=True, postgresql_where=sa.text("owner_id IS NOT NULL")),
)
image_aliases = sa.Table(
    "image_aliases",
    metadata,
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("image", sa.ForeignKey("images.name", ondelete="CASCADE"), nullable=False),
    sa.Index(None, "image"),
)
#: Hosts that are shared by one policy.
resource_groups = sa.Table(
    "resource_groups",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("ordering", sa.Text, nullable=False, server_default="fair_share"),
    sa.Column("fit", sa.Text, nullable=False, server_default="pack"),
    _flag("backfill", True),
    _flag("gpu_sharing"),
    sa.Column("half_life_seconds", sa.Double, nullable=False, server_default=sa.text("604800")),
    _flag("open"),  # everybody may use it; otherwise those of resource_group_access
    _flag("active", True),  # takes new sessions
    sa.Column("profile", sa.Text, nullable=False, server_default="hardened"),  # domain.isolation.Profile
    sa.Column("egress", sa.Text, nullable=False, server_default="open"),
    _now("created_at"),
    sa.CheckConstraint("ordering IN ('fifo', 'fair_share')", name="ordering"),
    sa.CheckConstraint("fit IN ('pack', 'spread')", name="fit"),
    sa.CheckConstraint("profile IN ('hardened', 'standard')", name="profile"),
    sa.CheckConstraint("egress IN ('none', 'open')", name="egress"),
    sa.CheckConstraint("half_life_seconds BETWEEN 60 AND 315360000", name="half_life"),
)
resource_group_access = sa.Table(
    "resource_group_access",
    metadata,
    sa.Column("resource_group", sa.ForeignKey("resource_groups.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("scope_id", sa.Text, primary_key=True),
    sa.CheckConstraint("scope IN ('user', 'project', 'domain')", name="scope"),
)
#: Weights of users in a group; 1 for who has none.
fair_shares = sa.Table(
    "fair_shares",
    metadata,
    sa.Column("resource_group", sa.ForeignKey("resource_groups.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("weight", sa.Double, nullable=False),
    sa.CheckConstraint("weight BETWEEN 0.001 AND 1000", name="weight"),
    sa.Index(None, "user_id"),
)
#: What users held and hold no more, decayed up to `at`: slot-seconds, by kind. The sum of what is `counted` in `usage`.
fair_usage = sa.Table(
    "fair_usage",
    metadata,
    sa.Column("resource_group", sa.ForeignKey("resource_groups.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # cpu, mem, gpu
    sa.Column("amount", sa.Double, nullable=False),
    _at("at", nullable=False),
    sa.Index(None, "user_id"),
)
agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text),  # of its data dir; NULL until its first hello
    sa.Column("fingerprint", sa.Text, nullable=False),  # sha256 of its certificate
    sa.Column("hostname", sa.Text, nullable=False, server_default=""),
    sa.Column("architecture", sa.Text, nullable=False, server_default=""),
    sa.Column("version", sa.Text, nullable=False, server_default=""),
    _flag("schedulable", True),
    _int("boot_no"),
    _json("info"),
    sa.Column("images", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
    _at("seen_at"),
    _at("lease_until"),
    _flag("lost"),
    _now("created_at"),
    sa.Column("resource_group", sa.ForeignKey("resource_groups.name"), nullable=False, server_default="default"),
    _json("labels"),
    _at("cordoned_at"),  # NULL while it is schedulable
    sa.Column("cordon_reason", sa.Text),
    _flag("draining"),  # what is there is to go
    _flag("drain_moves"),  # batch sessions begin again elsewhere
    _at("drain_until"),  # when those that are left are ended; NULL: never
    _at("drained_at"),  # since then nothing is there any more
    sa.CheckConstraint("NOT draining OR NOT schedulable", name="draining"),
    _int("devices_boot_no"),  # which list of its devices was heard last: of that start of the daemon, ...
    _int("devices_seq"),  # ... the how many-eth
    sa.Column("next_fingerprint", sa.Text),  # of a renewed certificate that it has not shown yet
    sa.Column("former_fingerprint", sa.Text),  # of the one before, ...
    _at("former_until"),  # ... which counts until then
    _at("renewed_at"),
    _at("revoked_at"),  # since then no certificate of it counts
)
agent_tokens = sa.Table(
    "agent_tokens",
    metadata,
    sa.Column("secret_hash", sa.LargeBinary, primary_key=True),
    _at("expires_at", nullable=False),
    _at("used_at"),
    sa.Column("agent_id", sa.Text),
    _now("created_at"),
)
managers = sa.Table(
    "managers",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("agent_url", sa.Text),
    _now("started_at"),
    _now("seen_at"),
)
resources = sa.Table(
    "resources",
    metadata,
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    _int("capacity"),  # never below `used`, also when the agent now reports less
    _int("reported"),
    _int("used"),
    sa.CheckConstraint("used BETWEEN 0 AND capacity", name="used"),
    sa.CheckConstraint("reported BETWEEN 0 AND capacity", name="reported"),
)
#: What is known of a host's GPUs; their amounts are in `resources`.
devices = sa.Table(
    "devices",
    metadata,
    sa.Column("agent_id", sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # gpu/UUID
    sa.Column("model", sa.Text, nullable=False, server_default=""),
    sa.Column("memory_mib", sa.BigInteger, nullable=False),
    _json("info"),
    _at("seen_at", nullable=False),
    _at("out_since"),  # taken out: not handed to anybody
    sa.Column("out_reason", sa.Text),
    sa.Column("out_by", sa.Text),
    _int("offered_mib"),  # of its memory; while it is out or missing, nothing of it is in `resources`
    _flag("healthy", True),  # as its agent said last
    _at("missing_since"),  # its agent has not named it any more
    sa.CheckConstraint("memory_mib >= 0 AND offered_mib >= 0", name="amounts"),
    sa.CheckConstraint(
        "(out_since IS NULL) = (out_reason IS NULL) AND (out_since IS NULL) = (out_by IS NULL)", name="out"
    ),
    sa.CheckConstraint("out_by IN ('admin', 'health')", name="out_by"),
)
#: What was found when a device was handed over, given back, or watched.
device_checks = sa.Table(
    "device_checks",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("session_id", sa.Uuid),
    sa.Column("kernel_id", sa.Uuid),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("passed", sa.Boolean, nullable=False),
    _json("data"),
    _at("at", nullable=False),
    sa.Column("check_id", sa.Text, nullable=False),  # agents tell theirs until they are taken
    sa.Column("attempt", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.CheckConstraint("phase IN ('handover', 'release', 'watch')", name="phase"),
    sa.UniqueConstraint("agent_id", "check_id"),
    sa.Index(None, "session_id"),
    sa.Index(None, "agent_id", "name"),
    sa.Index(None, "at"),
)

# -- sessions ----------------------------------------------------------------------------------------------------
session_transition = sa.Table(
    "session_transition",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("event", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, nullable=False),
    sa.UniqueConstraint("source", "event", "target"),
    sa.CheckConstraint(_one_of("event", Event), name="event"),
)
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("access_key", sa.Text, nullable=False),
    sa.Column("domain", sa.ForeignKey("domains.name"), nullable=False),
    sa.Column("project_id", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("session_type", sa.Text, nullable=False),
    sa.Column("cluster_mode", sa.Text, nullable=False),
    _int("cluster_size", 1),
    sa.Column("image", sa.Text, nullable=False),
    sa.Column("architecture", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("prev_status", sa.Text),
    sa.Column("status_reason", sa.Text),
    _int("attempt", 1),
    _int("version", 1),
    _int("activity"),  # counts what changes the row without changing its version: runs and transfers
    _json("requested_slots"),
    sa.Column("tag", sa.Text),
    _json("environ"),
    sa.Column("bootstrap_script", sa.Text),
    _flag("bootstrap_required"),
    sa.Column("startup_command", sa.Text),
    sa.Column("shm_mib", sa.BigInteger),
    _int("priority", 10),
    sa.Column("timeout_seconds", sa.Double),
    sa.Column("max_wait_seconds", sa.Double),
    _at("starts_at"),  # not placed before
    sa.Column("batch_timeout_seconds", sa.Double),
    _int("max_retries"),
    sa.Column("retry_delay_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
    _int("retries"),  # that have been begun
    _flag("retrying"),  # it ends, and another attempt follows
    _int("replaced"),  # so often a device failed before its work began, and it was placed again
    _json("outputs", "[]"),
    _json("labels"),
    _json("preopen_ports", "[]"),
    sa.Column("callback_url", sa.Text),
    sa.Column("idle_timeout_seconds", sa.Double),
    _json("inference", None, nullable=True),  # the service that an inference session keeps, as `services` has it
    _int("unmet"),  # dependencies that do not hold yet; written by the triggers of session_dependencies alone
    sa.Column("result", sa.Text, nullable=False, server_default="UNDEFINED"),
    sa.Column("exit_code", sa.Integer),
    _flag("failed"),
    _flag("agent_lost"),
    _json("notices", "[]"),
    _now("created_at"),
    _now("status_changed_at"),
    _at("started_at"),
    _at("ended_at"),
    _at("expires_at"),  # PENDING: max_wait is over; RUNNING: the lifetime is
    _at("work_until_at"),  # RUNNING: the batch_timeout is over
    _at("deadline_at"),  # of a status that is meant to pass (domain.session.DEADLINES)
    _at("last_activity_at"),
    _int("execution_count"),
    _int("bytes_in"),
    _int("bytes_out"),
    sa.Column("main_kernel_id", sa.Uuid, nullable=False),
    sa.Column("resource_group", sa.ForeignKey("resource_groups.name"), nullable=False, server_default="default"),
    _json("constraints"),  # domain.placement.Constraints
    sa.Column("moves_from", sa.Text),  # it ends to begin again elsewhere, because this host is drained
    sa.Column("on_agent_lost", sa.Text, nullable=False, server_default=OnAgentLost.KEEP),
    sa.Column("agent_lease_seconds", sa.Double),  # so long its kernels outlive the silence of their host
    sa.CheckConstraint(_one_of("on_agent_lost", OnAgentLost), name="on_agent_lost"),
    sa.CheckConstraint(_one_of("status", Status), name="status"),
    sa.CheckConstraint(_one_of("session_type", SessionTypes), name="session_type"),
    sa.CheckConstraint("result IN ('UNDEFINED', 'SUCCESS', 'FAILURE')", name="result"),
    sa.CheckConstraint(f"(ended_at IS NULL) = ({NOT_FINAL})", name="ended_at"),
    sa.Index("sessions_live_name_key", "user_id", "name", unique=True, postgresql_where=sa.text(NOT_FINAL)),
    sa.Index("sessions_queue_idx", "priority", "created_at", postgresql_where=sa.text("status = 'PENDING'")),
    sa.Index("sessions_expires_idx", "expires_at", postgresql_where=sa.text(NOT_FINAL)),
    sa.Index("sessions_deadline_idx", "deadline_at", postgresql_where=sa.text(NOT_FINAL)),
    sa.Index("sessions_work_until_idx", "work_until_at", postgresql_where=sa.text(NOT_FINAL)),
    sa.Index(
        "sessions_apart_idx", "user_id", postgresql_where=sa.text("constraints ? 'apart_from' AND ended_at IS NULL")
    ),
    sa.Index("sessions_starts_idx", "starts_at", postgresql_where=sa.text("status = 'PENDING'")),
    sa.Index("sessions_inference_idx", "id", postgresql_where=sa.text(f"session_type = 'inference' AND {NOT_FINAL}")),
    sa.Index("sessions_unmet_idx", "id", postgresql_where=sa.text("status = 'PENDING' AND unmet > 0")),
    sa.Index("sessions_list_idx", "user_id", "created_at", "id"),
    sa.Index("sessions_all_idx", "created_at", "id"),
    sa.Index("sessions_ended_idx", "ended_at", postgresql_where=sa.text("ended_at IS NOT NULL")),
    sa.Index("sessions_labels_idx", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    sa.Index("sessions_leased_idx", "id", postgresql_where=sa.text(f"on_agent_lost = 'replace' AND {NOT_FINAL}")),
    sa.Index("sessions_callback_idx", "id", postgresql_where=sa.text("callback_url IS NOT NULL")),
)
#: A session is not placed before each that it depends on has ended; `met_at` says since when that holds.
session_dependencies = sa.Table(
    "session_dependencies",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("depends_on_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("condition", sa.Text, nullable=False),
    _at("met_at"),
    _now("created_at"),
    sa.CheckConstraint(_one_of("condition", Condition), name="condition"),
    sa.CheckConstraint("session_id <> depends_on_id", name="self"),
    sa.Index(None, "depends_on_id"),
)
kernels = sa.Table(
    "kernels",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    _int("attempt", 1),
    sa.Column("role", sa.Text, nullable=False, server_default="main"),
    _int("idx", 1),
    _json("spec"),  # agent.wire.KernelSpec
    _json("slots"),
    # what the manager wants; nobody else writes these
    sa.Column("agent_id", sa.ForeignKey("agents.id")),
    sa.Column("want", sa.Text, nullable=False, server_default="NONE"),
    _int("generation"),
    _at("next_try_at"),
    _int("tries"),
    sa.Column("claimed_by", sa.Uuid),
    _at("claimed_until"),
    # what the agent says; nobody else writes these
    sa.Column("observed", sa.Text),
    _int("seen_generation"),
    _json("exit", None, nullable=True),
    sa.Column("container_id", sa.Text),
    _int("boot_no"),
    _int("report_seq"),
    _at("started_at"),
    _now("created_at"),
    _at("left_at"),  # when its session shrank by it
    _flag("joining"),  # its session runs and grows by it; not placed yet
    _at("fenced_at"),  # its host is silent for longer than it lets it run: it runs no more; written by the manager
    sa.CheckConstraint(_one_of("want", Want), name="want"),
    sa.CheckConstraint(_one_of("observed", KernelState), name="observed"),
    sa.CheckConstraint("(want = 'NONE') = (agent_id IS NULL)", name="agent"),
    sa.CheckConstraint("seen_generation <= generation", name="seen_generation"),
    sa.Index(None, "session_id", "attempt"),
    sa.Index("kernels_intent_idx", "agent_id", "next_try_at", postgresql_where=sa.text("seen_generation < generation")),
    sa.Index(
        "kernels_on_agent_idx",
        "agent_id",
        postgresql_where=sa.text("want <> 'NONE' AND observed IS DISTINCT FROM 'GONE'"),
    ),
    sa.Index("kernels_joining_idx", "session_id", postgresql_where=sa.text("joining")),
)
cluster_networks = sa.Table(
    "cluster_networks",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("subnet", CIDR, nullable=False, unique=True),
    sa.Column("vni", sa.BigInteger, nullable=False, unique=True),
    _now("created_at"),
)
allocations = sa.Table(
    "allocations",
    metadata,
    sa.Column("kernel_id", sa.ForeignKey("kernels.id"), primary_key=True),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["agent_id", "name"], ["resources.agent_id", "resources.name"]),
    sa.CheckConstraint("amount > 0", name="amount"),
    sa.Index(None, "agent_id", "name"),
)
status_history = sa.Table(
    "status_history",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    _int("attempt", 1),
    sa.Column("source", sa.Text),  # NULL: the creation
    sa.Column("event", sa.Text),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    _at("at", nullable=False),
    _json("cause", None, nullable=True),  # {by, action, request_id}; NULL: by its owner
    sa.ForeignKeyConstraint(
        ["source", "event", "target"],
        ["session_transition.source", "session_transition.event", "session_transition.target"],
        name="status_history_transition_fkey",
    ),
    sa.CheckConstraint(
        "(source IS NULL) = (event IS NULL) AND (source IS NOT NULL OR target = 'PENDING')", name="creation"
    ),
)
volumes = sa.Table(
    "volumes",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("store", sa.Text, nullable=False),  # that holds it: agents tell which they have
    sa.Column("status", sa.Text, nullable=False, server_default="ready"),
    sa.Column("quota_bytes", sa.BigInteger),
    sa.Column("quota_files", sa.BigInteger),
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("gid", sa.BigInteger, nullable=False),
    sa.Column("task_id", sa.Uuid),  # that makes or removes it
    _now("created_at"),
    sa.CheckConstraint("status IN ('ready', 'making', 'removing')", name="status"),
    sa.CheckConstraint("quota_bytes >= 0 AND quota_files >= 0", name="quota"),
    sa.Index("volumes_name_key", "user_id", "name", unique=True, postgresql_where=sa.text("status <> 'removing'")),
)
volume_shares = sa.Table(
    "volume_shares",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("volume_id", sa.ForeignKey("volumes.id", ondelete="CASCADE"), nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE")),
    sa.Column("project_id", sa.ForeignKey("projects.id", ondelete="CASCADE")),
    _flag("read_only", True),
    _now("created_at"),
    sa.CheckConstraint("(user_id IS NULL) <> (project_id IS NULL)", name="with"),
    sa.UniqueConstraint("volume_id", "user_id"),
    sa.UniqueConstraint("volume_id", "project_id"),
    sa.Index(None, "user_id"),
    sa.Index(None, "project_id"),
)
#: What sessions were created with, for as long as they are on record.
volume_mounts = sa.Table(
    "volume_mounts",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("volume_id", sa.ForeignKey("volumes.id", ondelete="CASCADE"), nullable=False),
    sa.Column("subpath", sa.Text, nullable=False, server_default=""),
    _flag("read_only"),
    sa.UniqueConstraint("session_id", "volume_id", "subpath"),
    sa.Index(None, "volume_id"),
)
#: Limits with a name, for many scopes at once.
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    _now("created_at"),
    sa.Column("domain", sa.ForeignKey("domains.name")),  # whose administrators keep it; NULL: superadmins alone
)
policy_limits = sa.Table(
    "policy_limits",
    metadata,
    sa.Column("policy", sa.ForeignKey("policies.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("max_amount", sa.BigInteger, nullable=False),
    _flag("waits"),
    sa.CheckConstraint("max_amount >= 0", name="max_amount"),
)
policy_assignments = sa.Table(
    "policy_assignments",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("scope_id", sa.Text, primary_key=True),
    sa.Column("policy", sa.ForeignKey("policies.name"), nullable=False),
    sa.CheckConstraint("scope IN ('keypair', 'user', 'project', 'domain')", name="scope"),
    sa.Index(None, "policy"),
)
#: What binds a scope, whether it was set by itself or comes from a policy.
quotas = sa.Table(
    "quotas",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),  # keypair, user, project, domain
    sa.Column("scope_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # a slot, or `sessions`
    _int("max_amount"),
    _int("used"),  # by sessions that have been placed
    _int("queued"),  # asked for by those that wait
    _flag("waits"),  # beyond it sessions wait; otherwise they are refused when they ask
    sa.Column("policy", sa.ForeignKey("policies.name")),  # that it comes from
    sa.CheckConstraint("scope IN ('keypair', 'user', 'project', 'domain')", name="scope"),
    sa.CheckConstraint("max_amount >= 0 AND used >= 0 AND queued >= 0", name="amounts"),
)
quota_uses = sa.Table(
    "quota_uses",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("scope_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    _flag("placed"),
    sa.ForeignKeyConstraint(
        ["scope", "scope_id", "name"], ["quotas.scope", "quotas.scope_id", "quotas.name"], ondelete="CASCADE"
    ),
    sa.CheckConstraint("amount > 0", name="amount"),
    sa.Index(None, "scope", "scope_id", "name"),
)

# -- what happened -----------------------------------------------------------------------------------------------
executions = sa.Table(
    "executions",
    metadata,
    sa.Column("run_id", sa.Uuid, primary_key=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("kernel_id", sa.Uuid, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    _int("attempt", 1),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="running"),
    sa.Column("exit_code", sa.Integer),
    sa.Column("signal", sa.Integer),
    sa.Column("reason", sa.Text),
    _now("started_at"),
    _at("finished_at"),
    _int("last_seq"),
    _int("output_bytes"),
    sa.Column("tail", sa.LargeBinary),  # the last 1 MiB of ring records, taken over when the session ends
    sa.CheckConstraint("status IN ('running', 'done')", name="status"),
    sa.CheckConstraint("(finished_at IS NULL) = (status = 'running')", name="finished_at"),
    sa.Index(None, "session_id", "started_at"),
    sa.Index("executions_running_idx", "kernel_id", postgresql_where=sa.text("status = 'running'")),
    sa.Index("executions_finished_idx", "finished_at"),
)
#: How far somebody has read a run whose output is fetched piece by piece.
run_readers = sa.Table(
    "run_readers",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    _json("state", None),
    _now("read_at"),
    sa.Index(None, "read_at"),
)
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    _json("answer", None, nullable=True),
    _now("created_at"),
    sa.Index(None, "created_at"),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    _at("at", primary_key=True, server_default=sa.func.now()),
    sa.Column("seq", sa.BigInteger),  # stamped by the sequencer after the commit, without holes
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("session_id", sa.Uuid),
    sa.Column("user_id", sa.Uuid),  # who may see it; NULL: administrators only
    sa.Column("domain", sa.Text),
    _json("cause"),
    _json("data"),
    sa.Index("events_unstamped_idx", "id", postgresql_where=sa.text("seq IS NULL")),
    sa.Index(None, "seq"),
    postgresql_partition_by="RANGE (at)",
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    _at("at", primary_key=True, server_default=sa.func.now()),
    sa.Column("seq", sa.BigInteger),
    sa.Column("user_id", sa.Uuid),
    sa.Column("access_key", sa.Text),
    sa.Column("owner_access_key", sa.Text),  # whose session, when another acted on it
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    _int("repeats", 1),  # coalesced denials
    sa.Column("chain", sa.LargeBinary),  # over the batch that it was stamped in
    sa.Index("audit_unstamped_idx", "id", postgresql_where=sa.text("seq IS NULL")),
    sa.Index(None, "seq"),
    postgresql_partition_by="RANGE (at)",
)
audit_anchors = sa.Table(
    "audit_anchors",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),  # where keyed links begin; up to where rows were forgotten by age
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("chain", sa.LargeBinary, nullable=False),
    _at("at", nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False),  # with the key, which is not in the database
    sa.CheckConstraint(_one_of("kind", ("keyed", "forgotten")), name="kind"),
)
sequencer = sa.Table(
    "sequencer",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),  # events, audit_chain
    _int("epoch", 1),
    _int("last_seq"),
    sa.Column("head", sa.LargeBinary),
)
tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("action", sa.Text, nullable=False),
    _json("arguments"),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("session_id", sa.Uuid),
    sa.Column("status", sa.Text, nullable=False, server_default="queued"),
    _json("progress"),
    _json("result", None, nullable=True),
    _json("error", None, nullable=True),
    _flag("cancel"),
    sa.Column("claimed_by", sa.Uuid),
    _at("lease_until"),
    _int("tries"),  # how often a manager has begun it
    _now("created_at"),
    _at("finished_at"),
    sa.CheckConstraint("status IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="status"),
    sa.Index("tasks_open_idx", "lease_until", postgresql_where=sa.text("status IN ('queued', 'running')")),
    sa.Index(None, "user_id", "created_at"),
    sa.Index(None, "finished_at"),
)

# -- templates and webhooks ----------------------------------------------------------------------------------------
#: Of a user, a project or a domain; the newest version's document stands here, all of them in the next table.
session_templates = sa.Table(
    "session_templates",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE")),
    sa.Column("project_id", sa.ForeignKey("projects.id", ondelete="CASCADE")),
    sa.Column("domain", sa.ForeignKey("domains.name", ondelete="CASCADE")),
    sa.Column("created_by", sa.ForeignKey("users.id", ondelete="SET NULL")),
    _int("version", 1),
    _json("document"),
    _now("created_at"),
    _now("changed_at"),
    sa.CheckConstraint("num_nonnulls(user_id, project_id, domain) = 1", name="scope"),
    *(
        sa.Index(
            f"session_templates_{scope}_name_key",
            scope,
            "name",
            unique=True,
            postgresql_where=sa.text(f"{scope} IS NOT NULL"),
        )
        for scope in ("user_id", "project_id", "domain")
    ),
)
session_template_versions = sa.Table(
    "session_template_versions",
    metadata,
    sa.Column("template_id", sa.ForeignKey("session_templates.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    _json("document"),
    sa.Column("source", sa.Text, nullable=False),  # as it was written, comments included
    sa.Column("by_access_key", sa.Text, nullable=False),
    _now("created_at"),
)
#: Code that answers calls; what it is made of is kept in every version.
apps = sa.Table(
    "apps",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE")),
    sa.Column("project_id", sa.ForeignKey("projects.id", ondelete="CASCADE")),
    sa.Column("domain", sa.ForeignKey("domains.name", ondelete="CASCADE")),
    sa.Column("created_by", sa.ForeignKey("users.id", ondelete="SET NULL")),
    _int("version", 1),
    _now("created_at"),
    _now("changed_at"),
    sa.CheckConstraint("num_nonnulls(user_id, project_id, domain) = 1", name="scope"),
    *(
        sa.Index(f"apps_{scope}_name_key", scope, "name", unique=True, postgresql_where=sa.text(f"{scope} IS NOT NULL"))
        for scope in ("user_id", "project_id", "domain")
    ),
)
app_versions = sa.Table(
    "app_versions",
    metadata,
    sa.Column("app_id", sa.ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    _json("definition"),  # domain.apps.AppDefinition
    _int("archive_bytes"),
    sa.Column("archive_sha256", sa.Text),
    sa.Column("by_access_key", sa.Text, nullable=False),
    _now("created_at"),
    sa.CheckConstraint("(archive_sha256 IS NULL) = (archive_bytes = 0)", name="archive"),
)
#: Archives in pieces, so that none is ever held whole in memory.
app_chunks = sa.Table(
    "app_chunks",
    metadata,
    sa.Column("app_id", sa.Uuid, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(
        ["app_id", "version"], ["app_versions.app_id", "app_versions.version"], ondelete="CASCADE",
        name="app_chunks_version_fkey",
    ),
)  # fmt: skip
#: What only worker sessions have; apart from their rows, because it changes with every call.
workers = sa.Table(
    "workers",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("app_id", sa.Uuid, nullable=False),
    sa.Column("app_version", sa.BigInteger, nullable=False),
    _json("app"),  # its definition, as it was when the session was made
    sa.Column("ready_attempt", sa.BigInteger),  # of the session, that has loaded its app
    _at("ready_at"),
    _at("idle_until_at"),  # when it ends unless it is called; NULL while it is called, or is not ready
    _int("open_calls"),  # this, call_count and last_call_at are written by the triggers of calls alone
    _int("call_count"),
    _at("last_call_at"),
    _int("tries"),  # to bring the app to the host
    _at("claimed_until"),  # so long one manager is at it
    sa.CheckConstraint("open_calls >= 0", name="open_calls"),
    sa.CheckConstraint("open_calls = 0 OR idle_until_at IS NULL", name="idle"),
    sa.Index("workers_idle_idx", "idle_until_at", postgresql_where=sa.text("idle_until_at IS NOT NULL")),
    sa.Index("workers_app_idx", "app_id", "app_version"),
)
#: What worker sessions are asked for. A call is an execution of the same id, from its delivery on.
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    _int("attempt", 1),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("input", sa.Text),  # JSON, as text: jsonb does not take every text that JSON does
    _int("input_bytes"),
    sa.Column("timeout_seconds", sa.Double),
    sa.Column("status", sa.Text, nullable=False, server_default="open"),
    sa.Column("output", sa.Text),
    _flag("output_kept", True),
    sa.Column("error", sa.Text),
    sa.Column("progress", sa.Text),
    _int("partials"),
    sa.Column("reason", sa.Text),
    _now("created_at"),
    _at("sent_at"),  # since when its host has it; until then, those that are asked later wait behind it
    _at("started_at"),
    _at("finished_at"),
    _at("cancel_at"),  # since when it is to be cancelled
    sa.CheckConstraint("status IN ('open', 'completed', 'failed', 'cancelled')", name="status"),
    sa.CheckConstraint("(finished_at IS NULL) = (status = 'open')", name="finished_at"),
    sa.Index(None, "session_id", "created_at"),
    sa.Index("calls_open_idx", "session_id", postgresql_where=sa.text("status = 'open'")),
    sa.Index(None, "finished_at"),
)
#: With what a user's webhooks are signed; sealed with a key that is not in the database.
webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    _now("created_at"),
)
#: What is told to a session's callback_url, one event at a time, until the receiver has it or it is given up.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("event_seq", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="queued"),
    _int("tries"),
    _at("next_try_at", nullable=False),
    sa.Column("claimed_by", sa.Uuid),
    _at("lease_until"),
    sa.Column("http_status", sa.Integer),  # of the last try
    sa.Column("error", sa.Text),
    _now("created_at"),
    _at("finished_at"),
    sa.UniqueConstraint("session_id", "event_seq"),
    sa.CheckConstraint("status IN ('queued', 'delivered', 'failed')", name="status"),
    sa.CheckConstraint("(finished_at IS NULL) = (status = 'queued')", name="finished_at"),
    sa.Index("webhook_deliveries_open_idx", "session_id", "event_seq", postgresql_where=sa.text("status = 'queued'")),
    sa.Index(None, "finished_at"),
)

# -- what sessions use ---------------------------------------------------------------------------------------------
#: As agents tell them, each once; partitions of an hour. No foreign key: they go by their own age.
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("kernel_id", sa.Uuid, primary_key=True),
    _at("at", primary_key=True),  # the end of the time that it tells of
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("cpu_seconds", sa.Double, nullable=False),
    _int("mem_bytes"),
    sa.Column("disk_bytes", sa.BigInteger),
    _int("io_read_bytes"),
    _int("io_write_bytes"),
    _int("net_rx_bytes"),
    _int("net_tx_bytes"),
    _int("pids"),
    _int("forks_refused"),
    _int("oom_kills"),
    _int("gpus"),
    sa.Column("gpu_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
    _int("gpu_mem_bytes"),
    sa.Column("gpu_joules", sa.Double, nullable=False, server_default=sa.text("0")),
    postgresql_partition_by="RANGE (at)",
)
#: The same, summed as they arrive; partitions of a day.
sample_minutes = sa.Table(
    "sample_minutes",
    metadata,
    sa.Column("kernel_id", sa.Uuid, primary_key=True),
    _at("at", primary_key=True),  # the beginning of the minute
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("cpu_seconds", sa.Double, nullable=False),
    sa.Column("mem_byte_seconds", sa.Double, nullable=False),
    _int("mem_max_bytes"),
    sa.Column("disk_bytes", sa.BigInteger),
    _int("io_read_bytes"),
    _int("io_write_bytes"),
    _int("net_rx_bytes"),
    _int("net_tx_bytes"),
    _int("pids_max"),
    _int("forks_refused"),
    _int("oom_kills"),
    _int("gpus"),
    sa.Column("gpu_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
    sa.Column("gpu_mem_byte_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
    _int("gpu_mem_max_bytes"),
    sa.Column("gpu_joules", sa.Double, nullable=False, server_default=sa.text("0")),
    postgresql_partition_by="RANGE (at)",
)
#: What was held from when to when, written by the triggers of `allocations` alone. It outlives its session.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kernel_id", sa.Uuid, nullable=False),
    sa.Column("session_id", sa.Uuid, nullable=False),
    sa.Column("session_name", sa.Text, nullable=False),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("project_id", sa.Uuid, nullable=False),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),  # cpu, mem, gpu/UUID, ...
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("share", sa.Double, nullable=False),  # of what the host has of it
    _at("since_at", nullable=False),
    _at("until_at"),  # NULL: held now
    sa.Column("resource_group", sa.Text, nullable=False, server_default="default"),
    _flag("counted"),  # it has ended, and is in fair_usage
    sa.CheckConstraint("until_at >= since_at", name="order"),
    sa.Index("usage_uncounted_idx", "until_at", postgresql_where=sa.text("NOT counted")),
    sa.Index("usage_held_key", "kernel_id", "name", unique=True, postgresql_where=sa.text("until_at IS NULL")),
    sa.Index(None, "until_at"),
)
#: The end of a container's log, taken over from the host when the session has ended.
kernel_logs = sa.Table(
    "kernel_logs",
    metadata,
    sa.Column("kernel_id", sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True),
    sa.Column("records", sa.LargeBinary, nullable=False),  # ring records, the last 256 KiB
    _now("kept_at"),
    sa.Index(None, "kept_at"),
)
#: Thresholds of abuse rules and idle checkers that differ from the declared ones; of all, or of one project.
watch_rules = sa.Table(
    "watch_rules",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),  # '' is the installation, else a project's id
    sa.Column("name", sa.Text, primary_key=True),
    _json("settings"),
    _now("changed_at"),
)
#: Who has been warned of an end that nobody asked for, and when that will be.
idle_warnings = sa.Table(
    "idle_warnings",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("checker", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    _at("warned_at", nullable=False),
    _at("due_at", nullable=False),
    sa.Index(None, "due_at"),
)
#: Sessions that an administrator keeps from being ended by idle checkers.
idle_exemptions = sa.Table(
    "idle_exemptions",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("by_access_key", sa.Text, nullable=False),
    _now("created_at"),
)

# -- services of sessions --------------------------------------------------------------------------------------------
services = sa.Table(
    "services",
    metadata,
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),  # jupyter, ..., or what the image calls it
    sa.Column("protocol", sa.Text, nullable=False),
    sa.Column("port", sa.BigInteger, nullable=False),
    sa.Column("kernels", sa.Text, nullable=False),  # main, all, or one kernel's name
    _json("spec"),  # agent.wire.ServiceSpec, without its generation
    _flag("keep_prefix"),  # the program knows the path under which the proxy serves it
    _int("generation", 1),
    _flag("settled"),  # it has answered: from then on managers see to it that it runs
    _at("started_at", nullable=False),
    _at("deadline_at", nullable=False),  # of the start
    sa.CheckConstraint("protocol IN ('http', 'tcp')", name="protocol"),
    sa.CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    sa.UniqueConstraint("session_id", "port"),
)
#: What agents say of them, one row for each kernel; nobody else writes these.
service_instances = sa.Table(
    "service_instances",
    metadata,
    sa.Column("session_id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kernel_id", sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
    _int("attempt", 1),
    _int("generation", 1),
    sa.Column("state", sa.Text, nullable=False),
    _int("restarts"),
    sa.Column("message", sa.Text),
    sa.Column("log_tail", sa.Text),
    sa.Column("run_id", sa.Text),
    _at("changed_at", nullable=False),
    _int("boot_no"),
    _int("report_seq"),
    sa.ForeignKeyConstraint(
        ["session_id", "name"], ["services.session_id", "services.name"], ondelete="CASCADE",
        name="service_instances_service_fkey",
    ),
    sa.CheckConstraint("state IN ('starting', 'healthy', 'unhealthy', 'failed', 'stopped')", name="state"),
    sa.Index(None, "kernel_id"),
)  # fmt: skip
#: Who may pass the proxy: tickets, good for one exchange, and the passes that they are exchanged for.
service_tickets = sa.Table(
    "service_tickets",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("session_id", sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),  # of the service, or `~PORT` and `~PORT.KERNEL`
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("access_key", sa.ForeignKey("keypairs.access_key", ondelete="CASCADE"), nullable=False),
    _at("expires_at", nullable=False),
    _at("used_at"),
    _now("created_at"),
    sa.Column("token_id", sa.ForeignKey("tokens.id", ondelete="CASCADE")),  # that it was asked for with
    sa.CheckConstraint("kind IN ('ticket', 'pass')", name="kind"),
    sa.Index(None, "token_id"),
    sa.Index(None, "session_id", "name"),
    sa.Index(None, "user_id"),
    sa.Index(None, "access_key"),
    sa.Index(None, "expires_at"),
)
