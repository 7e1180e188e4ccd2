"""The documentation's examples, word for word but for the address; the paths are this file's own on this machine."""
# ruff: noqa: E402, I001 - as the documentation has it

import os

import stubs  # noqa: F401 - lets the next line be what it is without torch
from cuvis_ai_core.grpc import cuvis_ai_pb2, cuvis_ai_pb2_grpc
import grpc

# Configure message size limits for hyperspectral data
options = [
    ("grpc.max_send_message_length", 300 * 1024 * 1024),  # 300 MB
    ("grpc.max_receive_message_length", 300 * 1024 * 1024),
]
# Create channel and stub
channel = grpc.insecure_channel(os.environ["ADDRESS"], options=options)
stub = cuvis_ai_pb2_grpc.CuvisAIServiceStub(channel)

response = stub.CreateSession(cuvis_ai_pb2.CreateSessionRequest())
session_id = response.session_id
print(f"Session created: {session_id}")

from pathlib import Path

# Build search paths (typical pattern)
config_root = Path(__file__).parent.parent / "configs"
search_paths = [
    str(config_root),
    str(config_root / "trainrun"),
    str(config_root / "pipeline"),
    str(config_root / "data"),
    str(config_root / "training"),
]
# Register search paths
registered = stub.SetSessionSearchPaths(
    cuvis_ai_pb2.SetSessionSearchPathsRequest(
        session_id=session_id,
        search_paths=search_paths,
        append=False,  # Replace any existing paths
    )
)
assert registered.success
assert list(registered.current_paths) == search_paths, registered

# Always close sessions when done
closed = stub.CloseSession(cuvis_ai_pb2.CloseSessionRequest(session_id=session_id))
assert closed.success
print("Session closed, resources freed")

session_id = None
try:
    session_id = stub.CreateSession(cuvis_ai_pb2.CreateSessionRequest()).session_id
    # ... training or inference ...
finally:
    if session_id:
        stub.CloseSession(cuvis_ai_pb2.CloseSessionRequest(session_id=session_id))

# Safe to call even if session doesn't exist (returns success=false)
again = stub.CloseSession(cuvis_ai_pb2.CloseSessionRequest(session_id=session_id))
assert not again.success
