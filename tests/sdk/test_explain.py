"""How an explanation looks on a terminal."""

from __future__ import annotations

import pytest
from moorage._models import Explanation
from moorage.cli.explain import show

WAITS = {
    "session_id": "01a1feac-0ad5-7ec2-8169-23e642d7358a",
    "name": "train",
    "status": "PENDING",
    "code": "insufficient",
    "text": "It waits for room.",
    "resource_group": "default",
    "position": 3,
    "queued": 7,
    "before": [{"rule": "priority", "sessions": 1, "own": 0, "text": "1 session with a higher priority"}],
    "hosts": [
        {"hosts": 12, "text": "1 to 2 GPUs too few", "codes": ["insufficient"], "agents": [f"host-{n}" for n in range(1, 6)]},
        {"hosts": 1, "text": "cordoned", "codes": ["cordoned"], "agents": ["host-\x1b[31m"]},
    ],
    "hosts_total": 13,
    "reservation": {"own": True, "agents": ["host-1"], "at": None, "text": "Room is kept for it on host-1."},
    "ways": [
        {"kind": "fewer", "text": "with 3 GPUs", "now": True, "slots": {"gpu": 3}},
        {"kind": "ends", "text": "when session eval on host-2 ends", "now": True},
        {"kind": "fewer", "text": "with 2 CPUs", "now": False, "slots": {"cpu": 2000}},
    ],
    "cut_off": True,
}  # fmt: skip
SHOWN = """\
train is PENDING. It waits for room.

It is number 3 of 7 in the queue of the resource group default. Before it:
  - 1 session with a higher priority

Of the 13 hosts of the group:
  12 hosts  1 to 2 GPUs too few  host-1, host-2, host-3, host-4, host-5, ...
   1 host   cordoned             host-\N{REPLACEMENT CHARACTER}[31m

Room is kept for it on host-1.

It would start now
  - with 3 GPUs

It would start
  - when session eval on host-2 ends

It could start, though not now
  - with 2 CPUs

There may be other ways: the search was ended after a while.
"""


def test_one_that_waits(capsys: pytest.CaptureFixture[str]) -> None:
    show(Explanation.from_json(WAITS))
    assert capsys.readouterr().out == SHOWN


def test_nothing_helps(capsys: pytest.CaptureFixture[str]) -> None:
    alone = {"hosts": WAITS["hosts"][:1], "hosts_total": 1, "ways": [], "cut_off": False, "before": [], "position": 1}  # type: ignore[index]
    show(Explanation.from_json({**WAITS, **alone, "reservation": None}))
    assert capsys.readouterr().out.split("\n\n")[1:] == [
        "It is the first in the queue of the resource group default.",
        "The one host of the group, host-1: 1 to 2 GPUs too few.",
        "No single change would let it start now.\n",
    ]


def test_before_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    starts = {"name": "fresh", "code": "starting", "text": "", "on": ["host-2"], "position": 1, "queued": 1}
    show(Explanation.from_json(starts))
    assert capsys.readouterr().out == "fresh would start now on host-2.\n"
    show(Explanation.from_json({**WAITS, "status": None}))
    assert capsys.readouterr().out.startswith("train could be asked for, but would not start now. It waits for room.")
