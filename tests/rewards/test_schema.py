"""Well-formed calls, against the real retail schemas."""

import pytest

from envs.types import Action
from rewards.schema import conforms, functions, is_well_formed


@pytest.mark.parametrize(
    ("name", "arguments", "good"),
    [
        ("get_order_details", {"order_id": "#W1"}, True),
        ("list_all_product_types", {}, True),
        ("get_order_details", {}, False),
        ("get_order_details", {"order_id": 1}, False),
        ("get_order_details", {"order_id": None}, False),
        ("get_order_details", {"order_id": "#W1", "verbose": "yes"}, False),
        ("get_everything", {}, False),
        ("return_delivered_order_items", {"order_id": "#W1", "item_ids": ["1"], "payment_method_id": "p"}, True),
        ("return_delivered_order_items", {"order_id": "#W1", "item_ids": "1", "payment_method_id": "p"}, False),
        ("return_delivered_order_items", {"order_id": "#W1", "item_ids": [1], "payment_method_id": "p"}, False),
    ],
)
def test_a_call_is_well_formed_if_it_fits_the_schema(retail, name, arguments, good):
    assert is_well_formed(Action(name, arguments), functions(retail.tool_schemas)) is good


def test_every_gold_call_of_the_official_tasks_is_well_formed(retail):
    tools = functions(retail.tool_schemas)
    assert [a for t in retail.tasks("base") for a in t.gold_actions if not is_well_formed(a, tools)] == []


@pytest.mark.parametrize(
    ("value", "schema", "good"),
    [
        (True, {"type": "integer"}, False),
        (3.0, {"type": "integer"}, True),
        (float("nan"), {"type": "number"}, False),
        (None, {"anyOf": [{"type": "string"}, {"type": "null"}]}, True),
        ("b", {"enum": ["a"]}, False),
        ({"a": 1}, {"$ref": "#/$defs/Thing"}, True),
        ({}, {"$ref": "#/$defs/Thing"}, False),
        ({"a": "1"}, {"$ref": "#/$defs/Thing"}, False),
        (1, {"type": ["string", "integer"]}, True),
        ([1], {}, True),
    ],
)
def test_json_schema_parts(value, schema, good):
    thing = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert conforms(value, schema, {"Thing": thing}) is good
