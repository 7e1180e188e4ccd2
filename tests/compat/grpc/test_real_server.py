"""cuvis-ai-core 0.18.6 itself in the sessions, from its own image, asked through the gRPC front by its own client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat.conftest import SECRET
from tests.compat.grpc.conftest import HERE, Front
from tests.compat.grpc.image import CannotBuild, ensure_image

pytestmark = [pytest.mark.compat, pytest.mark.full]

_NODES = "plugins: [bands]\nnodes:\n  - {name: bright, class_name: bands.Brightness, hparams: {gain: 1.0}}\nconnections: []\n"
_PROJECT = {
    "configs/pipeline/bright.yaml": f"# @package _global_\nmetadata: {{name: bright}}\n{_NODES}",
    "configs/pipeline/leak.yaml": (
        f"# @package _global_\nmetadata: {{name: leak, description: '${{oc.env:{SECRET},nothing}}'}}\n{_NODES}"
    ),
    "configs/trainrun/first.yaml": (
        "# @package _global_\nname: first\npipeline: ../pipeline/bright.yaml\n"
        "data: {data_module: flats, params: {level: 0.0}}\n"
    ),
    "plugins/bands.yaml": (
        "name: bands\npath: ../bands\ncapabilities:\n  - {class_name: bands.Brightness}\n"
        "  - {class_name: bands.Flats, kind: data_module, data_module_name: flats}\n"
    ),
}


@pytest.fixture(scope="module")
def port(front: Front, engine_host: str, kernel_image: str) -> Iterator[int]:
    """Of a front whose sessions are made of the image, with the project at its own path."""
    try:
        image = ensure_image(engine_host, kernel_image)
    except CannotBuild as reason:
        pytest.skip(str(reason))
    project = front.folder / "real"
    for name, text in _PROJECT.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    shutil.copytree(HERE / "apps" / "bands", project / "bands", ignore=shutil.ignore_patterns("__pycache__"))
    with front.connect() as client:
        client.images.register(image)
        client.volumes.create("real").files.upload_folder(project, ".")
        client.templates.create("real", _template(image, str(project)))
    with front.another(grpc_template="real") as port:
        yield port


def _template(image: str, project: str) -> dict[str, Any]:
    command = ["python", "-m", "moorage_cuvis", "--port", "{port}"]
    return {
        "session": {
            "image": image,
            "resource_slots": {"cpu": 2, "mem": "4g"},
            "mounts": [{"volume": "real", "path": project, "read_only": True}],
            "session_type": "inference",
            "serves": {"name": "cuvis", "port": 50051, "command": command, "ready_timeout": 300},
        }
    }


def test_two_sessions_of_the_real_server_from_their_beginning_to_their_end(front: Front, port: int) -> None:
    said = front.said("real.py", str(front.folder / "real"), port=port, seconds=580)
    assert said["nodes"] == ["bands.Brightness"]
    assert said["early"][0] == "FAILED_PRECONDITION"
    assert said["config"]["metadata"]["name"] == "mine"
    assert said["not_there"][0] == "NOT_FOUND"
    assert said["leak"] == "nothing"
    assert "digraph" in said["preview"]
    assert "adam" in said["optimizers"]
    assert said["loaded"] == [True, True]
    assert said["inference"] == [_bright(4, 10), _bright(20, 50)]
    assert said["wrong"][0] == "INVALID_ARGUMENT"
    assert said["lacking"][0] == "FAILED_PRECONDITION"
    assert (
        "git" in said["lacking"][1]
    )  # it is fetched as the original does, for which this image has not even the program
    assert said["inputs"] == ["cube"]
    assert len(said["training"]) > 1
    assert all("TRAIN_STATUS" in line for line in said["training"])
    assert "TRAIN_STATUS_COMPLETE" in said["training"][-1]
    assert said["fitted"] == _bright(0.5, 3.5)
    assert said["again"] == [True, _bright(6, 15)]
    assert said["weights"] == [True, _bright(1.5, 10.5)]
    assert said["other"] == _bright(20, 50)
    assert said["large"][1:] == [[1, 1000, 2048, 1], [-4.5, -4.5]]
    assert said["crashed"] == ["INTERNAL", "3"]
    assert said["recovered"] == [True, _bright(8, 20), _bright(20, 50)]
    assert said["closed"] == [True, False]
    assert said["gone"][0] == "NOT_FOUND"
    assert said["lives"] == _bright(20, 50)


def _bright(*values: float) -> list[Any]:
    return ["bright.brightness", [1, 1, 2, 1], list(values)]
