"""Weights that are a program, an interpolation of the environment, and a server that is made to end."""

import json
import os
import pickle
import sys

import grpc
from stubs import ADDRESS, KEY, grpc_workflow, pb

CONFIGS, HOST_FILE = sys.argv[1:]
stub = grpc_workflow.build_stub(ADDRESS)
said = {}


class Calls:
    def __init__(self, what, *given):
        self.call = what, given

    def __reduce__(self):
        return self.call


def code(ask, request):
    try:
        ask(request, metadata=KEY)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


one, two = (stub.CreateSession(pb.CreateSessionRequest(), metadata=KEY).session_id for _ in range(2))
for session in (one, two):
    pipeline = pb.PipelineConfig(config_bytes=b'{"nodes": [{}]}')
    stub.LoadPipeline(pb.LoadPipelineRequest(session_id=session, pipeline=pipeline), metadata=KEY)
    paths = pb.SetSessionSearchPathsRequest(session_id=session, search_paths=[CONFIGS])
    stub.SetSessionSearchPaths(paths, metadata=KEY)


def load(session, thing):
    weights = pb.LoadPipelineWeightsRequest(session_id=session, weights_bytes=pickle.dumps(thing))
    return code(stub.LoadPipelineWeights, weights)


def factor(session):
    return stub.Inference(pb.InferenceRequest(session_id=session), metadata=KEY).metrics["factor"]


load(one, Calls(os.getuid))
said["uid"] = factor(one)
load(one, Calls(os.path.exists, HOST_FILE))
said["sees_host"] = factor(one)
leak = pb.ResolveConfigRequest(session_id=one, config_type="trainrun", path="trainrun/leak")
said["leak"] = json.loads(stub.ResolveConfig(leak, metadata=KEY).config_bytes)
said["ended"] = load(one, Calls(os._exit, 3))
while (after := code(stub.Inference, pb.InferenceRequest(session_id=one)))[0] in ("UNAVAILABLE", "FAILED_PRECONDITION"):
    pass
said["after"] = after
said["again"] = code(stub.Inference, pb.InferenceRequest(session_id=one))
said["other"] = code(stub.Inference, pb.InferenceRequest(session_id=two))
stub.CloseSession(pb.CloseSessionRequest(session_id=two), metadata=KEY)
print(json.dumps(said))
