"""Trains without end; prints the session's id when it has begun. With an id: whether its training was told to end."""

import sys
import threading

import grpc
from stubs import ADDRESS, KEY, grpc_workflow, pb

stub = grpc_workflow.build_stub(ADDRESS)
if len(sys.argv) > 1:
    status = pb.GetTrainStatusRequest(session_id=sys.argv[1])
    while stub.GetTrainStatus(status, metadata=KEY).latest_progress.message != "cancelled=True":
        threading.Event().wait(0.1)
    print("cancelled")
    if sys.argv[2:] == ["late"]:  # a deadline is passed on as well
        try:
            for _ in stub.Train(pb.TrainRequest(session_id=sys.argv[1]), metadata=KEY, timeout=0.5):
                pass
        except grpc.RpcError as error:
            print(error.code().name)
    stub.CloseSession(pb.CloseSessionRequest(session_id=sys.argv[1]), metadata=KEY)
    sys.exit()
session = stub.CreateSession(pb.CreateSessionRequest(), metadata=KEY).session_id
pipeline = pb.PipelineConfig(config_bytes=b'{"nodes": [{}]}')
stub.LoadPipeline(pb.LoadPipelineRequest(session_id=session, pipeline=pipeline), metadata=KEY)
for place, _ in enumerate(stub.Train(pb.TrainRequest(session_id=session), metadata=KEY)):
    if place == 10:
        print(session, flush=True)
