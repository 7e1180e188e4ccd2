"""The real client of cuvis.ai, its helpers and the documentation's examples, through the gRPC front."""

from __future__ import annotations

import pytest

from bench.grpc_front import free_port
from tests.compat.grpc.conftest import Front

pytestmark = pytest.mark.compat


def test_a_session_from_its_beginning_to_its_end(front: Front) -> None:
    said = front.said("story.py", str(front.configs))
    assert said["nobody"][0] == "UNAUTHENTICATED"
    assert "authorization: Bearer" in said["nobody"][1]
    assert said["versions"] == [4, 4]
    assert said["paths"] == [[str(front.configs)], ["/nowhere", "relative"]]
    assert said["config"] == {"epochs": 3, "pipeline": {"nodes": [{"factor": 3}]}}
    assert said["not_there"][0] == "NOT_FOUND"
    assert said["early"] == ["FAILED_PRECONDITION", "No pipeline is available for this session. Build pipeline first."]
    assert said["inference"] == [list(range(8)), {"factor": 3.0, "bytes": 8.0}]
    assert said["other"][0] == "FAILED_PRECONDITION"
    assert len(said["training"]) == 4
    assert said["training"][-1].endswith("TRAIN_STATUS_COMPLETE")
    assert said["no_session"] == ["adam"]
    assert said["preview"] == "UNIMPLEMENTED"
    assert said["closed"] == [True, False, False]
    assert said["gone"][0] == said["unknown"][0] == said["unnamed"][0] == "NOT_FOUND"
    assert said["broken"][0] == "INVALID_ARGUMENT"
    assert said["lives"] == ["OK", ""]


@pytest.mark.full
def test_the_documented_examples_run_with_their_own_paths_and_no_credential(front: Front) -> None:
    own = free_port()
    with front.another(grpc_users=f"{own}={front.access_key}"):
        said = front.client(front.project / "examples" / "seed.py", port=own, key="").splitlines()
    assert said[0].startswith("Session created: ")
    assert said[1] == "Session closed, resources freed"
