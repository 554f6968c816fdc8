"""The dashboard: wandb's own objects, over names that runs log; nothing is sent anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb_workspaces.workspaces import internal

from envs.errors import TaudojoError
from rewards.metrics import METRICS
from taudojo.cli import main
from training import dashboard, tracking
from training.config import TrackingSection
from training.metrics import STEP_METRICS
from training.tracking import Tracker, _offer_dashboard


@pytest.fixture
def spec() -> list[dict[str, Any]]:
    """The sections as they would be sent."""
    view = dashboard.workspace("team", "project")._to_model()
    sent = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return sent["section"]["panelBankConfig"]["sections"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> dict[str, internal.View]:
    """What a service at the other end would hold: name → view. It has no views at first."""
    views: dict[str, internal.View] = {}

    def get(entity: str, project: str, name: str) -> dict[str, Any]:
        if f"nw-{name}-v" not in views:
            raise ValueError(f"Workspace `{name}` not found in project `{project}`")
        return {"id": "1"}

    def save(view: internal.View) -> dict[str, Any]:
        views[view.name] = view
        return {"upsertView": {"view": {"name": view.name, "id": "1"}, "inserted": True}}

    monkeypatch.setattr(internal, "get_view_dict", get)
    monkeypatch.setattr(internal, "upsert_view2", save)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.wandb.Api", lambda: None)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://wandb.example")
    return views


def test_the_sections_stand_in_their_order_with_their_panels(spec: list[dict[str, Any]]):
    assert [section["name"] for section in spec] == ["Reward", "Success", "Rollout", "Learner", "Time", "System"]
    for section, panels in zip(spec, dashboard.LAYOUT.values(), strict=True):
        assert section["isOpen"] and len(section["panels"]) == len(panels)


def test_every_panel_draws_something_that_runs_log(spec: list[dict[str, Any]]):
    logged = {f"grpo/{name}" for name in STEP_METRICS} | {"sft/loss", "sft/heldout_loss"}
    logged |= {
        f"eval/{stage}/{tasks}/{metric}"
        for stage in ("before", "after_sft", "after_rft", "after_grpo")
        for tasks in ("test", "heldout")
        for metric in METRICS
    }
    drawn: set[str] = set()
    for panel in (panel for section in spec for panel in section["panels"]):
        config = panel["config"]
        if panel["viewType"] == "Weave":
            assert re.search(r'"grpo/(samples|conversations)"', json.dumps(config))
        elif config.get("useMetricRegex"):
            matching = {name for name in logged if re.fullmatch(config["metricRegex"], name)}
            assert matching, config["metricRegex"]
            drawn |= matching
        else:
            assert set(config["metrics"]) - logged == set()
            drawn |= set(config["metrics"])
        if panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] in ("grpo/step", "sft/step")
    for asked_for in ("stop/user_stop", "staleness/max", "engine/kv_cache_hit_rate", "seconds/idle", "entropy", "ratio"):
        assert f"grpo/{asked_for}" in drawn


def test_a_project_is_given_its_dashboard_once(service: dict[str, internal.View]):
    address = dashboard.ensure_dashboard("team", "project")
    assert address == "https://wandb.example/team/project?nw=taudojo"
    (first,) = service.values()
    assert (first.entity, first.project, first.display_name) == ("team", "project", "taudojo")
    assert dashboard.ensure_dashboard("team", "project") == address
    assert list(service.values()) == [first]


def test_the_command_prints_the_address(service: dict[str, internal.View], capsys: pytest.CaptureFixture[str]):
    assert main(["dashboard", "--project", "mine", "--entity", "team"]) == 0
    assert capsys.readouterr().out.strip().endswith("https://wandb.example/team/mine?nw=taudojo")


@pytest.mark.parametrize(("mode", "dashboard", "offered"), [("online", True, 1), ("online", False, 0), ("offline", True, 0)])
def test_a_run_that_is_online_offers_the_dashboard(
    mode: Any, dashboard: bool, offered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(tracking, "_offer_dashboard", lambda entity, project: asked.append((entity, project)))
    run = SimpleNamespace(entity="team", project="mine", finish=lambda: None)
    monkeypatch.setattr("wandb.init", lambda **settings: run)
    Tracker(tmp_path, TrackingSection(mode=mode, project="mine", dashboard=dashboard), "test", {}).close()
    assert asked == [("team", "mine")] * offered


def test_a_service_that_refuses_is_one_sentence_of_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(internal, "get_view_dict", refuse)
    with pytest.raises(TaudojoError, match=r"the dashboard of team/mine was not made: 403: no\.$"):
        dashboard.make_dashboard("mine", "team")


def test_a_service_that_refuses_is_one_line_of_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(internal, "get_view_dict", refuse)
    _offer_dashboard("team", "mine")
    assert capsys.readouterr().out == "the wandb dashboard was not made: 403: no.\n"


def refuse(*_: Any) -> None:
    raise ConnectionError("403: no.\nand a page of HTML")
