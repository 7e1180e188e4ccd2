"""Waits two seconds for a session, and no longer."""

import grpc
from stubs import ADDRESS, KEY, grpc_workflow, pb

try:
    grpc_workflow.build_stub(ADDRESS).CreateSession(pb.CreateSessionRequest(), metadata=KEY, timeout=2)
except grpc.RpcError as error:
    print(error.code().name, error.details())
