"""What can go wrong between a client and the nodes of a mesh."""

from __future__ import annotations

from typing import Any

from moorage._errors import MoorageError


class MeshError(MoorageError):
    """Something that was asked of the nodes did not happen."""

    code = "mesh_error"


class NoNodes(MeshError):
    """There is no node that may be asked at the moment."""

    code, retryable = "no_nodes", True
    default_message = "There is no node that may be asked at the moment."


class NodeFailed(MeshError):
    """A node could not be reached, broke off, was silent for too long, or sent what is no stream. Another may do better."""

    code, retryable = "node_failed", True


class NodeBusy(NodeFailed):
    """All streams of a node are in use; it is not banned for that."""

    code = "node_busy"


class SignatureInvalid(NodeFailed):
    """What a node sent does not carry a signature that is trusted; nothing of it was given out."""

    code = "signature_invalid"


class StreamInterrupted(MeshError):
    """A node failed when it had given outputs already, and the application cannot go on where it broke off."""

    code = "stream_interrupted"

    def __init__(self, message: str, *, outputs: int) -> None:
        super().__init__(message, facts={"outputs": outputs})
        self.outputs = outputs


class CannotResume(MeshError):
    """The application cannot begin at another output than its first."""

    code = "cannot_resume"


class AuthorizationRefused(MeshError):
    """The node does not let this request through; asking others changes nothing."""

    code = "authorization_refused"


class RateLimited(AuthorizationRefused):
    """Too many requests; `retry_after` seconds from now there is room again."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, facts={"retry_after": retry_after})
        self.retry_after = retry_after


class InvalidInput(MeshError):
    """The tensor or the prompt was refused."""

    code = "invalid_input"


class ApplicationError(MeshError):
    """The application raised: `ename`, `evalue` and `traceback` are its exception's. Asking another node changes nothing."""

    code = "application_error"

    def __init__(self, message: str, *, ename: str = "", evalue: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback


class SessionClosed(MeshError):
    """The session was closed; make a new one."""

    code = "mesh_session_closed"
    default_message = "This session was closed; make a new one."


def refused(status: int, told: dict[str, Any]) -> MeshError:
    """A node's refusal of a request, as an error."""
    code, message = str(told.get("code", "")), str(told.get("message") or f"The node answered {status}.")
    match code:
        case "rate_limited":
            wait = told.get("retry_after")
            return RateLimited(message, retry_after=float(wait) if isinstance(wait, (int, float)) else 1.0)
        case "authorization_refused":
            return AuthorizationRefused(message)
        case "busy":
            return NodeBusy(message)
        case "cannot_resume":
            return CannotResume(message)
        case "bad_tensor" | "bad_frame" | "tensor_too_large" | "length_required":
            return InvalidInput(message, code=code)
    return NodeFailed(message)
