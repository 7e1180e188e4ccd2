"""Every action has its table of scenarios, and its row in the documentation."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from actions import ACTIONS
from actions.__main__ import main, table
from tests.scenario import ASPECTS, COVERED, NotApplicable, TestScenario, uncovered

ROOT = Path(__file__).parents[2]

for module in Path(__file__).parent.glob("test_*.py"):
    if module != Path(__file__):
        import_module(f"tests.actions.{module.stem}")


def test_every_action_has_a_table_of_scenarios() -> None:
    assert uncovered() == []


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_a_table_tells_of_its_own_action(name: str) -> None:
    played = {aspect: row for aspect, row in COVERED[name].items() if isinstance(row, TestScenario)}
    assert {type(row.do) for row in played.values()} == {ACTIONS[name]}
    assert played["success"].error is None
    assert all(len(row.reason) > 10 for row in COVERED[name].values() if isinstance(row, NotApplicable))
    assert set(COVERED[name]) == set(ASPECTS)


def test_the_documented_table_is_the_declared_one() -> None:
    assert (ROOT / "docs/actions.md").read_text() == table(), "run: python -m actions > docs/actions.md"


def test_the_table_is_printed_and_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actions"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == table()
    (tmp_path / "same.md").write_text(printed)
    (tmp_path / "other.md").write_text(printed.replace("owner or admin", "anyone", 1))
    assert main(["--check", str(tmp_path / "same.md")]) == 0
    assert main(["--check", str(tmp_path / "other.md")]) == 1


def test_administrators_actions_are_theirs_alone() -> None:
    """A slip of the pen in an action's rules would show here."""
    for_all = {name for name, kind in ACTIONS.items() if kind.rules.allow.__name__ in ("anyone", "any_user")}
    assert for_all == {
        "add_ssh_key",
        "call_app",
        "cancel_call",
        "cancel_task",
        "clone_volume",
        "create_cluster",
        "create_from_params",
        "create_from_template",
        "create_keypair",
        "create_template",
        "create_token",
        "create_volume",
        "create_webhook_secret",
        "delete_app",
        "delete_call",
        "delete_keypair",
        "delete_template",
        "delete_token",
        "delete_volume",
        "deploy_app",
        "download_volume_file",
        "download_volume_files",
        "dry_run",
        "follow_call",
        "forget_image",
        "get_app",
        "get_call",
        "get_project",
        "get_resource_group",
        "get_task",
        "get_template",
        "get_top",
        "get_usage",
        "get_volume",
        "get_watch_rules",
        "leave_volume",
        "list_apps",
        "list_images",
        "list_keypairs",
        "list_projects",
        "list_quotas",
        "list_registries",
        "list_resource_groups",
        "list_shares",
        "list_ssh_keys",
        "list_tasks",
        "list_templates",
        "list_tokens",
        "list_volume_files",
        "list_volumes",
        "manage_volume_files",
        "match_sessions",
        "modify_keypair",
        "modify_template",
        "modify_volume",
        "read_events",
        "remove_registry",
        "remove_ssh_key",
        "rotate_keypair",
        "search_sessions",
        "set_password",
        "set_registry",
        "set_signing",
        "share_image",
        "share_volume",
        "sign_out",
        "unpack_volume_archive",
        "unshare_volume",
        "upload_volume_files",
        "who_am_i",
    }
