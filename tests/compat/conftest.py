"""One installation for all clients, with every front switched on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.installed import Installed, installed

#: On the fronts' and the host's side; no session may ever see it.
SECRET: Final = "MOORAGE_TEST_SECRET"


@pytest.fixture(scope="session")
def everything(engine_host: str, kernel_image: str) -> Iterator[Installed]:
    with installed(engine_host, fronts=("inference", "backendai", "grpc"), environ={SECRET: "the host's"}) as made:
        yield made
