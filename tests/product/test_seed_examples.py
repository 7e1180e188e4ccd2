"""The usage examples of the session service's document, word for word but for the imports, on a running installation."""

from __future__ import annotations

from types import SimpleNamespace

import manager
from actions import (
    CreateFromParamsAction,
    DestroySessionAction,
    ExecuteSessionAction,
    FileUploadSpec,
    GetSessionInfoAction,
    GetStatusHistoryAction,
    UploadFilesAction,
)
from domain import AccessKey, ClusterMode, ResourceSlot, SessionTypes
from tests.product.conftest import Installation


async def test_the_five_examples(installation: Installation) -> None:
    async with manager.open_service(installation.data_dir) as service:
        processors = service.processors
        key = AccessKey(installation.access_key)
        said: list[str] = []

        action = CreateFromParamsAction(
            name="my-python-session",
            access_key=key,
            image="python:3.9",
            architecture="x86_64",
            resource_slots=ResourceSlot(cpu=2, mem=4096),
            session_type=SessionTypes.INTERACTIVE,
            cluster_mode=ClusterMode.SINGLE_NODE,
            cluster_size=1,
            timeout=3600,
            bootstrap_script="pip install -r requirements.txt",
            tag="development",
        )
        result = await processors.create_from_params.wait_for_complete(action)
        if result.success:
            said.append(f"Session created: {result.session_data.name}")

        execution = ExecuteSessionAction(
            session_name="my-python-session",
            access_key=key,
            code="print('Hello, Backend.AI!')",
            mode="query",
            opts={},
        )
        executed = await processors.execute_session.wait_for_complete(execution)
        said.append(f"Execution result: {executed.result}")

        upload = UploadFilesAction(
            session_name="my-python-session",
            access_key=key,
            files=[FileUploadSpec(filename="script.py", content=b"print('Hello from file!')", path="/home/work/")],
        )
        uploaded = await processors.upload_files.wait_for_complete(upload)
        assert uploaded.success

        info = GetSessionInfoAction(session_name="my-python-session", owner_access_key=key)
        shown = await processors.get_session_info.wait_for_complete(info)
        said.append(f"Session status: {shown.session_info.status}")
        said.append(f"Resource usage: {shown.session_info.occupied_slots}")

        asked = GetStatusHistoryAction(session_name="my-python-session", owner_access_key=key)
        history = await processors.get_status_history.wait_for_complete(asked)
        said += [f"Status: {entry['status']} at {entry['timestamp']}" for entry in history.status_history["history"]]

        # The bootstrap script fails, for there is no such file: a notice with its log, and the session runs.
        notice = SimpleNamespace(**shown.session_info.notices[0])
        assert notice.kind == "bootstrap_failed"
        ran = ExecuteSessionAction(
            session_name="my-python-session", access_key=key, code="python3 script.py", mode="batch"
        )
        assert (await processors.execute_session.wait_for_complete(ran)).stdout == "Hello from file!\n"
        gone = DestroySessionAction(session_name="my-python-session", access_key=key)
        await processors.destroy_session.wait_for_complete(gone)

    assert said[0] == "Session created: my-python-session"
    assert "'stdout': 'Hello, Backend.AI!\\n'" in said[1]
    assert said[2:4] == ["Session status: RUNNING", "Resource usage: ResourceSlot(cpu=2, mem=4096)"]
    statuses = [line.split()[1] for line in said[4:]]
    assert statuses[0] == "PENDING"
    assert statuses[-1] == "RUNNING"
    assert "SCHEDULED" in statuses
