"""Every example of the documentation that says so runs, against one installation with real containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.product.conftest import Installation
from tests.product.pages import PAGES, blocks, is_full, play

pytestmark = pytest.mark.containers
SIDE_BY_SIDE = 4
#: Subjects of which there is a page with an example.
SUBJECTS = (
    "sessions executions files services snapshots volumes templates events quotas gpus scheduling sdk cli batch "
    "clusters statistics images explain"
).split()
RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page))]
Outcomes = Mapping[Path, Future[list[str]]]


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """The pages that are asked for, begun at once: most of their time they wait."""
    asked = {
        item.callspec.params.get("page")
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    environ = {"MOORAGE_CONFIG": str(installation.config)}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        yield {
            page: threads.submit(play, page, tmp_path_factory.mktemp(page.stem), environ)
            for page in RUNNABLE
            if page in asked
        }


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.full] if is_full(page) else []) for page in RUNNABLE],
)
def test_the_examples_of_a_page_run(page: Path, played: Outcomes) -> None:
    assert played[page].result() == []


def test_there_is_an_example_for_every_subject() -> None:
    assert sorted(set(SUBJECTS) - {page.stem for page in RUNNABLE}) == []
