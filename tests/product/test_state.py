"""A session's store and context, from inside and from outside."""

from __future__ import annotations

import math

import moorage
import pytest
from moorage import errors

from tests.product.conftest import Installation


def test_programs_and_clients_share_it(client: moorage.Client, installation: Installation) -> None:
    with client.sessions.create(image="python", cpu=0.5, mem="256m") as session:
        session.state["best"] = {"loss": 0.93, "of": [1, None, "ä"]}
        code = "from moorage_session import context, state\nstate['best'].pop('of')\nstate['next/…'] = context['image']"
        assert session.run_code(code).exit_code == 0
        assert (session.state["best"], session.state["next/…"]) == (
            {"loss": 0.93, "of": [1, None, "ä"]},
            session.context["image"],
        )
        said = session.commands.run(
            "python3 -c 'from moorage_session import state; print(len(state)); del state[\"best\"]'"
        )
        assert (said.stdout, list(session.state), "best" in session.state) == ("2\n", ["next/…"], False)
        session.run_code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")  # the worker's end is not its own
        assert session.state.get("next/…") == session.context["image"]
        with pytest.raises(ValueError, match="JSON"):
            session.state["x"] = math.nan
        with pytest.raises(errors.StateFull):
            session.state["x"] = "y" * 70_000
        with pytest.raises(KeyError):
            session.state["x"]
        shown = installation.run("state", "ls", session.name)
        assert "next/…" in shown.stdout
        assert installation.run("state", "set", session.name, "rate", "1e-3").returncode == 0
        assert installation.run("state", "get", session.name, "rate").stdout.strip() == "0.001"
        assert installation.run("state", "set", session.name, "rate", "plain text").returncode != 0
        assert installation.run("state", "rm", session.name, "rate").returncode == 0
        session.commands.run("rm -f /moorage/link/state.json; mkdir /moorage/link/state.json")
        with pytest.raises(errors.StateDamaged):
            session.state.get("best")
