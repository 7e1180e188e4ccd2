"""What must not happen through the gRPC front, and what large messages, TLS and lost servers do to it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.installation import processes
from tests.compat.grpc.conftest import Front

pytestmark = [pytest.mark.compat, pytest.mark.full]


def test_250_mib_pass_and_more_is_refused_and_all_goes_on(front: Front) -> None:
    before = processes("manager", front.data_dir)
    assert front.said("large.py") == {"same": True, "refused": "RESOURCE_EXHAUSTED", "small": "after it"}
    assert processes("manager", front.data_dir) == before


def test_one_user_cannot_fill_the_memory(front: Front) -> None:
    with front.another(grpc_message_mib=16, grpc_user_mib=20) as port:
        said = front.said("many.py", port=port)
    assert set(said["together"]) <= {"OK True", "RESOURCE_EXHAUSTED"}
    assert said["alone"] == "OK True"


def test_a_client_that_vanishes_ends_its_call_and_nothing_else(front: Front) -> None:
    with front.begin("train.py") as process:
        assert process.stdout is not None
        session = process.stdout.readline().strip()
        process.kill()
    assert front.client("train.py", session, "late").split() == ["cancelled", "DEADLINE_EXCEEDED"]


def test_what_runs_in_a_session_has_nothing_of_the_host_and_is_lost_when_its_server_ends(front: Front) -> None:
    said = front.said("hostile.py", str(front.configs), str(front.data_dir / "manager.toml"))
    assert said["uid"] == 1000
    assert said["sees_host"] == 0
    assert said["leak"] == {"seen": "nothing", "home": "/home/work"}
    assert said["ended"][0] == "UNAVAILABLE"
    assert said["after"][0] == "NOT_FOUND"
    assert said["again"][0] == "NOT_FOUND"
    assert said["other"][0] == "OK"


def test_sessions_of_others_are_not_there_and_credentials_are_asked_for(front: Front, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    front.run("admin", "user", "add", "mallory@example.org")
    made = json.loads(front.run("admin", "keypair", "add", "mallory@example.org", "--json").stdout)
    stranger = f"{made['access_key']}.{made['secret_key']}"
    with front.begin("train.py") as process, front.another(tls_cert=str(certificate), tls_key=str(key)) as port:
        assert process.stdout is not None
        session = process.stdout.readline().strip()
        front.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(certificate)
        try:
            said = front.said("other.py", session, port=port, key=stranger)
        finally:
            del front.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]
            process.kill()
    assert said["mine"][0] == "NOT_FOUND"
    assert said["nobody"][0] == said["wrong"][0] == "UNAUTHENTICATED"
    assert said["closed"] == ["OK", ""]
    assert said["created"][0] == "FAILED_PRECONDITION"
    assert "moorage template create cuvis" in said["created"][1]
    assert said["health"] == ["OK", "0801"]
    assert said["watched"] == "0801"
    assert said["unknown_service"][0] == "NOT_FOUND"
    assert said["no_method"][0] == "UNIMPLEMENTED"
    assert front.client("train.py", session).strip() == "cancelled"


def test_a_call_ends_with_the_key_that_it_was_made_with(front: Front) -> None:
    made = json.loads(front.run("admin", "keypair", "add", "admin@localhost", "--json").stdout)
    with front.begin("train.py", key=f"{made['access_key']}.{made['secret_key']}") as process:
        assert process.stdout is not None
        session = process.stdout.readline().strip()
        assert front.run("admin", "keypair", "rm", made["access_key"]).returncode == 0
        _, complaint = process.communicate(timeout=60)
    assert "StatusCode.UNAUTHENTICATED" in complaint
    assert front.client("train.py", session).strip() == "cancelled"


def test_who_gives_up_waiting_for_room_leaves_nothing_behind(front: Front) -> None:
    with front.connect() as client:
        template = client.templates.get("cuvis")
        large = {**template.session, "resource_slots": {"cpu": 64, "mem": "128m"}}
        client.templates.create("too-large", {"session": large})
        with (
            client.sessions.create(image="python", cpu=1, mem="128m"),
            front.another(grpc_template="too-large") as port,
        ):
            assert front.client("give_up.py", port=port).split()[0] in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
            waiting = [session for session in client.sessions.list() if session.info.labels]
            for session in waiting:
                session.wait_until("CANCELLED", "TERMINATED", timeout=30)


def test_a_session_that_nobody_calls_ends(front: Front) -> None:
    with front.begin("train.py") as process, front.connect() as client:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        [session] = client.sessions.list()
        process.kill()
        assert session.info.idle_timeout == 3600
        assert session.info.id != name
        session.modify(idle_timeout=1)
        session.wait_until("TERMINATED", timeout=60)
        assert "idle" in (session.info.status_reason or "")


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    private.write_bytes(pem)
    return certificate, private
