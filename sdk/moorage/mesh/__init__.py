"""Streams of tensors from the replicas of a session: the best node is asked, and another one when it fails.

config = ClientConfig(session="model")  # its service 'tensor-stream'
async with RemoteManager(config) as remote_manager:
    async with SessionManager(remote_manager).session() as session:
        async for tensor in session.run_protocol_task("a prompt", tensor):
            ...
"""

from moorage.mesh._authorizers import AuthorizerBase, RateLimitAuthorizer, Refused, SignatureAuthorizer
from moorage.mesh._tensors import BadTensor, Frame, Limits, Tensor
from moorage.mesh.config import ClientConfig
from moorage.mesh.errors import (
    ApplicationError,
    AuthorizationRefused,
    InvalidInput,
    MeshError,
    NodeBusy,
    NodeFailed,
    NoNodes,
    RateLimited,
    SessionClosed,
    SignatureInvalid,
    StreamInterrupted,
)
from moorage.mesh.manager import RemoteManager, RemoteManagerState
from moorage.mesh.nodes import P2P, Node
from moorage.mesh.protocol import MockProtocol
from moorage.mesh.session import Session, SessionManager

__all__ = [
    "P2P",
    "ApplicationError",
    "AuthorizationRefused",
    "AuthorizerBase",
    "BadTensor",
    "ClientConfig",
    "Frame",
    "InvalidInput",
    "Limits",
    "MeshError",
    "MockProtocol",
    "NoNodes",
    "Node",
    "NodeBusy",
    "NodeFailed",
    "RateLimitAuthorizer",
    "RateLimited",
    "Refused",
    "RemoteManager",
    "RemoteManagerState",
    "Session",
    "SessionClosed",
    "SessionManager",
    "SignatureAuthorizer",
    "SignatureInvalid",
    "StreamInterrupted",
    "Tensor",
]
