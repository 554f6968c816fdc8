"""The short prompt names every tool; short results keep every id and fact."""

import json
import re

from envs.retail.compact import compact_policy, render_result
from envs.types import Action, ToolResult


def rendered(retail, name: str, **arguments: str) -> tuple[str, dict]:
    action = Action(name, arguments)
    result = retail.new_toolkit().use(action)
    return render_result(action, result), json.loads(result.content)


def test_the_compact_policy_names_every_tool_with_its_arguments_and_stays_short(retail):
    policy = compact_policy(retail)
    for schema in retail.tool_schemas:
        function = schema["function"]
        assert f"{function['name']}({', '.join(function['parameters']['properties'])})" in policy
    assert len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", policy)) < 430


def test_an_order_keeps_every_id_option_price_and_payment(retail):
    for order_id in list(retail.database.orders)[:100]:
        text, order = rendered(retail, "get_order_details", order_id=order_id)
        facts = [order["order_id"], order["user_id"], order["status"], *order["address"].values()]
        for item in order["items"]:
            facts += [item["name"], item["product_id"], item["item_id"], str(item["price"]), *item["options"].values()]
        for paid in order["payment_history"]:
            facts += [str(paid["amount"]), paid["payment_method_id"]]
        facts += [tracking for f in order["fulfillments"] for tracking in f["tracking_id"]]
        assert all(fact in text for fact in facts)


def test_a_user_keeps_name_address_payments_and_orders(retail):
    for user_id in list(retail.database.users)[:100]:
        text, user = rendered(retail, "get_user_details", user_id=user_id)
        facts = [user_id, *user["name"].values(), *user["address"].values(), user["email"], *user["orders"]]
        facts += [str(v) for m in user["payment_methods"].values() for k, v in m.items() if k != "source"]
        assert all(fact in text for fact in facts)


def test_a_product_lists_its_available_items_only(retail):
    for product_id in retail.database.products:
        text, product = rendered(retail, "get_product_details", product_id=product_id)
        for item_id, variant in product["variants"].items():
            assert (item_id in text) is variant["available"]


def test_errors_and_plain_answers_pass_unchanged():
    for result in (
        ToolResult("Error: Order not found", error=True),
        ToolResult("sara_doe_496"),
        ToolResult("12.5"),
        ToolResult("[1]"),
    ):
        assert render_result(Action("any"), result) == result.content


def test_a_write_tells_what_is_new(retail, sampled):
    for task in sampled:
        write = task.gold_actions[-1]
        if write.name not in retail.write_tools:
            continue
        text = render_result(write, retail.new_toolkit().use(write))
        if write.name == "modify_user_address":
            assert write.arguments["address1"] in text
        else:
            assert write.arguments["order_id"] in text
            words = {"cancel": "cancelled", "return": "return requested", "exchange": "exchange requested"}
            assert words.get(task.kind, "pending") in text
            changed = [
                write.arguments.get("payment_method_id"),
                *write.arguments.get("new_item_ids", ()),
                write.arguments.get("zip"),
            ]
            assert all(value in text for value in changed if value)
