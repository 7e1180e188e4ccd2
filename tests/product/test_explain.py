"""`moorage explain` and dry runs as people see them, and that what they say comes true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import moorage
import pytest

from tests.product.conftest import Installation

pytestmark = pytest.mark.containers


def test_a_session_that_waits_is_explained_and_starts_as_was_said(
    installation: Installation, client: moorage.Client, user: Callable[[str], moorage.Client]
) -> None:
    def run(*words: str) -> str:
        done = installation.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dry = ("create", "waits-for-room", "--cpu", "50", "--mem", "128m", "--lifetime", "600", "--dry-run")
    assert re.fullmatch(r"waits-for-room would start now on \S+\.\n", run(*dry))
    assert client.sessions.list() == []
    with user("explained") as other, client.sessions.create("holder", cpu=40, mem="128m", timeout=3600) as holder:
        held = other.sessions.create("not-to-be-named", cpu=20, mem="128m", wait=False)
        told = run(*dry)
        assert told.startswith("waits-for-room could be asked for, but would not start now. It waits for room: ")
        assert "It is the first in the queue of the resource group default." in told
        assert re.search(r"The one host of the group, \S+: 46 CPUs too few\.", told)
        waiting = client.sessions.create("waits-for-room", cpu=50, mem="128m", timeout=600, wait=False)
        assert "It would start now\n  - with 4 CPUs" in run("explain", "waits-for-room")
        told = run("explain", "waits-for-room", "--hosts")
        assert re.search(r"HOST +WHAT KEEPS IT FROM THERE\n\S+ +46 CPUs too few", told)
        assert "why " in run("info", "waits-for-room")
        said = json.loads(run("explain", "waits-for-room", "--json"))
        assert (said["status"], said["code"], said["position"]) == ("PENDING", "insufficient", 1)
        assert "It runs on " in run("explain", "holder")
        theirs = other.sessions.dry_run("theirs", cpu=30, mem="128m")
        assert theirs.code == "insufficient"
        assert theirs.ways
        assert "holder" not in str(theirs)
        assert "waits-for-room" not in str(theirs)
        held.destroy()
        single = [way for way in waiting.explain().ways if way.kind == "ends" and len(way.endings) == 1]
        assert [way.endings[0].name for way in single] == ["holder"]
        assert waiting.status == "PENDING"
        holder.destroy()
        waiting.wait_ready(30)
    waiting.destroy()
    assert "It has ended: destroyed by its owner." in waiting.explain().text


def test_clusters_and_refusals_are_tried_too(installation: Installation, client: moorage.Client) -> None:
    found = client.sessions.dry_run("gang", workers=3, cpu=1, mem="128m")
    assert (found.code, found.session_id) == ("starting", None)
    refused = installation.run("create", "too-large", "--cpu", "1000", "--dry-run")
    assert refused.returncode == 1
    assert refused.stderr.startswith("moorage: No host could ever hold")
    assert client.sessions.list() == []
