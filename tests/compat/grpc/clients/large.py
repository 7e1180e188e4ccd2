"""A message of 250 MiB there and back, one that is too large, and one after it."""

import hashlib
import json
import os

import grpc
from stubs import ADDRESS, KEY, OPTIONS, grpc_workflow, pb

stub = type(grpc_workflow.build_stub(ADDRESS))(grpc.insecure_channel(ADDRESS, options=OPTIONS))
#: Its own limit is off: the front's is to hold.
careless = type(stub)(grpc.insecure_channel(ADDRESS, options=[("grpc.max_send_message_length", -1)]))
session = stub.CreateSession(pb.CreateSessionRequest(), metadata=KEY).session_id
pipeline = pb.PipelineConfig(config_bytes=b'{"nodes": [{}]}')
stub.LoadPipeline(pb.LoadPipelineRequest(session_id=session, pipeline=pipeline), metadata=KEY)


def infer(data, by=stub):
    asked = pb.InferenceRequest(session_id=session, inputs=pb.InputBatch(cube=pb.Tensor(raw_data=data)))
    return by.Inference(asked, metadata=KEY).outputs["cube"].raw_data


data = os.urandom(2**20) * 250
same = hashlib.sha256(infer(data)).digest() == hashlib.sha256(data).digest()
try:
    infer(bytes(310 * 2**20), careless)
except grpc.RpcError as error:
    refused = error.code().name
small = infer(b"after it").decode()
stub.CloseSession(pb.CloseSessionRequest(session_id=session), metadata=KEY)
print(json.dumps({"same": same, "refused": refused, "small": small}))
