"""What a customer of the retail store may want: one function per kind of task.

A template looks at one customer and answers with a `Draft`, the wish in the scenario's words (τ²'s second person) and the
calls that fulfil it, or with None where that customer cannot have such a wish. Every fact that the calls need is in the
words or in what earlier calls answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

from envs.retail.expert import address_text
from envs.retail.models import CreditCard, GiftCard, Order, OrderItem, PaymentMethod, RetailDatabase, User, UserAddress, Variant
from envs.types import Action


@dataclass(frozen=True)
class Draft:
    """A wish (`reason`), the calls after authentication, and for questions the facts of the answer and its sentence."""

    reason: str
    actions: tuple[Action, ...]
    info: tuple[str, ...] = ()
    answer: str | None = None


Template = Callable[[Random, RetailDatabase, User], Draft | None]


def cancel(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    if not (orders := _orders(db, user, "pending")):
        return None
    order = rng.choice(orders)
    reason, words = rng.choice(
        (
            (
                "no longer needed",
                ("because you no longer need it", "because it is no longer needed", "since you do not need it any more"),
            ),
            (
                "ordered by mistake",
                ("because you ordered it by mistake", "because it was a mistake", "which you ordered by mistake"),
            ),
        )
    )
    name, reads = _point_to(rng, db, user, order)
    call = Action("cancel_pending_order", {"order_id": order.order_id, "reason": reason})
    return Draft(_wish(rng, f"cancel {name} {rng.choice(words)}"), (*reads, call))


def address(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    if not (orders := _orders(db, user, "pending")):
        return None
    order = rng.choice(orders)
    to_default = order.address != user.address and rng.random() < 0.3
    new = user.address if to_default else _new_address(rng, db)
    place = "your default address" if to_default else _spoken(rng, new)
    name, reads = _point_to(rng, db, user, order, user_details=to_default)
    words = rng.choice(
        (f"change the shipping address of {name} to {place}", f"have {name} sent to {place}", f"ship {name} to {place} instead")
    )
    call = Action("modify_pending_order_address", {"order_id": order.order_id, **_arguments(new)})
    return Draft(_wish(rng, words), (*reads, call))


def user_address(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    new = _new_address(rng, db)
    place = _spoken(rng, new)
    reason = rng.choice(
        (
            _wish(rng, f"change your default address to {place}"),
            f"You moved and want your default address changed to {place}.",
            f"You have a new address, {place}, and want it as your default address.",
        )
    )
    return Draft(reason, (Action("modify_user_address", {"user_id": user.user_id, **_arguments(new)}),))


def return_items(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    if not (orders := _orders(db, user, "delivered")):
        return None
    order = rng.choice(orders)
    everything = rng.random() < 0.2
    items = order.items if everything else _nameable(rng, order, most=2)
    if not items:
        return None
    paid_with = user.payment_methods[order.payment_history[0].payment_method_id]
    cards = [m for m in user.payment_methods.values() if isinstance(m, GiftCard) and m.id != paid_with.id]
    to_card = len(cards) == 1 and rng.random() < 0.4
    name, reads = _point_to(rng, db, user, order, items, user_details=to_card)
    what = f"everything in {name}" if everything else f"the {_listed(i.name for i in items)} from {name}"
    if to_card:
        refund = rng.choice(("with the refund to your gift card", "and get the refund on your gift card"))
    else:
        refund = rng.choice(("with the refund to the original payment method", "and get the refund the way you paid"))
    call = Action(
        "return_delivered_order_items",
        {
            "order_id": order.order_id,
            "item_ids": [item.item_id for item in items],
            "payment_method_id": cards[0].id if to_card else paid_with.id,
        },
    )
    return Draft(_wish(rng, f"return {what} {refund}"), (*reads, call))


def exchange(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    return _change_items(rng, db, user, "delivered", "exchange_delivered_order_items", "exchange {} for one with {}")


def modify_items(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    return _change_items(rng, db, user, "pending", "modify_pending_order_items", "change {} to one with {}")


def payment(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    orders = [o for o in _orders(db, user, "pending") if len(o.payment_history) == 1]
    if not orders:
        return None
    order = rng.choice(orders)
    paid = order.payment_history[0]
    methods = [m for m in user.payment_methods.values() if m.id != paid.payment_method_id and _covers(m, paid.amount)]
    if not methods:
        return None
    method = rng.choice(methods)
    if (spoken := _spoken_method(user, method)) is None:
        return None
    name, reads = _point_to(rng, db, user, order, user_details=True)
    words = rng.choice((f"pay for {name} with {spoken} instead", f"change the payment method of {name} to {spoken}"))
    call = Action("modify_pending_order_payment", {"order_id": order.order_id, "payment_method_id": method.id})
    return Draft(_wish(rng, words), (*reads, call))


def lookup(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    questions = [_order_question] * 5 + [_profile_question] * 2 + [_item_question]
    return rng.choice(questions)(rng, db, user)


#: The kinds of tasks, in the order in which `sample_tasks` deals them.
TEMPLATES: dict[str, Template] = {
    "lookup": lookup,
    "cancel": cancel,
    "address": address,
    "user_address": user_address,
    "return": return_items,
    "exchange": exchange,
    "modify_items": modify_items,
    "payment": payment,
}


def _order_question(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    orders = [db.orders[order_id] for order_id in user.orders]
    if not orders:
        return None
    order = rng.choice(orders)
    named = _nameable(rng, order, most=1)
    name, reads = _point_to(rng, db, user, order, named)
    number = order.order_id
    choices = [
        (f"the status of {name}", (order.status,), f"The status of order {number} is {order.status}."),
        (
            f"how much you paid for {name}",
            (str(order.payment_history[0].amount),),
            f"You paid {order.payment_history[0].amount} for order {number}.",
        ),
        (
            f"where {name} is sent",
            (order.address.address1, order.address.zip),
            f"The address of order {number} is {address_text(_arguments(order.address))}.",
        ),
    ]
    for item in named:
        key, value = rng.choice(list(item.options.items()))
        choices += [
            (f"the price of the {item.name} in {name}", (str(item.price),), f"The price of the {item.name} is {item.price}."),
            (f"the {key} of the {item.name} in {name}", (value,), f"The {key} of the {item.name} is {value}."),
        ]
    if order.fulfillments:
        tracking = order.fulfillments[0].tracking_id[0]
        choices.append((f"the tracking number of {name}", (tracking,), f"The tracking number of order {number} is {tracking}."))
    what, info, answer = rng.choice(choices)
    return Draft(_question(rng, what), tuple(reads), info, answer)


def _profile_question(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    read = (Action("get_user_details", {"user_id": user.user_id}),)
    cards = [m for m in user.payment_methods.values() if isinstance(m, GiftCard)]
    if len(cards) == 1 and rng.random() < 0.6:
        balance = str(cards[0].balance)
        return Draft(
            _question(rng, "the balance of your gift card"), read, (balance,), f"The balance of your gift card is {balance}."
        )
    answer = f"Your default address is {address_text(_arguments(user.address))}."
    return Draft(
        _question(rng, "which default address you have on file"), read, (user.address.address1, user.address.zip), answer
    )


def _item_question(rng: Random, db: RetailDatabase, user: User) -> Draft | None:
    product = rng.choice(list(db.products.values()))
    variant = rng.choice(list(product.variants.values()))
    read = Action("get_item_details", {"item_id": variant.item_id})
    what, answer = f"what item {variant.item_id} costs", f"Item {variant.item_id} costs {variant.price}."
    return Draft(_question(rng, what), (read,), (str(variant.price),), answer)


def _change_items(
    rng: Random, db: RetailDatabase, user: User, status: Literal["pending", "delivered"], tool: str, words: str
) -> Draft | None:
    orders = _orders(db, user, status)
    if not orders:
        return None
    order = rng.choice(orders)
    chosen = [(item, _alternative(rng, db, item)) for item in _nameable(rng, order, most=1 if rng.random() < 0.8 else 2)]
    changes = [(item, variant) for item, variant in chosen if variant is not None]
    if not changes:
        return None
    difference = sum(variant.price - item.price for item, variant in changes)
    original = user.payment_methods[order.payment_history[0].payment_method_id]
    others = [m for m in user.payment_methods.values() if m.id != original.id and _spoken_method(user, m)]
    use_other = bool(others) and (rng.random() < 0.3 or not _covers(original, difference))
    method = rng.choice(others) if use_other else original
    if not _covers(method, difference):
        return None
    name, reads = _point_to(rng, db, user, order, [item for item, _ in changes], user_details=use_other)
    wishes = [
        words.format(f"the {item.name}" + (f" in {name}" if i == 0 else ""), _wanted(rng, item, variant))
        for i, (item, variant) in enumerate(changes)
    ]
    pay = _spoken_method(user, method) if use_other else "the original payment method"
    products = dict.fromkeys(item.product_id for item, _ in changes)
    call = Action(
        tool,
        {
            "order_id": order.order_id,
            "item_ids": [item.item_id for item, _ in changes],
            "new_item_ids": [variant.item_id for _, variant in changes],
            "payment_method_id": method.id,
        },
    )
    reason = _wish(rng, " and to ".join(wishes)) + rng.choice(
        (f" Use {pay} for the price difference.", f" The price difference should go to {pay}.", f" You want to use {pay}.")
    )
    return Draft(reason, (*reads, *(Action("get_product_details", {"product_id": p}) for p in products), call))


def _wanted(rng: Random, item: OrderItem, variant: Variant) -> str:
    """The options asked for: what differs, or all of them."""
    differing = {k: v for k, v in variant.options.items() if item.options.get(k) != v}
    if rng.random() < 0.5:
        return _listed(f"{key} {value}" for key, value in variant.options.items())
    rest = ", all else the same" if len(differing) < len(variant.options) else ""
    return _listed(f"{key} {value}" for key, value in differing.items()) + rest


def _alternative(rng: Random, db: RetailDatabase, item: OrderItem) -> Variant | None:
    """Another available variant whose options no other available one has; near ones are likelier."""
    variants = [v for v in db.products[item.product_id].variants.values() if v.available]
    seen = Counter(tuple(sorted(v.options.items())) for v in variants)
    others = [v for v in variants if v.options != item.options and seen[tuple(sorted(v.options.items()))] == 1]
    near = [v for v in others if sum(item.options.get(k) != value for k, value in v.options.items()) == 1]
    pool = near if near and rng.random() < 0.6 else others
    return rng.choice(pool) if pool else None


def _orders(db: RetailDatabase, user: User, status: str) -> list[Order]:
    return [db.orders[order_id] for order_id in user.orders if db.orders[order_id].status == status]


def _nameable(rng: Random, order: Order, most: int) -> list[OrderItem]:
    """Up to `most` items that their product's name tells apart within the order."""
    names = Counter(item.name for item in order.items)
    items = [item for item in order.items if names[item.name] == 1]
    return rng.sample(items, min(len(items), rng.randint(1, most)))


def _point_to(
    rng: Random, db: RetailDatabase, user: User, order: Order, named: Collection[OrderItem] = (), user_details: bool = False
) -> tuple[str, list[Action]]:
    """How the customer names the order, and the reads that find it: by its id, or by an item that no other order has.

    `named` are the items that the wish names anyway, `user_details` says that it needs the customer's profile.
    """
    details = Action("get_user_details", {"user_id": user.user_id})
    position = user.orders.index(order.order_id)
    elsewhere = {item.name for o in user.orders if o != order.order_id for item in db.orders[o].items}
    marks = sorted({item.name for item in order.items} - elsewhere - {item.name for item in named})
    if marks and position < 3 and rng.random() < 0.35:
        reads = [Action("get_order_details", {"order_id": order_id}) for order_id in user.orders[: position + 1]]
        return f"the order with the {rng.choice(marks)}", [details, *reads]
    read = Action("get_order_details", {"order_id": order.order_id})
    return f"order {order.order_id}", [details, read] if user_details else [read]


def _covers(method: PaymentMethod, amount: float) -> bool:
    return not isinstance(method, GiftCard) or method.balance >= amount


def _spoken_method(user: User, method: PaymentMethod) -> str | None:
    """The customer's words for a payment method; None where they would fit another one too."""
    if isinstance(method, CreditCard):
        return f"your {method.brand} card ending in {method.last_four}"
    alike = sum(m.source == method.source for m in user.payment_methods.values())
    return None if alike > 1 else "your gift card" if isinstance(method, GiftCard) else "your PayPal account"


_STREETS = (
    "Birch",
    "Walnut",
    "Juniper",
    "Orchard",
    "Meadow",
    "Harbor",
    "Canyon",
    "Prairie",
    "Willow",
    "Granite",
    "Heron",
    "Summit",
)
_ROADS = ("Street", "Avenue", "Lane", "Road", "Drive", "Court")


def _new_address(rng: Random, db: RetailDatabase) -> UserAddress:
    """A made-up street in a city where some customer lives."""
    town = db.users[rng.choice(list(db.users))].address
    second = rng.choice((f"Suite {rng.randint(100, 999)}", f"Apt {rng.randint(1, 60)}", f"Suite {rng.randint(100, 999)}", ""))
    first = f"{rng.randint(100, 999)} {rng.choice(_STREETS)} {rng.choice(_ROADS)}"
    return town.model_copy(update={"address1": first, "address2": second})


def _spoken(rng: Random, address: UserAddress) -> str:
    if rng.random() < 0.6:
        return address_text(_arguments(address))
    street = ", ".join(part for part in (address.address1, address.address2, address.city) if part)
    return f"{street}, {address.state} {address.zip}, {address.country}"


def _arguments(address: UserAddress) -> dict[str, str]:
    """The address in the order of the tools' arguments."""
    return {name: getattr(address, name) for name in ("address1", "address2", "city", "state", "country", "zip")}


def _wish(rng: Random, words: str) -> str:
    return f"{rng.choice(('You want to', 'You would like to', 'You need to', 'You are calling to'))} {words}."


def _question(rng: Random, what: str) -> str:
    return f"{rng.choice(('You want to know', 'You would like to know', 'You need to know', 'You wonder'))} {what}."


def _listed(words: Iterable[str]) -> str:
    parts = list(words)
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
