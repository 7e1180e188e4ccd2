"""Create, search paths, resolve, load, inference, close; two sessions that know nothing of each other."""

import json
import sys
import uuid

import grpc
from keyed import keyed_stub, refused
from stubs import ADDRESS, KEY, OPTIONS, grpc_workflow, pb

CONFIGS = sys.argv[1]

bare = grpc_workflow.build_stub(ADDRESS)
plain = grpc.insecure_channel(ADDRESS, options=OPTIONS)
stub = keyed_stub()
said = {"nobody": refused(bare.CreateSession, pb.CreateSessionRequest())}

paths = [CONFIGS, f"{CONFIGS}/trainrun", f"{CONFIGS}/pipeline"]
one = grpc_workflow.create_session_with_search_paths(stub, paths)
two = stub.CreateSession(pb.CreateSessionRequest()).session_id
said["versions"] = [uuid.UUID(one).version, uuid.UUID(two).version]

answer = stub.SetSessionSearchPaths(
    pb.SetSessionSearchPathsRequest(session_id=one, search_paths=["/nowhere", "relative", CONFIGS])
)
said["paths"] = [list(answer.current_paths), sorted(answer.rejected_paths)]

resolved, config = grpc_workflow.resolve_trainrun_config(stub, one, "first", ["epochs=3"])
said["config"] = config
said["not_there"] = refused(
    stub.ResolveConfig, pb.ResolveConfigRequest(session_id=two, config_type="trainrun", path="trainrun/first")
)

cube = pb.InputBatch(cube=pb.Tensor(shape=[8], dtype=pb.D_TYPE_UINT8, raw_data=bytes(range(8))))
said["early"] = refused(stub.Inference, pb.InferenceRequest(session_id=one, inputs=cube))
assert grpc_workflow.apply_trainrun_config(stub, one, resolved.config_bytes).success
done = stub.Inference(pb.InferenceRequest(session_id=one, inputs=cube))
said["inference"] = [list(done.outputs["cube"].raw_data), dict(done.metrics)]
said["other"] = refused(stub.Inference, pb.InferenceRequest(session_id=two, inputs=cube))
said["training"] = [grpc_workflow.format_progress(one) for one in stub.Train(pb.TrainRequest(session_id=one))]
said["no_session"] = list(stub.GetTrainingCapabilities(pb.GetTrainingCapabilitiesRequest()).supported_optimizers)

preview = pb.GetPipelineVisualizationRequest(config_content="nodes: []")
said["preview"] = refused(stub.GetPipelineVisualization, preview)[0]  # the stand-in's own answer: it was asked

said["closed"] = [stub.CloseSession(pb.CloseSessionRequest(session_id=which)).success for which in (one, one, "x")]
said["gone"] = refused(stub.GetTrainStatus, pb.GetTrainStatusRequest(session_id=one))
said["unknown"] = refused(stub.GetTrainStatus, pb.GetTrainStatusRequest(session_id=str(uuid.uuid4())))
said["unnamed"] = refused(stub.GetTrainStatus, pb.GetTrainStatusRequest())
raw = plain.unary_unary("/cuvis_ai.v1.CuvisAIService/Inference")
said["broken"] = refused(lambda data: raw(data, metadata=KEY), b"\xff\xff")
said["lives"] = refused(stub.GetTrainStatus, pb.GetTrainStatusRequest(session_id=two))
stub.CloseSession(pb.CloseSessionRequest(session_id=two))
print(json.dumps(said))
