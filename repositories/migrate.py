"""Bring a database to this version's schema, and back."""

from __future__ import annotations

import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from repositories.database import sqlalchemy_url


def config(dsn: str) -> Config:
    """Alembic's configuration for one database, wherever this is installed."""
    made = Config()
    made.set_main_option("script_location", str(Path(migrations.__file__).parent))
    made.set_main_option("sqlalchemy.url", sqlalchemy_url(dsn).replace("%", "%%"))
    return made


def newest_revision() -> str:
    """Of this version."""
    revision = ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head()
    assert revision is not None
    return revision


def knows(revision: str) -> bool:
    """Whether this version can go on from a database of that revision."""
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    return revision in {script.revision for script in scripts.walk_revisions()}


def upgrade(dsn: str, revision: str = "head") -> None:
    """Blocking; runs its own event loop. Safe to call from several managers at once."""
    command.upgrade(config(dsn), revision)


def downgrade(dsn: str, revision: str) -> None:
    command.downgrade(config(dsn), revision)


if __name__ == "__main__":
    upgrade(os.environ["DATABASE_URL"])
