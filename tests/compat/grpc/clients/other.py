"""What somebody can do with a session of another user, over TLS; and the health service, which anybody may ask."""

import json
import os
import sys

import grpc
from stubs import ADDRESS, OPTIONS, grpc_workflow, pb

session = sys.argv[1]
target = ADDRESS.replace("127.0.0.1", "localhost")
channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=OPTIONS)
stub = type(grpc_workflow.build_stub(ADDRESS))(channel)
credentials = grpc.access_token_call_credentials(os.environ["KEY"])


def code(ask, request, **more):
    try:
        answer = ask(request, **more)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", answer.hex() if isinstance(answer, bytes) else str(answer).strip()]


status = pb.GetTrainStatusRequest(session_id=session)
health = channel.unary_unary("/grpc.health.v1.Health/Check")
watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
print(
    json.dumps(
        {
            "mine": code(stub.GetTrainStatus, status, credentials=credentials),
            "nobody": code(stub.GetTrainStatus, status),
            "wrong": code(stub.GetTrainStatus, status, metadata=(("authorization", "Bearer MO.wrong"),)),
            "closed": code(stub.CloseSession, pb.CloseSessionRequest(session_id=session), credentials=credentials),
            "created": code(stub.CreateSession, pb.CreateSessionRequest(), credentials=credentials),
            "health": code(health, b""),
            "unknown_service": code(health, b"\n\x04else"),
            "watched": next(watch).hex(),
            "no_method": code(channel.unary_unary("/cuvis_ai.v1.CuvisAIService/Nothing"), b""),
        }
    )
)
watch.cancel()
