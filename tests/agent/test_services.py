"""Services on real containers: they come up, are waited for, watched, started again, and survive the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.wire import ServiceFact, ServiceSpec
from domain.errors import NothingListens, PortConflict, ServiceEnded, ServiceSilent
from tests.agent.bed import RealBed
from tests.agent.contract import Subject

pytestmark = pytest.mark.containers

HTTP = """
import http.server as h, sys
print("serving", flush=True)
h.HTTPServer(("127.0.0.1", int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()
"""

#: Ends with the first request; a connection without one is nothing to it.
CRASHES = """
import http.server as h, os, sys
class H(h.BaseHTTPRequestHandler):
    def do_GET(self): os._exit(7)
h.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


@pytest.fixture(scope="module")
async def subject(engine_host: str, kernel_image: str) -> AsyncIterator[Subject]:
    bed = RealBed(engine_host, kernel_image)
    try:
        await bed.open()
        subject = Subject(bed)
        await subject.up()
        yield subject
        await subject.down()
    finally:
        await bed.close()


def spec(name: str, port: int, program: str | None = HTTP, **given: Any) -> ServiceSpec:
    argv = ["python3", "-c", program, str(port)] if program is not None else []
    return ServiceSpec(**{"name": name, "generation": 1, "port": port, "argv": argv, "ready_seconds": 10.0, **given})


async def told(subject: Subject, name: str, state: str, restarts: int = 0) -> ServiceFact:
    heard = subject.bed.heard  # type: ignore[attr-defined]

    def found() -> list[ServiceFact]:
        return [f for f in heard.services if f.name == name and f.state == state and f.restarts >= restarts]

    try:
        await heard.until(found, 20.0)
    except TimeoutError:
        raise AssertionError((heard.services, subject.bed.log())) from None  # type: ignore[attr-defined]
    return found()[0]


async def test_it_is_up_when_it_answers(subject: Subject) -> None:
    fact = await subject.agent.start_service(subject.where, spec("web", 8200, path="/"))
    assert (fact.state, fact.restarts) == ("healthy", 0)
    again = await subject.agent.start_service(subject.where, spec("web", 8200, path="/"))
    assert again.run_id == fact.run_id, "asking twice starts once"
    assert (await told(subject, "web", "healthy")).generation == 1
    await subject.agent.stop_service(subject.where, "web")
    with pytest.raises(NothingListens):
        await subject.agent.open_tunnel(subject.where, 8200)


async def test_a_process_that_dies_says_why(subject: Subject) -> None:
    with pytest.raises(ServiceEnded, match=r"exit code 3.*no such thing") as caught:
        await subject.agent.start_service(
            subject.where, spec("dies", 8201, "import sys; print('no such thing'); sys.exit(3)")
        )
    assert "ended" in caught.value.message


async def test_a_program_that_is_not_there(subject: Subject) -> None:
    with pytest.raises(ServiceEnded, match="127"):
        await subject.agent.start_service(subject.where, spec("none", 8202, argv=["no-such-program"]))


async def test_a_path_that_never_answers(subject: Subject) -> None:
    with pytest.raises(ServiceSilent, match=r"404 to GET /not-here.*serving"):
        await subject.agent.start_service(subject.where, spec("silent", 8203, path="/not-here", ready_seconds=0.7))
    with pytest.raises(NothingListens):  # and is not left running
        await subject.agent.open_tunnel(subject.where, 8203)


async def test_a_port_that_is_taken(subject: Subject) -> None:
    await subject.agent.start_service(subject.where, spec("first", 8204))
    with pytest.raises(PortConflict, match="8204"):
        await subject.agent.start_service(subject.where, spec("second", 8204))
    with pytest.raises(ServiceSilent, match="Nothing listens"):
        await subject.agent.start_service(subject.where, spec("port", 8205, None, ready_seconds=0.3))
    fact = await subject.agent.start_service(subject.where, spec("port", 8204, None, ready_seconds=0.3))
    assert fact.state == "healthy"
    await subject.agent.stop_service(subject.where, "first")
    assert "Nothing listens" in str((await told(subject, "port", "unhealthy")).message)
    await subject.agent.stop_service(subject.where, "port")


async def crash(subject: Subject) -> None:
    reader, writer = await subject.agent.open_tunnel(subject.where, 8206)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    await reader.read()
    writer.close()


async def test_one_that_crashes_is_started_again_within_limits(subject: Subject) -> None:
    await subject.agent.start_service(subject.where, spec("crash", 8206, CRASHES, most_restarts=1))
    async with asyncio.timeout(20):
        await crash(subject)
        fact = await told(subject, "crash", "healthy", restarts=1)
        assert fact.run_id.endswith("-2")  # type: ignore[union-attr]
        await crash(subject)
        failed = await told(subject, "crash", "failed")
    assert "not started again" in str(failed.message)
    await subject.agent.stop_service(subject.where, "crash")


async def test_it_survives_the_agent(subject: Subject) -> None:
    bed = subject.bed
    assert isinstance(bed, RealBed)
    before = await subject.agent.start_service(subject.where, spec("stays", 8207))
    bed.heard.services.clear()
    await bed.kill()
    await bed.start()
    fact = await told(subject, "stays", "healthy")
    assert fact.run_id == before.run_id, "the same process goes on"
    async with asyncio.timeout(10):  # the kernel is found again a moment later
        while True:
            try:
                again = await subject.agent.start_service(subject.where, spec("stays", 8207))
                break
            except Exception:
                await asyncio.sleep(0.05)
    assert again.run_id == before.run_id
    await subject.agent.stop_service(subject.where, "stays")
