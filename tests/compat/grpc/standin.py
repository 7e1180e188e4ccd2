"""Stands in for cuvis.ai's service, which needs torch: the same RPCs by the same stubs, light, in the session's container.

Configurations are composed by Hydra as the original does, and weights are unpickled as carelessly.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import grpc
from cuvis_ai_schemas.grpc.v1 import cuvis_ai_pb2 as pb
from cuvis_ai_schemas.grpc.v1 import cuvis_ai_pb2_grpc
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


class Sessions:
    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}

    def create_session_with_id(self, session_id: str) -> None:
        self.states.setdefault(session_id, {"paths": [], "pipeline": None, "factor": 1})


class Service(cuvis_ai_pb2_grpc.CuvisAIServiceServicer):  # type: ignore[misc]  # it has no types
    def __init__(self) -> None:
        self.session_manager = Sessions()

    def _state(self, request: Any) -> dict[str, Any]:
        return self.session_manager.states[request.session_id]

    def SetSessionSearchPaths(self, request: Any, context: Any) -> Any:
        state = self._state(request)
        good = [path for path in request.search_paths if Path(path).is_dir()]
        state["paths"] = [*state["paths"], *good] if request.append else good
        rejected = [path for path in request.search_paths if path not in good]
        return pb.SetSessionSearchPathsResponse(success=True, current_paths=state["paths"], rejected_paths=rejected)

    def ResolveConfig(self, request: Any, context: Any) -> Any:
        name = f"{request.path}.yaml" if not request.path.endswith(".yaml") else request.path
        root = next((path for path in self._state(request)["paths"] if Path(path, name).is_file()), None)
        if root is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Config file not found: {name}")
        try:
            with initialize_config_dir(config_dir=root, version_base="1.3"):
                config = compose(config_name=name.removesuffix(".yaml"), overrides=list(request.overrides))
            made = OmegaConf.to_container(config, resolve=True)
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:500])
        assert isinstance(made, dict)
        group = request.path.split("/")[0]
        return pb.ResolveConfigResponse(config_bytes=json.dumps(made.get(group, made)).encode())

    def LoadPipeline(self, request: Any, context: Any) -> Any:
        try:
            config = json.loads(request.pipeline.config_bytes)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Invalid JSON: {error}")
        self._state(request).update(pipeline=config, factor=config["nodes"][0].get("factor", 1))
        return pb.LoadPipelineResponse(success=True)

    def SetTrainRunConfig(self, request: Any, context: Any) -> Any:
        self._state(request)["trainrun"] = json.loads(request.config.config_bytes)
        return pb.SetTrainRunConfigResponse(success=True)

    def LoadPipelineWeights(self, request: Any, context: Any) -> Any:
        self._needs_pipeline(request, context)
        self._state(request)["factor"] = pickle.loads(request.weights_bytes)
        return pb.LoadPipelineWeightsResponse(success=True)

    def Inference(self, request: Any, context: Any) -> Any:
        self._needs_pipeline(request, context)
        factor = self._state(request)["factor"]
        cube = request.inputs.cube
        metrics = {"factor": factor, "bytes": len(cube.raw_data)}
        return pb.InferenceResponse(outputs={"cube": cube}, metrics=metrics)

    def Train(self, request: Any, context: Any) -> Any:
        self._needs_pipeline(request, context)
        context.add_callback(lambda: Path("/tmp/cancelled").write_text(str(context.is_active())))
        for epoch in range(self._state(request).get("trainrun", {}).get("epochs", 1_000_000_000)):
            yield pb.TrainResponse(
                status=pb.TRAIN_STATUS_RUNNING, context=pb.Context(epoch=epoch), losses={"train": 1 / (epoch + 1)}
            )
        yield pb.TrainResponse(status=pb.TRAIN_STATUS_COMPLETE)

    def GetTrainStatus(self, request: Any, context: Any) -> Any:
        message = f"cancelled={Path('/tmp/cancelled').exists()}"
        return pb.GetTrainStatusResponse(latest_progress=pb.TrainResponse(message=message))

    def RestoreTrainRun(self, request: Any, context: Any) -> Any:
        self._state(request).update(pipeline={"restored": request.trainrun_path})
        return pb.RestoreTrainRunResponse(session_id=request.session_id)

    def GetTrainingCapabilities(self, request: Any, context: Any) -> Any:
        return pb.GetTrainingCapabilitiesResponse(supported_optimizers=["adam"])

    def ListAvailablePipelines(self, request: Any, context: Any) -> Any:
        return pb.ListAvailablePipelinesResponse()

    def _needs_pipeline(self, request: Any, context: Any) -> None:
        if self._state(request)["pipeline"] is None:
            details = "No pipeline is available for this session. Build pipeline first."
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, details)
