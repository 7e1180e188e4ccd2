"""Every example of the documentation that says so runs, against one installation with real containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.product.conftest import Installation
from tests.product.pages import PAGES, blocks, play

pytestmark = pytest.mark.containers
SIDE_BY_SIDE = 4
#: Subjects of which there is a page with an example.
SUBJECTS = (
    "sessions executions files services snapshots volumes templates events quotas gpus scheduling sdk cli batch "
    "clusters statistics images explain"
).split()
RUNNABLE = {page: [block for block in blocks(page) if block.runs] for page in PAGES}
QUICK = [page for page, found in RUNNABLE.items() if any(not block.is_full for block in found)]
WHOLE = [page for page, found in RUNNABLE.items() if any(block.is_full for block in found)]
Outcomes = Mapping[tuple[Path, bool], Future[list[str]]]


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """The pages that are asked for, begun at once: most of their time they wait."""
    called = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {(found.params["page"], found.params["whole"]) for found in called if found and "page" in found.params}
    environ = {"MOORAGE_CONFIG": str(installation.config)}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        yield {
            (page, full): threads.submit(play, page, tmp_path_factory.mktemp(page.stem), environ, full=full)
            for page, full in sorted(asked)
        }


@pytest.mark.parametrize(
    ("page", "whole"),
    [
        *(pytest.param(page, False, id=page.stem) for page in QUICK),
        *(pytest.param(page, True, id=f"{page.stem}-whole", marks=pytest.mark.full) for page in WHOLE),
    ],
)
def test_the_examples_of_a_page_run(page: Path, whole: bool, played: Outcomes) -> None:
    assert played[page, whole].result() == []


def test_there_is_an_example_for_every_subject() -> None:
    assert sorted(set(SUBJECTS) - {page.stem for page, found in RUNNABLE.items() if found}) == []
