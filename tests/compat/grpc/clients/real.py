"""cuvis-ai-core's own server, in two sessions: a plugin, a pipeline, inference, training, weights, a crash, the end."""

import array
import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from keyed import keyed_stub, refused
from stubs import grpc_workflow, pb

PROJECT = Path(sys.argv[1])
CONFIGS = PROJECT / "configs"
PATHS = [str(CONFIGS), str(CONFIGS / "trainrun"), str(CONFIGS / "pipeline")]
stub = keyed_stub()
said = {}


def begun(_):
    session = grpc_workflow.create_session_with_search_paths(stub, PATHS)
    manifest = pb.PluginManifest(config_bytes=grpc_workflow.load_manifest_bytes(PROJECT / "plugins/bands.yaml"))
    loaded = stub.LoadPlugin(pb.LoadPluginRequest(session_id=session, manifest=manifest))
    assert (loaded.registered_plugin, loaded.error) == ("bands", "")
    return session


def cube(shape, values):
    return pb.Tensor(shape=shape, dtype=pb.D_TYPE_FLOAT32, raw_data=array.array("f", values).tobytes())


#: Two pixels of three bands; their means are 2 and 5.
CUBE = cube([1, 1, 2, 3], [1, 2, 3, 4, 5, 6])


def asked(session, given=CUBE):
    inputs = pb.InputBatch(cube=given)
    return pb.InferenceRequest(session_id=session, inputs=inputs, output_specs=["brightness"])


def infer(session, given=CUBE):
    [(name, tensor)] = stub.Inference(asked(session, given)).outputs.items()
    return [name, list(tensor.shape), list(array.array("f", tensor.raw_data)[:2])]


def resolved(session, name, *overrides):
    path = pb.ResolveConfigRequest(session_id=session, config_type="pipeline", path=name, overrides=overrides)
    return json.loads(stub.ResolveConfig(path).config_bytes)


def load(session, config, gain):
    config["nodes"][0]["hparams"]["gain"] = gain
    data = grpc_workflow.normalize_pipeline_bytes(json.dumps(config).encode())
    return stub.LoadPipeline(
        pb.LoadPipelineRequest(session_id=session, pipeline=pb.PipelineConfig(config_bytes=data))
    ).success


class Exits:
    """Weights that are a program."""

    def __reduce__(self):
        return os._exit, (3,)


with ThreadPoolExecutor(2) as both:
    one, two = both.map(begun, range(2))
nodes = stub.ListAvailableNodes(pb.ListAvailableNodesRequest(session_id=one)).nodes
said["nodes"] = [node.full_path for node in nodes if node.plugin_name == "bands"]
said["early"] = refused(stub.Inference, asked(one))
said["config"] = resolved(one, "pipeline/bright", "metadata.name=mine")
said["not_there"] = refused(
    stub.ResolveConfig, pb.ResolveConfigRequest(session_id=one, config_type="pipeline", path="pipeline/none")
)
said["leak"] = resolved(one, "pipeline/leak")["metadata"]["description"]
preview = pb.GetPipelineVisualizationRequest(
    format="dot", config_content=(CONFIGS / "pipeline/bright.yaml").read_text()
)
said["preview"] = stub.GetPipelineVisualization(preview).image_data.decode()
said["optimizers"] = list(stub.GetTrainingCapabilities(pb.GetTrainingCapabilitiesRequest()).supported_optimizers)

with ThreadPoolExecutor(2) as both:
    said["loaded"] = list(both.map(load, (one, two), (said["config"], resolved(two, "pipeline/bright")), (2.0, 10.0)))
said["inference"] = [infer(one), infer(two)]
said["wrong"] = refused(stub.Inference, asked(one, cube([1, 1, 2, 3], [1, 2])))
elsewhere = {
    "name": "other",
    "repo": "https://example.org/o.git",
    "tag": "v1",
    "capabilities": [{"class_name": "other.Node"}],
}
manifest = pb.PluginManifest(config_bytes=json.dumps(elsewhere).encode())
assert stub.LoadPlugin(pb.LoadPluginRequest(session_id=two, manifest=manifest)).registered_plugin == "other"
unknown = {"plugins": ["other"], "nodes": [{"name": "other", "class_name": "other.Node"}], "connections": []}
unknown = pb.PipelineConfig(config_bytes=json.dumps(unknown).encode())
said["lacking"] = refused(stub.LoadPipeline, pb.LoadPipelineRequest(session_id=two, pipeline=unknown))
said["inputs"] = list(stub.GetPipelineInputs(pb.GetPipelineInputsRequest(session_id=one)).input_names)

_, trainrun = grpc_workflow.resolve_trainrun_config(stub, one, "first", ["data.params.level=1.5"])
trainrun = grpc_workflow.inline_pipeline_ref(trainrun, trainrun_dir=CONFIGS / "trainrun")
assert grpc_workflow.apply_trainrun_config(stub, one, json.dumps(trainrun).encode()).success
train = pb.TrainRequest(session_id=one, trainer_type=pb.TRAINER_TYPE_STATISTICAL)
said["training"] = [grpc_workflow.format_progress(progress) for progress in stub.Train(train)]
said["fitted"] = infer(one)
saved = stub.SavePipeline(pb.SavePipelineRequest(session_id=one, pipeline_path="/home/work/mine.yaml"))

said["again"] = [load(one, said["config"], 3.0), infer(one)]
weights = pb.LoadPipelineWeightsRequest(session_id=one, weights_path=saved.weights_path)
said["weights"] = [stub.LoadPipelineWeights(weights).success, infer(one)]
said["other"] = infer(two)
said["large"] = infer(one, pb.Tensor(shape=[1, 1000, 2048, 32], dtype=pb.D_TYPE_FLOAT32, raw_data=bytes(250 * 2**20)))

try:
    stub.LoadPipelineWeights(pb.LoadPipelineWeightsRequest(session_id=one, weights_bytes=pickle.dumps(Exits())))
except grpc.RpcError as error:
    said["crashed"] = [error.code().name, dict(error.trailing_metadata()).get("cuvis-child-exit-code")]
said["recovered"] = [load(one, said["config"], 4.0), infer(one), infer(two)]

said["closed"] = [stub.CloseSession(pb.CloseSessionRequest(session_id=which)).success for which in (one, one)]
said["gone"] = refused(stub.Inference, asked(one))
said["lives"] = infer(two)
stub.CloseSession(pb.CloseSessionRequest(session_id=two))
print(json.dumps(said))
