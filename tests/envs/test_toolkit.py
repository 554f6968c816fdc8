"""Tools: what they answer when called wrongly, their schemas, and the database that they share."""

import pytest

from envs.database import Database, Record
from envs.toolkit import ToolKit, ToolType, printed, tool
from envs.types import Action, ToolResult


@pytest.fixture
def pending(retail) -> str:
    return next(order.order_id for order in retail.database.orders.values() if order.status == "pending")


def test_schemas_are_read_from_signature_and_docstring(retail):
    by_name = {schema["function"]["name"]: schema["function"] for schema in retail.tool_schemas}
    assert len(by_name) == 16
    assert by_name["exchange_delivered_order_items"]["parameters"]["properties"]["item_ids"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "Ids of the items to give back; an id may appear more than once.",
    }
    assert by_name["cancel_pending_order"]["parameters"]["required"] == ["order_id", "reason"]
    assert by_name["list_all_product_types"]["parameters"] == {"type": "object", "properties": {}, "required": []}
    for function in by_name.values():
        assert function["description"] and "Args:" not in function["description"]
        assert all(p["description"] for p in function["parameters"]["properties"].values())


def test_write_tools_are_those_that_change_the_database(retail):
    assert len(retail.write_tools) == 7
    assert "transfer_to_human_agents" not in retail.write_tools


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (Action("no_such_tool"), "Error: Tool 'no_such_tool' not found."),
        (Action("_order", {"order_id": "#W1"}), "Error: Tool '_order' not found."),
        (Action("use"), "Error: Tool 'use' not found."),
        (
            Action("cancel_pending_order", {"order_id": "#W1"}),
            "Error: RetailTools.cancel_pending_order() missing 1 required positional argument: 'reason'",
        ),
        (
            Action("get_order_details", {"order_id": "#W1", "x": 1}),
            "Error: RetailTools.get_order_details() got an unexpected keyword argument 'x'",
        ),
        (Action("get_order_details", {"order_id": ["#W1"]}), "Error: unhashable type: 'list'"),
        (Action("get_item_details", {"item_id": "1"}), "Error: Item not found"),
        (Action("find_user_id_by_email", {"email": None}), "Error: 'NoneType' object has no attribute 'lower'"),
    ],
)
def test_a_wrong_call_is_answered_by_an_error(retail, action, answer):
    assert retail.new_toolkit().use(action) == ToolResult(answer, error=True)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("2 + 3 * (4 - 1)", "11.0"),
        ("10 / 4", "2.5"),
        ("-(2.005)", "-2.0"),
        ("2 ** 10", "1024.0"),
        ("7 // 2", "3.0"),
        ("1 / 0", "Error: division by zero"),
        ("__import__", "Error: Invalid characters in expression"),
        ("2(3)", "Error: 'int' object is not callable"),
        ("", "Error: invalid syntax (<string>, line 0)"),
        ("9 ** 9 ** 9", "Error: int too large to convert to float"),
        ("(" * 300, "Error: too many nested parentheses (<string>, line 1)"),
    ],
)
def test_calculate_does_arithmetic_and_nothing_else(retail, expression, answer):
    assert retail.new_toolkit().use(Action("calculate", {"expression": expression})).content == answer


def test_scalars_are_printed_as_strings_outside_records():
    assert printed("text") == "text"
    assert printed({"a": 1, "b": [True, None, 2.5]}) == '{"a": "1", "b": ["True", null, "2.5"]}'
    assert printed(3) == '"3"'

    class Row(Record):
        n: int

    assert printed(Row(n=3)) == '{"n": 3}'


def test_an_exchange_of_nothing_costs_the_integer_zero_as_upstream(retail):
    order = next(order for order in retail.database.orders.values() if order.status == "delivered")
    nothing = {"item_ids": [], "new_item_ids": [], "payment_method_id": order.payment_history[0].payment_method_id}
    result = retail.new_toolkit().use(Action("exchange_delivered_order_items", {"order_id": order.order_id, **nothing}))
    assert '"exchange_items": []' in result.content and '"exchange_price_difference": 0,' in result.content


def test_a_write_stays_in_its_environment(retail, pending):
    first, second = retail.new_toolkit(), retail.new_toolkit()
    untouched = second.db_hash()
    read = Action("get_order_details", {"order_id": pending})
    before = second.use(read)
    assert not first.use(Action("cancel_pending_order", {"order_id": pending, "reason": "no longer needed"})).error
    assert second.use(read) == before
    assert first.use(read) != before
    assert (second.db_hash(), retail.new_toolkit().db_hash()) == (untouched, untouched)
    assert first.db_hash() != untouched
    assert first.changes()["orders"][pending]["status"] == "cancelled"
    assert second.changes() == {}


def test_equal_states_are_recognised_without_the_full_hash(retail, pending):
    first, second, third = (retail.new_toolkit() for _ in range(3))
    for toolkit in (first, second):
        toolkit.use(Action("cancel_pending_order", {"order_id": pending, "reason": "no longer needed"}))
    assert first.same_state(second) and first.db_hash() == second.db_hash()
    assert not first.same_state(third)


def test_a_write_that_restores_the_row_is_no_change(retail, pending):
    toolkit = retail.new_toolkit()
    address = toolkit.db.orders[pending].address.model_dump()
    for first_line in ("1 Elsewhere", address["address1"]):
        toolkit.use(Action("modify_pending_order_address", {"order_id": pending, **address, "address1": first_line}))
    assert toolkit.changes() == {}
    assert toolkit.same_state(retail.new_toolkit())


def test_new_rows_are_part_of_changes_and_hash():
    class Row(Record):
        n: int

    class Shop(Database):
        tables = {"rows": Row}  # noqa: RUF012

    class ShopTools(ToolKit):
        @tool(ToolType.WRITE)
        def add(self, key: str) -> Row:
            """Add a row.

            Args:
                key: Its key.
            """
            self.db.rows.add(key, Row(n=1))
            return self.db.rows[key]

    shop = Shop.load({"rows": {"b": {"n": 2}}})
    toolkit = ShopTools(shop.fresh())
    assert toolkit.use(Action("add", {"key": "a"})).content == '{"n": 1}'
    assert toolkit.changes() == {"rows": {"a": {"n": 1}}}
    assert list(toolkit.db.rows) == ["b", "a"] and len(toolkit.db.rows) == 2 and "a" in toolkit.db.rows
    assert toolkit.db_hash() == Shop.load({"rows": {"a": {"n": 1}, "b": {"n": 2}}}).hash()
