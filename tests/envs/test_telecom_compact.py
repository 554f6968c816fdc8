"""Telecom's short prompt names every tool; short results keep every id and fact."""

import json
import re

import pytest

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.telecom.compact import compact_policy, render_result
from envs.types import Action, ToolResult


@pytest.fixture(scope="module")
def telecom() -> Domain:
    return load_domain("telecom", open_source("packaged"))


def rendered(telecom: Domain, name: str, **arguments: object) -> tuple[str, object]:
    action = Action(name, arguments)
    result = telecom.new_toolkit().use(action)
    assert not result.error, result
    return render_result(action, result), json.loads(result.content)


def facts(value: object) -> list[str]:
    """Every string and number in it, but not whether something is so."""
    if isinstance(value, dict):
        return [fact for member in value.values() for fact in facts(member)]
    if isinstance(value, list):
        return [fact for member in value for fact in facts(member)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def test_the_compact_policy_names_every_tool_with_its_arguments_and_stays_short(telecom):
    policy = compact_policy(telecom)
    for schema in telecom.tool_schemas:
        function = schema["function"]
        assert f"{function['name']}({', '.join(function['parameters']['properties'])})" in policy
    assert len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", policy)) < 640


def test_every_row_keeps_all_its_facts(telecom):
    database = telecom.database
    for table in ("customers", "lines", "bills", "plans", "devices"):
        for key in database.table(table):
            text, row = rendered(telecom, "get_details_by_id", id=key)
            assert all(fact in text for fact in facts(row)), text


def test_flags_are_told_in_words(telecom):
    assert "roaming on" in rendered(telecom, "get_details_by_id", id="L1002")[0]
    assert "roaming off" in rendered(telecom, "get_details_by_id", id="L1001")[0]
    assert "eSIM no, activated" in rendered(telecom, "get_details_by_id", id="D1003")[0]


def test_lists_writes_and_usage_are_lines(telecom):
    text, bills = rendered(telecom, "get_bills_for_customer", customer_id="C1001")
    assert len(text.splitlines()) == len(bills) and all(fact in text for fact in facts(bills))
    line = {"customer_id": "C1001", "line_id": "L1002"}
    text, answer = rendered(telecom, "suspend_line", **line, reason="lost")
    assert all(fact in text for fact in facts(answer)) and "line L1002 555-123-2002: Suspended" in text
    assert rendered(telecom, "get_data_usage", **line)[0] == (
        "line L1002: used 8.7 of 15.0 GB, refueled 0.0 GB, cycle ends 2025-02-28"
    )
    assert rendered(telecom, "refuel_data", **line, gb_amount=2.0)[0] == (
        "Successfully added 2.0 GB of data for line L1002 for $4.00"
    )


def test_errors_and_plain_answers_pass_unchanged():
    for result in (
        ToolResult("Error: Line with ID L9 not found", error=True),
        ToolResult("Roaming enabled successfully"),
        ToolResult("[]"),
        ToolResult("Status Bar: 📶³ Good | 5G | 📱 Data Enabled | 🔋 80%"),
    ):
        assert render_result(Action("any"), result) == result.content
