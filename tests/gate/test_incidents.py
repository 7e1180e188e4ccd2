"""What has happened to others, and why it does not happen here: one test for each class. docs/security.md has the table."""

from __future__ import annotations

import ast
import base64
import ctypes
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from agent.direct import Ticket, Tickets
from agent.doctor import of_engine
from agent.wire import KernelSpec
from domain.doctor import Level
from domain.errors import Unauthenticated
from manager.config import ManagerConfig
from runner.archives import Limits
from runner.files import Files, Refused
from runner.unpack import unpack
from tests.gate.asks import UPGRADE
from tests.gate.fake import SteadyAgent
from tests.gate.people import COLLEAGUE, SECRET, SUPERADMIN, USER, Person, populate
from tests.gate.raw import Reply, Wire
from tests.gate.stack import Stack, opened
from tests.gate.things import MAKERS, add_store, pass_of, thing_id
from tests.hostile import entry

ROOT: Final = Path(__file__).resolve().parents[2]
OWN, OTHERS = 1, 2


@pytest.fixture
async def stack(dsn: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """Una has a session with a service, and so has ben."""
    async with opened(dsn, tmp_path, SteadyAgent()) as made:
        async with made.database.transaction() as connection:
            await populate(connection)
            await add_store(connection)
            for number, owner in ((OWN, USER), (OTHERS, COLLEAGUE)):
                for kind in ("session", "volume"):
                    await MAKERS[kind](connection, owner, number)
        yield made


async def ask(stack: Stack, method: str, path: str, body: Any = None, *headers: str, by: Person | None = USER) -> Reply:
    more = (by.header, *headers) if by else headers
    if body is not None and not isinstance(body, bytes):
        body, more = json.dumps(body).encode(), (*more, "Content-Type: application/json")
    return await Wire(stack.rest).ask(method, path, more, body or b"")


def service(number: int) -> str:
    return f"/proxy/{thing_id('session', number)}/web/"


def session(number: int) -> str:
    return f"/v1/sessions/{thing_id('session', number)}"


async def test_service_ports_without_authorisation(stack: Stack) -> None:
    """Backend.AI CVE-2025-49651: any user reached the ports of other users' sessions.

    Here a service is reached with a pass for that very session and user alone, and a pass is had by whoever may enter it.
    """
    wire = Wire(stack.services)
    for shown in ((), (USER.header,), (f"Authorization: Bearer {pass_of('pass', OWN)}",)):
        assert (await wire.ask("GET", service(OTHERS), shown)).status == 401
    assert (await ask(stack, "POST", f"{session(OTHERS)}/services/web/ticket")).status == 404
    assert (await ask(stack, "GET", f"{session(OTHERS)}/services")).status == 404
    assert (await ask(stack, "POST", f"{session(OTHERS)}/ports/22/pass")).status == 404
    own = await wire.ask("GET", service(OWN), (f"Authorization: Bearer {pass_of('pass', OWN)}",))
    assert own.status == 502  # passed on: nothing listens there in this test


async def test_open_sign_up(stack: Stack) -> None:
    """Backend.AI CVE-2025-49652: anybody could make an account through the sign-up address.

    Here there is none: people are made by administrators of their domain.
    """
    person = {"email": "evil@example.org", "username": "evil", "domain": "north", "role": "superadmin"}
    for path in ("/v1/users", "/v1/sign-up", "/v1/signup", "/auth/signup", "/v1/keypairs", "/v1/tokens"):
        assert (await ask(stack, "POST", path, person, by=None)).status in (401, 404), path
    assert (await ask(stack, "POST", "/v1/users", person)).status == 403
    async with stack.database.reader() as connection:
        assert not await connection.fetchval("SELECT count(*) FROM users WHERE email = $1", person["email"])


async def test_keys_and_addresses_in_a_containers_environment(stack: Stack) -> None:
    """Backend.AI CVE-2025-49653: a file in the container named the owner's access key and e-mail address.

    Here what a host is told of a session has no field for either, and nothing of them is in what is stored for it.
    """
    assert not {"email", "access_key", "secret", "user", "user_id", "owner"} & set(KernelSpec.__dataclass_fields__)
    made = await ask(stack, "POST", "/v1/sessions", {"image": "python", "environ": {"MODE": "fast"}})
    assert made.status == 201, made
    async with stack.database.reader() as connection:
        rows = await connection.fetch(
            "SELECT k.spec::text || s.environ::text AS told FROM kernels k JOIN sessions s ON s.id = k.session_id"
        )
    for row in rows:
        for secret in (USER.access_key, SECRET, "una@example.org", USER.name):
            assert secret not in row["told"]


async def test_a_signature_by_a_hash_of_the_clients_choice(stack: Stack) -> None:
    """Backend.AI: requests were signed without their bodies, by the hash that the request named.

    Here nothing is signed, so there is nothing to choose: a key is shown over TLS, and any other scheme is none.
    """
    for header in (
        f"Authorization: BackendAI signMethod=HMAC-MD5, credential={USER.access_key}:00",
        f"Authorization: BackendAI signMethod=HMAC-NONE, credential={USER.access_key}:",
        f"X-BackendAI-Version: v1\r\nAuthorization: {USER.access_key}:{SECRET}",
        f"Authorization: Basic {base64.b64encode(f'{USER.access_key}:{SECRET}'.encode()).decode()}",
        f"Authorization: Bearer {USER.access_key}",
        f"Authorization: Bearer {USER.access_key}.",
    ):
        assert (await ask(stack, "GET", "/v1/whoami", None, header, by=None)).status == 401, header


async def test_jobs_without_authentication(stack: Stack) -> None:
    """Ray CVE-2023-48022: whoever reached the dashboard ran jobs, and it listened everywhere.

    Here nothing runs without a credential, and a manager listens on loopback until it is told otherwise.
    """
    for path in ("/v1/sessions", f"{session(OWN)}/execute", "/api/jobs/", "/api/jobs"):
        reply = await ask(stack, "POST", path, {"image": "python", "code": "1", "entrypoint": "id"}, by=None)
        assert reply.status in (401, 404), path
    config = ManagerConfig(data_dir=Path("x"))
    assert {config.host, config.agent_host} == {"127.0.0.1"}


async def test_a_method_that_was_forgotten(stack: Stack) -> None:
    """Ray CVE-2026-27482: pages of other sites were kept from POST and PUT, and could DELETE.

    Here no door knows anything that a browser sends by itself; at the proxy, whose passes are cookies, every method but
    reading is refused to other sites' pages.
    """
    browser = (
        "Origin: https://evil.example",
        "User-Agent: Mozilla/5.0",
        "Cookie: moorage_pass=" + pass_of("pass", OWN),
    )
    for method in ("DELETE", "PATCH", "PUT", "POST", "PROPFIND"):
        assert (await ask(stack, method, session(OWN), None, *browser, by=None)).status == 401, method
        reply = await Wire(stack.services).ask(method, service(OWN), browser)
        assert reply.status == 403, (method, reply)


async def test_other_sites_taken_for_the_same(stack: Stack) -> None:
    """JupyterHub CVE-2026-40864: requests with Sec-Fetch-Mode: no-cors counted as being of the same site.

    Here only a navigation of another site's page is let pass, with SameSite cookies; whatever else it sends is refused.
    """
    cookie = "Cookie: moorage_pass=" + pass_of("pass", OWN)
    for mode in ("no-cors", "cors", "same-origin", "websocket", ""):
        for method in ("GET", "POST"):
            headers = (cookie, "Sec-Fetch-Site: cross-site", f"Sec-Fetch-Mode: {mode}")
            reply = await Wire(stack.services).ask(method, service(OWN), headers)
            assert reply.status == 403, (mode, method)


async def test_what_outlives_a_new_password(stack: Stack) -> None:
    """Jupyter Server CVE-2026-40934: cookies stayed good after the password was changed.

    Here a new password ends every sign-in of its user at once.
    """
    mine = "/v1/users/una@example.org/password"
    old, new = "correct horse battery", "another horse battery"
    assert (await ask(stack, "PUT", mine, {"password": old}, by=SUPERADMIN)).status == 200
    signed_in = await ask(stack, "POST", "/v1/sign-in", {"email": "una@example.org", "password": old}, by=None)
    assert signed_in.status == 201, signed_in
    token = f"Authorization: Bearer {json.loads(signed_in.body)['token']}"
    assert (await ask(stack, "GET", "/v1/whoami", None, token, by=None)).status == 200
    assert (await ask(stack, "PUT", mine, {"password": new}, by=SUPERADMIN)).status == 200
    end = time.monotonic() + 10
    while (await ask(stack, "GET", "/v1/whoami", None, token, by=None)).status == 200:
        assert time.monotonic() < end
    assert (await ask(stack, "GET", "/v1/whoami", None, token, by=None)).status == 401


async def test_files_of_users_as_pages_of_ours(stack: Stack) -> None:
    """Jupyter Server CVE-2026-44727: what users had written was served as a page of the server's own origin.

    Here files leave the API as bytes to be saved, never as a page; services have an origin of their own.
    """
    page = b"<script>fetch('/v1/tokens')</script>"
    for name in ("evil.html", "evil.svg"):
        path = f"{session(OWN)}/files/{name}"
        put = await ask(stack, "PUT", path, page, "Content-Type: text/html")
        assert put.status == 200, put
        got = await ask(stack, "GET", path)
        assert got.body == page
        assert got.header("Content-Type") == "application/octet-stream"
        assert (got.header("Content-Disposition") or "").startswith("attachment")
        assert got.header("X-Content-Type-Options") == "nosniff"
    docs = await ask(stack, "GET", "/docs")
    assert "default-src 'none'" in (docs.header("Content-Security-Policy") or "")
    assert stack.services != stack.rest


async def test_websockets_past_the_check(stack: Stack) -> None:
    """jupyter-server-proxy CVE-2024-28179: requests were checked, WebSockets to the same service were not.

    Here both are one path; and the API's own WebSockets are checked like every other question.
    """
    wire = Wire(stack.services)
    for shown in ((), (USER.header,), (f"Authorization: Bearer {pass_of('pass', OTHERS)}",)):
        assert (await wire.ask("GET", service(OWN), (*UPGRADE, *shown))).status == 401
        assert (await wire.ask("GET", service(OWN), ("Upgrade: tcp", "Connection: Upgrade", *shown))).status == 401
    for path in (f"{session(OTHERS)}/pty", f"{session(OTHERS)}/executions/{thing_id('run', OTHERS)}/stream"):
        assert (await ask(stack, "GET", path, None, *UPGRADE, by=None)).status == 401
        assert (await ask(stack, "GET", path, None, *UPGRADE)).status == 404
    foreign = await ask(stack, "GET", f"{session(OWN)}/pty", None, *UPGRADE, "Origin: https://evil.example")
    assert foreign.status == 403


def test_a_signature_that_nobody_checks() -> None:
    """Coder CVE-2026-46354: the signer's certificate was checked, and the signature over the content was not.

    Here the seal of a ticket is over all that it says; a host's word is bound to its connection by TLS, and its certificate
    to its row by fingerprint (tests/agent/test_hub.py, tests/trust/test_certificates.py).
    """
    tickets = Tickets(lambda: 0.0)
    signed = tickets.sign(Ticket(kernel_id="mine", attempt=1, write=False, by="una", expires_at=10.0))
    said, _, seal = signed.partition(".")
    content = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    for change in ({"kernel_id": "others"}, {"write": True}, {"attempt": 2}, {"expires_at": 1e12}, {"by": "root"}):
        forged = base64.urlsafe_b64encode(json.dumps({**content, **change}).encode()).decode().rstrip("=")
        with pytest.raises(Unauthenticated):
            tickets.read(f"Bearer {forged}.{seal}")
    assert tickets.read(f"Bearer {signed}").kernel_id == "mine"


def test_a_link_that_changes_while_files_are_copied(tmp_path: Path) -> None:
    """docker cp CVE-2018-15664: a container exchanged a folder for a link between the check and the write.

    Here every step of a path is opened beneath the one before without following a link, inside the container and as its
    user; tests/product/test_flips.py tries 1,000 uploads against a container.
    """
    home, outside = tmp_path / "home", tmp_path / "outside"
    (home / "folder").mkdir(parents=True)
    outside.mkdir()
    (home / "link").symlink_to(outside)
    files, done = Files(str(home), [], None), threading.Event()
    c = ctypes.CDLL(None, use_errno=True)
    folder, link = (str(home / name).encode() for name in ("folder", "link"))

    def flip() -> None:
        while not done.is_set():
            c.renameat2(-100, folder, -100, link, 2)  # AT_FDCWD; RENAME_EXCHANGE

    flipping = threading.Thread(target=flip)
    flipping.start()
    outcomes = {"written": 0, "refused": 0}
    try:
        for number in range(300):
            archive = entry(b"folder/f%d" % number, b"content") + b"\0" * 1024

            def source(archive: bytes = archive) -> Iterator[memoryview]:
                return iter([memoryview(archive)])

            try:
                unpack(files, ".", source, limits=Limits())
                outcomes["written"] += 1
            except Refused:
                outcomes["refused"] += 1
    finally:
        done.set()
        flipping.join()
    assert list(outside.iterdir()) == []
    assert min(outcomes.values()) > 0, outcomes


#: Release -> what it has, and what doctor is to say of it.
HOLES: Final = [
    ("runc", "1.0.0-rc6", "CVE-2019-5736"),
    ("runc", "1.1.11", "CVE-2024-21626"),
    ("runc", "1.2.7", "CVE-2025-31133"),
    ("nvidia-container-toolkit", "1.16.1", "CVE-2024-0132"),
    ("nvidia-container-toolkit", "1.17.7", "CVE-2025-23266"),
]


@pytest.mark.parametrize(("name", "version", "hole"), HOLES)
def test_ways_out_of_containers_that_are_others_to_close(name: str, version: str, hole: str) -> None:
    """runc CVE-2019-5736, CVE-2024-21626, CVE-2025-31133; NVIDIA's toolkit CVE-2024-0132, CVE-2025-23266.

    A container's wall is theirs to build: `moorage doctor` names what an older release leaves open.
    """
    found = [one for one in of_engine({}, [{"Name": name, "Version": version}]) if hole in one.meaning]
    assert [one.level for one in found] == [Level.WARN]


async def test_the_loader_is_not_told_what_to_load(stack: Stack) -> None:
    """NVIDIA's toolkit CVE-2025-23266: LD_PRELOAD of an image's environment was obeyed by a program of the host's root.

    Here variables of the loader and of NVIDIA's runtime are not taken from whoever asks for a session.
    """
    environ = {"LD_PRELOAD": "/evil.so", "LD_LIBRARY_PATH": "/evil", "NVIDIA_VISIBLE_DEVICES": "all", "MODE": "fast"}
    made = await ask(stack, "POST", "/v1/sessions", {"image": "python", "environ": environ, "name": "with-environ"})
    assert made.status == 201, made
    async with stack.database.reader() as connection:
        told = await connection.fetchval("SELECT environ FROM sessions WHERE name = 'with-environ'")
    assert told == {"MODE": "fast"}


@cache
def server_code() -> list[tuple[str, ast.Module]]:
    folders = ("domain", "actions", "repositories", "manager", "agent", "runner", "images", "sdk/moorage")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in paths]


def test_archives_that_write_where_they_like(tmp_path: Path) -> None:
    """Python CVE-2007-4559: tarfile wrote to `../..` and to absolute paths.

    Here archives are read by our own reader (tests/runner/test_unpack.py has a hundred hostile ones). `extractall` is called
    in one place, by a process that has become the volume's owner in its folder, and with a filter; a client's own machine
    takes members one by one, looked at before.
    """
    calls = {
        path
        for path, tree in server_code()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("extractall", "unpack_archive")
    }
    assert calls <= {"agent/pack.py"} | {path for path in calls if path.startswith(("actions/", "manager/rest/"))}
    assert not any("extractall" in (ROOT / path).read_text() for path in calls - {"agent/pack.py"})
    (tmp_path / "home").mkdir()
    files = Files(str(tmp_path / "home"), [], None)
    for name in (b"../evil", b"/etc/evil", b"a/../../evil"):
        archive = entry(name, b"x") + b"\0" * 1024

        def source(archive: bytes = archive) -> Iterator[memoryview]:
            return iter([memoryview(archive)])

        with pytest.raises(Refused):
            unpack(files, ".", source, limits=Limits())
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_data_that_runs_code_when_it_is_read() -> None:
    """torch CVE-2025-32434: `torch.load(weights_only=True)` ran code all the same.

    Here no format that can run code is read anywhere on manager, agent, runner or client: no pickle, no torch.load, no
    YAML but by a safe loader.
    """
    found = []
    for path, tree in server_code():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path}: {name}" for name in names if name.split(".")[0] in FORBIDDEN]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                word = f"{getattr(node.func.value, 'id', '')}.{node.func.attr}"
                safe = any(keyword.arg == "Loader" for keyword in node.keywords)
                if word in ("torch.load", "yaml.unsafe_load", "yaml.full_load") or (word == "yaml.load" and not safe):
                    found.append(f"{path}: {word}")
    assert not found


FORBIDDEN: Final = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


# -- the table -----------------------------------------------------------------------------------------------------------
INCIDENTS: Final = (
    "CVE-2025-49651 CVE-2025-49652 CVE-2025-49653 CVE-2023-48022 CVE-2026-27482 CVE-2026-40864 CVE-2026-40934 "
    "CVE-2026-44727 CVE-2024-28179 CVE-2026-46354 CVE-2018-15664 CVE-2019-5736 CVE-2024-21626 CVE-2025-31133 "
    "CVE-2024-0132 CVE-2025-23266 CVE-2007-4559 CVE-2025-32434"
).split()


def test_the_table_names_tests_that_exist() -> None:
    page = (ROOT / "docs/security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "::" in line]
    named = " ".join(rows)
    assert not [incident for incident in INCIDENTS if incident not in named]
    for row in rows:
        tests = [word.strip("`,") for word in row.split() if "::" in word]
        for test in tests:
            path, _, name = test.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            functions = {
                node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name in functions, f"{test} does not exist"
