"""The client's side of `cuvis_ai_core` and `cuvis_ai`, real and unchanged, without what their packages import beside it:
their `__init__` loads torch, which a client has for other reasons than to call."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def _without_init(name: str) -> ModuleType:
    above, _, last = name.rpartition(".")
    module = ModuleType(name)
    module.__path__ = [str(Path(importlib.import_module(above).__path__[0]) / last)]
    sys.modules[name] = module
    return module


_core = _without_init("cuvis_ai_core.grpc")
_real = importlib.import_module("cuvis_ai_core.grpc.v1")
_core.cuvis_ai_pb2, _core.cuvis_ai_pb2_grpc = _real.cuvis_ai_pb2, _real.cuvis_ai_pb2_grpc  # type: ignore[attr-defined]
_without_init("cuvis_ai.utils")
pb: Any = _real.cuvis_ai_pb2
grpc_workflow: Any = importlib.import_module("cuvis_ai.utils.grpc_workflow")

ADDRESS = os.environ["ADDRESS"]
#: Of the user who calls, as every call's metadata; none at a port that is for one user.
KEY = (("authorization", f"Bearer {os.environ['KEY']}"),) if os.environ.get("KEY") else ()
SIZE = 300 * 1024 * 1024
OPTIONS = [("grpc.max_send_message_length", SIZE), ("grpc.max_receive_message_length", SIZE)]
