"""The sixteen tools of the retail agent.

They answer what τ²-bench v1.0.1 answers (`domains/retail/tools.py`), its quirks included: checks come in its order, and a
call that fails half-way leaves what it had already written.
"""

from __future__ import annotations

import json

from envs.calculator import evaluate
from envs.database import copied
from envs.retail.models import (
    GiftCard,
    Order,
    OrderItem,
    OrderPayment,
    PaymentMethod,
    Product,
    RetailDatabase,
    User,
    UserAddress,
    Variant,
)
from envs.toolkit import ToolKit, ToolType, tool


class RetailTools(ToolKit):
    """Reads are free; every write needs the customer's yes first (the policy asks for it, no tool checks it)."""

    db: RetailDatabase

    @tool(ToolType.GENERIC)
    def calculate(self, expression: str) -> str:
        """Work out an arithmetic expression, rounded to two decimals.

        Args:
            expression: Numbers, + - * /, parentheses and spaces, such as '2 * (3 + 4)'.
        """
        return evaluate(expression)

    @tool(ToolType.WRITE)
    def cancel_pending_order(self, order_id: str, reason: str) -> Order:
        """Cancel a whole order that is still pending and refund it.

        Explain the cancellation and get an explicit yes from the customer first. A gift card gets its refund at once,
        every other payment method within 5 to 7 business days.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            reason: Either 'no longer needed' or 'ordered by mistake'.
        """
        order = self._order(order_id)
        if order.status != "pending":
            raise ValueError("Non-pending order cannot be cancelled")
        if reason not in {"no longer needed", "ordered by mistake"}:
            raise ValueError("Invalid reason")
        refunds = []
        for payment in order.payment_history:
            refunds.append(
                OrderPayment(transaction_type="refund", amount=payment.amount, payment_method_id=payment.payment_method_id)
            )
            self._payment_method(order.user_id, payment.payment_method_id)
            self._credit(order.user_id, payment.payment_method_id, payment.amount)
        order = self.db.orders.edit(order_id)
        order.status = "cancelled"
        order.cancel_reason = reason  # type: ignore[assignment]
        order.payment_history.extend(refunds)
        return order

    @tool(ToolType.WRITE)
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Order:
        """Exchange items of a delivered order for other variants of the same products.

        An order can be exchanged or returned only once, so collect all items first. Explain the exchange and get an
        explicit yes from the customer.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            item_ids: Ids of the items to give back; an id may appear more than once.
            new_item_ids: Ids of the items wanted instead, in the same positions and of the same products.
            payment_method_id: Where the price difference is paid or refunded, such as 'gift_card_0000000'.
        """
        order = self._order(order_id)
        if order.status != "delivered":
            raise ValueError("Non-delivered order cannot be exchanged")
        owned = [item.item_id for item in order.items]
        for item_id in item_ids:
            if item_ids.count(item_id) > owned.count(item_id):
                raise ValueError(f"Number of {item_id} not found.")
        if len(item_ids) != len(new_item_ids):
            raise ValueError("The number of items to be exchanged should match.")
        difference: float = 0
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            item = _item(order, item_id)
            difference += self._available_variant(item.product_id, new_item_id).price - item.price
        difference = round(difference, 2)
        method = self._payment_method(order.user_id, payment_method_id)
        if isinstance(method, GiftCard) and method.balance < difference:
            raise ValueError("Insufficient gift card balance to pay for the price difference")
        order = self.db.orders.edit(order_id)
        order.status = "exchange requested"
        order.exchange_items = sorted(item_ids)
        order.exchange_new_items = sorted(new_item_ids)
        order.exchange_payment_method_id = payment_method_id
        order.exchange_price_difference = difference
        return order

    @tool(ToolType.READ)
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        """Find a customer's user id by name and zip code: for customers without an email address at hand.

        Args:
            first_name: The customer's first name, such as 'Sara'.
            last_name: The customer's last name, such as 'Doe'.
            zip: The zip code of the customer's default address, such as '12345'.
        """
        by_first_name = self.db.users.base.index("first_name", lambda user: user.name.first_name.lower())
        for user_id in by_first_name.get(first_name.lower(), ()):
            user = self.db.users[user_id]
            if user.name.last_name.lower() == last_name.lower() and user.address.zip == zip:
                return user_id
        raise ValueError("User not found")

    @tool(ToolType.READ)
    def find_user_id_by_email(self, email: str) -> str:
        """Find a customer's user id by email address.

        Args:
            email: The customer's email address, such as 'sara.doe@example.com'.
        """
        found = self.db.users.base.index("email", lambda user: user.email.lower()).get(email.lower())
        if not found:
            raise ValueError("User not found")
        return found[0]

    @tool(ToolType.READ)
    def get_order_details(self, order_id: str) -> Order:
        """Everything about an order: status, items, address, payments, tracking.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
        """
        return self._order(order_id)

    @tool(ToolType.READ)
    def get_product_details(self, product_id: str) -> Product:
        """All variants of a product: item ids, options, availability, prices.

        Args:
            product_id: The product's id, such as '6086499569'; not an item id.
        """
        return self._product(product_id)

    @tool(ToolType.READ)
    def get_item_details(self, item_id: str) -> Variant:
        """One item: its options, availability and price.

        Args:
            item_id: The item's id, such as '1008292230'; not a product id.
        """
        for product in self.db.products.rows():
            if item_id in product.variants:
                return product.variants[item_id]
        raise ValueError("Item not found")

    @tool(ToolType.READ)
    def get_user_details(self, user_id: str) -> User:
        """Everything about a customer: name, default address, payment methods, order ids.

        Args:
            user_id: The customer's user id, such as 'sara_doe_496'.
        """
        return self._user(user_id)

    @tool(ToolType.READ)
    def list_all_product_types(self) -> str:
        """The names and product ids of all products of the store, by name."""
        return json.dumps({product.name: product.product_id for product in self.db.products.rows()}, sort_keys=True)

    @tool(ToolType.WRITE)
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> Order:
        """Change where a pending order is sent. Get an explicit yes from the customer first.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            address1: First line of the new address, such as '12 Main Street'.
            address2: Second line, such as 'Suite 3', or ''.
            city: City, such as 'Denver'.
            state: State, such as 'CO'.
            country: Country, such as 'USA'.
            zip: Zip code, such as '12345'.
        """
        if "pending" not in self._order(order_id).status:
            raise ValueError("Non-pending order cannot be modified")
        address = UserAddress(address1=address1, address2=address2, city=city, state=state, country=country, zip=zip)
        order = self.db.orders.edit(order_id)
        order.address = address
        return order

    @tool(ToolType.WRITE)
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Order:
        """Change items of a pending order to other variants of the same products.

        This works only once for an order, so collect all items first. Explain the change and get an explicit yes from
        the customer.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            item_ids: Ids of the items to change; an id may appear more than once.
            new_item_ids: Ids of the items wanted instead, in the same positions and of the same products.
            payment_method_id: Where the price difference is paid or refunded, such as 'gift_card_0000000'.
        """
        order = self._order(order_id)
        if order.status != "pending":
            raise ValueError("Non-pending order cannot be modified")
        owned = [item.item_id for item in order.items]
        for item_id in item_ids:
            if item_ids.count(item_id) > owned.count(item_id):
                raise ValueError(f"{item_id} not found")
        if len(item_ids) != len(new_item_ids):
            raise ValueError("The number of items to be exchanged should match")
        difference: float = 0
        variant: Variant | None = None
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            if item_id == new_item_id:
                raise ValueError("The new item id should be different from the old item id")
            item = _item(order, item_id)
            variant = self._available_variant(item.product_id, new_item_id)
            difference += variant.price - item.price
        method = self._payment_method(order.user_id, payment_method_id)
        if isinstance(method, GiftCard) and method.balance < difference:
            raise ValueError("Insufficient gift card balance to pay for the new item")
        order = self.db.orders.edit(order_id)
        order.payment_history.append(
            OrderPayment(
                transaction_type="payment" if difference > 0 else "refund",
                amount=abs(difference),
                payment_method_id=payment_method_id,
            )
        )
        self._credit(order.user_id, payment_method_id, -difference)
        order.items = copied(order.items)
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            item = _item(order, item_id)
            item.item_id = new_item_id
            if variant is not None:
                # Upstream gives every changed item the last variant's price and options.
                item.price, item.options = variant.price, variant.options
        order.status = "pending (item modified)"
        return order

    @tool(ToolType.WRITE)
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> Order:
        """Change how a pending order is paid. Get an explicit yes from the customer first.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            payment_method_id: The new payment method, such as 'credit_card_0000000'; a gift card must cover the total.
        """
        order = self._order(order_id)
        if "pending" not in order.status:
            raise ValueError("Non-pending order cannot be modified")
        method = self._payment_method(order.user_id, payment_method_id)
        if len(order.payment_history) != 1 or order.payment_history[0].transaction_type != "payment":
            raise ValueError("There should be exactly one payment for a pending order")
        paid = order.payment_history[0]
        if paid.payment_method_id == payment_method_id:
            raise ValueError("The new payment method should be different from the current one")
        if isinstance(method, GiftCard) and method.balance < paid.amount:
            raise ValueError("Insufficient gift card balance to pay for the order")
        order = self.db.orders.edit(order_id)
        order.payment_history.extend(
            [
                OrderPayment(transaction_type="payment", amount=paid.amount, payment_method_id=payment_method_id),
                OrderPayment(transaction_type="refund", amount=paid.amount, payment_method_id=paid.payment_method_id),
            ]
        )
        self._credit(order.user_id, payment_method_id, -paid.amount)
        self._credit(order.user_id, paid.payment_method_id, paid.amount)
        return order

    @tool(ToolType.WRITE)
    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> User:
        """Change a customer's default address. Get an explicit yes from the customer first.

        Args:
            user_id: The customer's user id, such as 'sara_doe_496'.
            address1: First line of the new address, such as '12 Main Street'.
            address2: Second line, such as 'Suite 3', or ''.
            city: City, such as 'Denver'.
            state: State, such as 'CO'.
            country: Country, such as 'USA'.
            zip: Zip code, such as '12345'.
        """
        self._user(user_id)
        address = UserAddress(address1=address1, address2=address2, city=city, state=state, country=country, zip=zip)
        user = self.db.users.edit(user_id)
        user.address = address
        return user

    @tool(ToolType.WRITE)
    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> Order:
        """Return items of a delivered order; the customer gets an email about how and where.

        An order can be exchanged or returned only once, so collect all items first. Explain the return and get an
        explicit yes from the customer.

        Args:
            order_id: The order's id with its leading '#', such as '#W0000000'.
            item_ids: Ids of the items to return; an id may appear more than once.
            payment_method_id: Where the refund goes: the order's own payment method, or a gift card of the customer.
        """
        order = self._order(order_id)
        if order.status != "delivered":
            raise ValueError("Non-delivered order cannot be returned")
        method = self._payment_method(order.user_id, payment_method_id)
        if not isinstance(method, GiftCard) and payment_method_id != order.payment_history[0].payment_method_id:
            raise ValueError("Payment method should be the original payment method")
        owned = [item.item_id for item in order.items]
        for item_id in item_ids:
            if item_ids.count(item_id) > owned.count(item_id):
                raise ValueError("Some item not found")
        returned = sorted(item_ids)
        order = self.db.orders.edit(order_id)
        order.status = "return requested"
        order.return_items = returned
        order.return_payment_method_id = payment_method_id
        return order

    @tool(ToolType.GENERIC)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the customer to a human: only when asked for, or when the policy and the tools cannot solve the problem.

        Args:
            summary: What the customer needs, in a sentence.
        """
        return "Transfer successful"

    def _order(self, order_id: str) -> Order:
        if order_id not in self.db.orders:
            raise ValueError("Order not found")
        return self.db.orders[order_id]

    def _user(self, user_id: str) -> User:
        if user_id not in self.db.users:
            raise ValueError("User not found")
        return self.db.users[user_id]

    def _product(self, product_id: str) -> Product:
        if product_id not in self.db.products:
            raise ValueError("Product not found")
        return self.db.products[product_id]

    def _available_variant(self, product_id: str, item_id: str) -> Variant:
        product = self._product(product_id)
        if item_id not in product.variants:
            raise ValueError("Variant not found")
        if not product.variants[item_id].available:
            raise ValueError(f"New item {item_id} not found or available")
        return product.variants[item_id]

    def _payment_method(self, user_id: str, payment_method_id: str) -> PaymentMethod:
        methods = self._user(user_id).payment_methods
        if payment_method_id not in methods:
            raise ValueError("Payment method not found")
        return methods[payment_method_id]

    def _credit(self, user_id: str, payment_method_id: str, amount: float) -> None:
        """Add to a gift card's balance; other payment methods have none."""
        if isinstance(self._payment_method(user_id, payment_method_id), GiftCard):
            card = self.db.users.edit(user_id).payment_methods[payment_method_id]
            assert isinstance(card, GiftCard)
            card.balance = round(card.balance + amount, 2)


def _item(order: Order, item_id: str) -> OrderItem:
    for item in order.items:
        if item.item_id == item_id:
            return item
    raise ValueError(f"Item {item_id} not found")
