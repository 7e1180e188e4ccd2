"""What happens when processes are opened, keys registered, and certificates asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import pytest

from actions.gateway import (
    AddSshKeyAction,
    IssueSshCertificateAction,
    ListSshKeysAction,
    OpenProcessAction,
    RemoveSshKeyAction,
)
from domain.errors import (
    InvalidRequest,
    InvalidSshKey,
    KernelNotFound,
    PermissionDenied,
    PtyNotFound,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    SshKeyNotFound,
    SshKeyTaken,
    TooManySshKeys,
)
from domain.session import Status
from domain.ssh import PublicKey
from manager.world import SessionService
from repositories.database import Connection, Database
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    insert,
    scenarios,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ann@home"
KEY_ID = UUID("55555555-0000-7000-8000-000000000001")
NO_STATUS = NotApplicable("this is about no session's status")
A_KEY = a_row(
    "ssh_keys",
    id=KEY_ID,
    access_key=ALICE.access_key,
    name="home",
    public_key=PublicKey.parse(KEY).line,
    fingerprint=PublicKey.parse(KEY).fingerprint,
    created_at=NOW,
)
WEAK_RSA = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7" + "A" * 164 + "w== old"  # 1,024 bits
)


def open_(**fields: object) -> OpenProcessAction:
    return OpenProcessAction(session_name="train", **fields)  # type: ignore[arg-type]


@scenarios(
    OpenProcessAction,
    success=TestScenario(
        given=(a_session(),),
        do=open_(pty="mine", rows=40, cols=100),
        answer=lambda a: (a.process.id, a.process.spec.terminal, a.process.spec.rows) == ("mine", True, 40),
        then_agent=("open_process",),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=open_(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(given=(a_session(Status.PREPARING),), do=open_(), error=SessionNotReady, then_audit=None),
    not_found=TestScenario(do=open_(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=open_(resume=True), error=InvalidRequest, then_audit=None),
    more={
        "a_command_on_pipes": TestScenario(
            given=(a_session(),),
            do=open_(terminal=False, command=["ls", "-l"]),
            answer=lambda a: (a.process.spec.argv, a.process.spec.terminal) == (["ls", "-l"], False),
            then_agent=("open_process",),
        ),
        "a_terminal_that_is_gone": TestScenario(
            given=(a_session(),),
            do=open_(pty="gone", resume=True),
            error=PtyNotFound,
            then_agent=("open_process",),
            then_audit="pty_not_found",
        ),
        "a_kernel_that_is_not_there": TestScenario(
            given=(a_session(),), do=open_(kernel="worker9"), error=KernelNotFound, then_audit="kernel_not_found"
        ),
        "an_id_that_climbs": TestScenario(
            given=(a_session(),), do=open_(pty="../x"), error=InvalidRequest, then_audit=None
        ),
        "a_window_without_rows": TestScenario(
            given=(a_session(),), do=open_(rows=0), error=InvalidRequest, then_audit=None
        ),
        "a_word_with_nul": TestScenario(
            given=(a_session(),), do=open_(command=["a\0b"]), error=InvalidRequest, then_audit=None
        ),
    },
)
async def test_open_process(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def add(text: str = KEY, name: str | None = None) -> AddSshKeyAction:
    return AddSshKeyAction(public_key=text, name=name)


def refused_key(text: str) -> TestScenario:
    return TestScenario(do=add(text), error=InvalidSshKey, then_audit=None)


def many_keys(count: int) -> Given:
    async def put(connection: Connection) -> None:
        for number in range(count):
            row = {"id": UUID(int=number + 1), "access_key": ALICE.access_key, "name": "k", "public_key": "k"}
            await insert(connection, "ssh_keys", {**row, "fingerprint": f"SHA256:{number}", "created_at": NOW})

    return Given(put=put)


@scenarios(
    AddSshKeyAction,
    success=TestScenario(
        do=add(),
        answer=lambda a: (a.ssh_key.name, a.ssh_key.public_key) == ("ann@home", KEY.rpartition(" ")[0]),
        then_rows=("+ssh_keys ann@home",),
    ),
    stranger=TestScenario(do=add(), by=WATCHER, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("it is made for who asks"),
    bad_input=refused_key("not a key"),
    more={
        "a_name_of_ones_own": TestScenario(do=add(name="laptop"), then_rows=("+ssh_keys laptop",)),
        "twice": TestScenario(given=(A_KEY,), do=add(), error=SshKeyTaken, then_audit=None),
        "anothers": TestScenario(given=(A_KEY,), do=add(), by=MALLORY, error=SshKeyTaken, then_audit=None),
        "a_private_key": refused_key("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"),
        "a_key_cut_off": refused_key(KEY[:60]),
        "another_kind_than_it_says": refused_key(KEY.replace("ssh-ed25519", "ssh-rsa", 1)),
        "a_weak_key": refused_key(WEAK_RSA),
        "an_old_kind": refused_key("ssh-dss AAAAB3NzaC1kc3MAAACBAOfoo"),
        "two_lines": refused_key(f"{KEY}\n{KEY}"),
        "options_before_it": refused_key(f'command="/bin/sh" {KEY}'),
        "one_too_many": TestScenario(given=(many_keys(100),), do=add(), error=TooManySshKeys, then_audit=None),
    },
)
async def test_add_ssh_key(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListSshKeysAction,
    success=TestScenario(
        given=(A_KEY,), do=ListSshKeysAction(), answer=lambda a: [k.name for k in a.items] == ["home"], then_audit=None
    ),
    stranger=TestScenario(
        given=(A_KEY,), do=ListSshKeysAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
    ),
    wrong_status=NO_STATUS,
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no input"),
)
async def test_list_ssh_keys(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def remove(key: str = "home") -> RemoveSshKeyAction:
    return RemoveSshKeyAction(ssh_key=key)


@scenarios(
    RemoveSshKeyAction,
    success=TestScenario(given=(A_KEY,), do=remove(), then_rows=("-ssh_keys home",)),
    stranger=TestScenario(
        given=(A_KEY,), do=remove(str(KEY_ID)), by=MALLORY, error=SshKeyNotFound, then_audit="ssh_key_not_found"
    ),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=remove(), error=SshKeyNotFound, then_audit="ssh_key_not_found"),
    bad_input=TestScenario(do=remove(""), error=InvalidRequest, then_audit=None),
    more={
        "by_id": TestScenario(given=(A_KEY,), do=remove(str(KEY_ID)), then_rows=("-ssh_keys home",)),
        "by_fingerprint": TestScenario(
            given=(A_KEY,), do=remove(PublicKey.parse(KEY).fingerprint), then_rows=("-ssh_keys home",)
        ),
        "two_of_that_name": TestScenario(
            given=(many_keys(2),), do=remove("k"), error=SshKeyNotFound, then_audit="ssh_key_not_found"
        ),
    },
)
async def test_remove_ssh_key(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


class Signs:
    """An authority whose certificates say what is in them."""

    host, port, host_key = None, 2222, "ssh-ed25519 AAAA"

    def sign(
        self, key: PublicKey, *, identity: str, principals: Sequence[str], valid_from: datetime, valid_until: datetime
    ) -> str:
        return f"{','.join(principals)} for {(valid_until - valid_from).seconds} s"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionService, "ssh", Signs())
    return


def issue(**fields: object) -> IssueSshCertificateAction:
    return IssueSshCertificateAction(**{"session_name": "train", "public_key": KEY, **fields})  # type: ignore[arg-type]


@scenarios(
    IssueSshCertificateAction,
    success=TestScenario(
        given=(a_session(),),
        do=issue(),
        answer=lambda a: (
            (a.user, a.port, a.certificate)
            == ("train", 2222, f"access-key={ALICE.access_key},session={ID},kernel= for 360 s")
        ),
    ),
    stranger=TestScenario(
        given=(a_session(),), do=issue(), by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=TestScenario(
        given=(a_session(Status.TERMINATED),), do=issue(session_name=str(ID)), error=SessionEnded, then_audit=None
    ),
    not_found=TestScenario(do=issue(), error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(given=(a_session(),), do=issue(public_key="nonsense"), error=InvalidSshKey, then_audit=None),
    more={
        "one_kernel_of_it": TestScenario(
            given=(a_session(),), do=issue(kernel="main1"), answer=lambda a: a.user == "train.main1"
        ),
        "a_kernel_that_is_not_there": TestScenario(
            given=(a_session(),), do=issue(kernel="worker9"), error=KernelNotFound, then_audit="kernel_not_found"
        ),
    },
)
async def test_issue_ssh_certificate(scenario: TestScenario, database: Database, gateway: None) -> None:
    await scenario.play(database)
