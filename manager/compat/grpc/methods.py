"""What `cuvis_ai.v1.CuvisAIService` can be asked, and where each request says which session is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SERVICE: Final = "cuvis_ai.v1.CuvisAIService"


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    #: the field that holds the session's id; None: it is about no session in particular
    session_field: int | None = 1
    #: without an id in that field a session is made for it
    makes_session: bool = False
    #: without an id in that field it is about no session in particular
    needs_none: bool = False
    #: the answers are a stream
    streams: bool = False

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"


#: Carried out here; all others by the session's own service.
CREATE: Final = Method("CreateSession", None)
CLOSE: Final = Method("CloseSession")
_OF_A_SESSION: Final = (
    "SetSessionSearchPaths", "ResolveConfig", "LoadPipelineWeights", "SetTrainRunConfig", "StopTrain", "GetTrainStatus",
    "SavePipeline", "LoadPipeline", "SaveTrainRun", "GetPipelineInputs", "GetPipelineOutputs", "Inference",
    "LoadPlugin", "ListLoadedPlugins", "GetPluginInfo", "ListAvailableNodes", "SetProfiling",
    "GetProfilingSummary",
)  # fmt: skip
_OF_NONE: Final = (
    "ListAvailablePipelines", "GetPipelineInfo", "GetParameterSchema", "ValidateConfig", "GetTrainingCapabilities",
)  # fmt: skip
METHODS: Final = {
    method.path: method
    for method in (
        CREATE,
        CLOSE,
        *(Method(name) for name in _OF_A_SESSION),
        *(Method(name, None) for name in _OF_NONE),
        Method("GetPipelineVisualization", needs_none=True),
        Method("Train", streams=True),
        Method("RestoreTrainRun", 4, makes_session=True),
    )
}
