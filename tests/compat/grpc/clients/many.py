"""More at once than one user may have in the front: each call is answered, or refused, and calls go on afterwards."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
from stubs import ADDRESS, KEY, OPTIONS, grpc_workflow, pb

stub = type(grpc_workflow.build_stub(ADDRESS))(grpc.insecure_channel(ADDRESS, options=OPTIONS))
session = stub.CreateSession(pb.CreateSessionRequest(), metadata=KEY).session_id
pipeline = pb.PipelineConfig(config_bytes=b'{"nodes": [{}]}')
stub.LoadPipeline(pb.LoadPipelineRequest(session_id=session, pipeline=pipeline), metadata=KEY)


def infer(size):
    asked = pb.InferenceRequest(session_id=session, inputs=pb.InputBatch(cube=pb.Tensor(raw_data=bytes(size))))
    try:
        return f"OK {len(stub.Inference(asked, metadata=KEY).outputs['cube'].raw_data) == size}"
    except grpc.RpcError as error:
        return error.code().name


with ThreadPoolExecutor(8) as threads:
    together = list(threads.map(infer, [15 * 2**20] * 8))
alone = infer(15 * 2**20)
stub.CloseSession(pb.CloseSessionRequest(session_id=session), metadata=KEY)
print(json.dumps({"together": sorted(set(together)), "alone": alone}))
