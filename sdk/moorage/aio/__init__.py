"""The async SDK: `async with moorage.aio.Client() as client:`. Names are those of the blocking one."""

from moorage.aio.calls import Call
from moorage.aio.client import Client
from moorage.aio.executions import Commands, Execution, Executions
from moorage.aio.files import Files
from moorage.aio.mapping import Mapped
from moorage.aio.sessions import Session, Sessions
from moorage.aio.tasks import Task
from moorage.aio.volumes import Volume

__all__ = [
    "Call",
    "Client",
    "Commands",
    "Execution",
    "Executions",
    "Files",
    "Mapped",
    "Session",
    "Sessions",
    "Task",
    "Volume",
]
