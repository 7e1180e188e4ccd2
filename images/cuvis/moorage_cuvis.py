"""cuvis.ai's own gRPC service for one session of Moorage: runs in the session's container, behind the gRPC front.

    python -m moorage_cuvis --port 50051

Configurations are composed, weights are unpickled and plugins run here, as the session's user, with the container's
files and environment, and with nothing of the manager's or the host's.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from cuvis_ai_schemas.grpc.v1 import cuvis_ai_pb2

#: Makes the service: anything with the RPCs as methods and a `session_manager` that has `create_session_with_id`.
SERVICE = "moorage_cuvis_service:service"
_DESCRIPTOR = cuvis_ai_pb2.DESCRIPTOR.services_by_name["CuvisAIService"]
#: Of a session's beginning and end the front sees.
_ELSEWHERE = frozenset({"CreateSession", "CloseSession"})


class OneSession(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Hands calls to the service, which knows the session by the id that its client has."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._beginning = threading.Lock()
        self._handlers = {
            f"/{_DESCRIPTOR.full_name}/{method.name}": self._handler(method)
            for method in _DESCRIPTOR.methods
            if method.name not in _ELSEWHERE
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)

    def _handler(self, method: Any) -> Any:
        ask = getattr(self._service, method.name)

        def answered(request: Any, context: Any) -> Any:
            if getattr(request, "session_id", ""):
                with self._beginning:  # it looks, and then writes: two first calls at once would get a session each
                    self._service.session_manager.create_session_with_id(request.session_id)
            return ask(request, context)

        made = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return made(
            _documented(answered) if method.name == "SetSessionSearchPaths" else answered,
            request_deserializer=method.input_type._concrete_class.FromString,
            response_serializer=method.output_type._concrete_class.SerializeToString,
        )


def _documented(ask: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """As the documentation has it: paths are absolute, and without `append` they replace those before."""

    def answered(request: Any, context: Any) -> Any:
        relative = [path for path in request.search_paths if not Path(path).is_absolute()]
        request.search_paths[:] = [path for path in request.search_paths if path not in relative]
        request.append = request.append if request.HasField("append") else False
        answer = ask(request, context)
        answer.rejected_paths.extend(relative)
        return answer

    return answered


def serve(service: Any, *, port: int, message_mib: int) -> None:
    """Until SIGTERM."""
    size = message_mib * 2**20
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=(OneSession(service),), options=options)
    server.add_insecure_port(f"127.0.0.1:{port}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.start()
    server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve cuvis.ai to the gRPC front of Moorage.")
    parser.add_argument("--port", type=int, default=50051)
    parser.add_argument("--message-mib", type=int, default=300, help="the largest message")
    parser.add_argument("--service", default=SERVICE, help="MODULE:NAME of what makes the service")
    chosen = parser.parse_args()
    module, _, name = chosen.service.partition(":")
    make: Callable[[], Any] = getattr(importlib.import_module(module), name)
    serve(make(), port=chosen.port, message_mib=chosen.message_mib)


if __name__ == "__main__":
    main()
