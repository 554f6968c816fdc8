"""The short form of the retail domain, for models with little context: a policy of a few hundred tokens, and tool answers
as plain lines. Every id and fact that a task needs stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envs.compact import parsed, with_tools
from envs.domain import Domain
from envs.types import Action, ToolResult

_RULES = """\
You are a retail agent. Each turn either calls one tool or writes to the user.
1. First find the user id by email, or by name and zip.
2. Look up what you need. Take ids from the user or the tools, never invent them.
3. Before a write tool, name the action with its ids and ask for confirmation (yes/no). Call it only after yes.
4. Cancel or modify only pending orders. Return or exchange only delivered orders, once, all items in one call.
5. New items: same product, other options. Refund to the original payment method or a gift card.
6. If no tool helps, transfer to a human. When done, tell the result.
"""


def compact_policy(domain: Domain) -> str:
    """The rules and all tools with their arguments."""
    return with_tools(_RULES, domain)


def render_result(action: Action, result: ToolResult) -> str:
    """A tool's answer in few words; errors and plain strings as they are. A write tells what is new."""
    value = parsed(result)
    if not isinstance(value, dict):
        return result.content
    if action.name == "list_all_product_types":
        return _pairs(value)
    if "order_id" in value:
        return _order(value) if action.name == "get_order_details" else _written_order(action, value)
    if "variants" in value:
        return _product(value)
    if "payment_methods" in value:
        return (
            _user(value)
            if action.name == "get_user_details"
            else f"address of {value['user_id']} is {_address(value['address'])}"
        )
    if "item_id" in value:
        return _variant(value) + ("" if value["available"] else ", not available")
    return result.content


def _order(order: Mapping[str, Any]) -> str:
    lines = [f"order {order['order_id']} of {order['user_id']}: {order['status']}"]
    for item in order["items"]:
        lines.append(
            f"item {item['item_id']} {item['name']} (product {item['product_id']}) {item['price']}: {_pairs(item['options'])}"
        )
    lines.append(f"address {_address(order['address'])}")
    lines += [_payment(payment) for payment in order["payment_history"]]
    lines += [f"tracking {' '.join(f['tracking_id'])}" for f in order["fulfillments"]]
    return "\n".join([*lines, *_extras(order)])


def _written_order(action: Action, order: Mapping[str, Any]) -> str:
    lines = [f"order {order['order_id']}: {order['status']}"]
    if action.name == "modify_pending_order_address":
        lines.append(f"address {_address(order['address'])}")
    elif action.name == "modify_pending_order_items":
        lines += [f"item {item['item_id']} {item['name']} {item['price']}" for item in order["items"]]
    if action.name in ("cancel_pending_order", "modify_pending_order_items", "modify_pending_order_payment"):
        lines += [_payment(payment) for payment in order["payment_history"]]
    return "\n".join([*lines, *_extras(order)])


def _extras(order: Mapping[str, Any]) -> Iterable[str]:
    """What was done to the order since it was placed."""
    if order["cancel_reason"]:
        yield f"cancelled because {order['cancel_reason']}"
    if order["exchange_items"] is not None:
        yield (
            f"exchange {' '.join(order['exchange_items'])} for {' '.join(order['exchange_new_items'])}, "
            f"difference {order['exchange_price_difference']} on {order['exchange_payment_method_id']}"
        )
    if order["return_items"] is not None:
        yield f"return {' '.join(order['return_items'])}, refund to {order['return_payment_method_id']}"


def _payment(payment: Mapping[str, Any]) -> str:
    word = "paid with" if payment["transaction_type"] == "payment" else "refunded to"
    return f"{round(payment['amount'], 2)} {word} {payment['payment_method_id']}"


def _product(product: Mapping[str, Any]) -> str:
    variants = [variant for variant in product["variants"].values() if variant["available"]]
    lines = [f"product {product['product_id']} {product['name']}: {len(variants)} items available"]
    return "\n".join(lines + [_variant(variant) for variant in variants])


def _variant(variant: Mapping[str, Any]) -> str:
    return f"item {variant['item_id']} {variant['price']}: {_pairs(variant['options'])}"


def _user(user: Mapping[str, Any]) -> str:
    name = user["name"]
    lines = [
        f"user {user['user_id']}: {name['first_name']} {name['last_name']}, {user['email']}",
        f"address {_address(user['address'])}",
    ]
    for method in user["payment_methods"].values():
        details = [str(method[key]) for key in ("brand", "last_four", "balance") if key in method]
        lines.append(f"payment {' '.join([method['id'], *details])}")
    return "\n".join([*lines, f"orders {' '.join(user['orders'])}"])


def _address(address: Mapping[str, Any]) -> str:
    fields = ("address1", "address2", "city", "state", "country", "zip")
    return ", ".join(str(address[field]) for field in fields if address[field] != "")


def _pairs(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
