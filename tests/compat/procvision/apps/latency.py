"""An algorithm by the SDK's own documentation of sessions: a time is kept when a step starts, and its latency published."""

import time
from typing import Any

from procvision_algorithm_sdk import BaseAlgorithm, Session


class Algorithm(BaseAlgorithm):
    def get_info(self) -> dict[str, Any]:
        return {"name": "latency", "version": "0.1", "supported_pids": ["p001"], "steps": []}

    def on_step_start(self, step_index: int, session: Session, context: dict[str, Any]) -> None:
        session.set("step_start_ms", int(time.time() * 1000))
        self.logger.info("step start", step_index=step_index, trace_id=context.get("trace_id"))

    def on_step_finish(self, step_index: int, session: Session, result: dict[str, Any]) -> None:
        start = session.get("step_start_ms")
        self.diagnostics.publish("latency_ms", int(time.time() * 1000) - start)

    def reset(self, session: Session) -> None:
        deleted = session.delete("step_start_ms")
        print("reset", session.id, deleted, session.exists("step_start_ms"))

    def pre_execute(
        self,
        step_index: int,
        pid: str,
        session: Session,
        user_params: dict[str, Any],
        shared_mem_id: str,
        image_meta: dict[str, Any],
    ) -> dict[str, Any]:
        session.set("calibration", user_params)
        return {"status": "OK", "message": "ready", "data": {"isinstance": isinstance(session, Session)}}

    def execute(
        self,
        step_index: int,
        pid: str,
        session: Session,
        user_params: dict[str, Any],
        shared_mem_id: str,
        image_meta: dict[str, Any],
    ) -> dict[str, Any]:
        print("a print is no frame")
        try:
            session.set("bad", {1, 2})
        except TypeError as error:
            refused = type(error).__name__
        return {"status": "OK", "data": {"calibration": session.get("calibration"), "refused": refused}}
