"""How the carrier works: finding rows, charging customers, telling the phone, and what τ²-bench's tasks call before an episode
and after it. Nothing here is a tool; `TelecomTools` builds its tools on these.
"""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any, Literal, TypeVar

from envs.database import Record, Table
from envs.telecom.models import Bill, Customer, Device, Line, LineItem, Plan, TelecomDatabase
from envs.telecom.phone import PaymentRequest
from envs.telecom.user_tools import TelecomUserTools
from envs.toolkit import ToolKit, helper

R = TypeVar("R", bound=Record)

#: The day on which every task takes place, and the months around it.
TODAY = date(2025, 2, 25)
MONTH_END = date(2025, 2, 28)
_LAST_MONTH = (date(2025, 1, 1), date(2025, 1, 31))
_NEXT_MONTH = (date(2025, 3, 1), date(2025, 3, 31))
_DAYS_TO_PAY = 14


class Accounts(ToolKit):
    db: TelecomDatabase
    user: TelecomUserTools | None

    def sync(self) -> None:
        """The phone learns what the carrier allows and asks for, the carrier that a bill was paid (upstream's `sync_tools`)."""
        if self.user is None or self.user.surroundings.phone_number is None:
            return
        phone_number = self.user.surroundings.phone_number
        line = self.line_by_phone(phone_number)
        self._tell("line_active", line.status == "Active")
        self._tell("roaming_allowed", bool(line.roaming_enabled))
        plan = self.plan(line.plan_id)
        self._tell("mobile_data_usage_exceeded", line.data_used_gb >= plan.data_limit_gb + line.data_refueling_gb)

        request = self.user.surroundings.payment_request
        if request is not None and request.paid:
            self.bill(request.bill_id)
            self.db.bills.edit(request.bill_id).status = "Paid"
            self._tell("payment_request", None)
            request = None
        if request is None:
            awaited = self.bills_awaiting_payment(self.customer_by_phone(phone_number))
            if awaited:
                asked = PaymentRequest(bill_id=awaited[0].bill_id, amount_due=awaited[0].total_due)
                self._tell("payment_request", asked)

    def _tell(self, field: str, value: Any) -> None:
        """Set a field of the phone's surroundings; nothing is copied where it already has that value."""
        assert self.user is not None
        if getattr(self.user.surroundings, field) != value:
            setattr(self.user.change_surroundings(), field, value)

    def customer(self, customer_id: str) -> Customer:
        return _row(self.db.customers, customer_id, "Customer")

    def line(self, line_id: str) -> Line:
        return _row(self.db.lines, line_id, "Line")

    def plan(self, plan_id: str) -> Plan:
        return _row(self.db.plans, plan_id, "Plan")

    def device(self, device_id: str) -> Device:
        return _row(self.db.devices, device_id, "Device")

    def bill(self, bill_id: str) -> Bill:
        return _row(self.db.bills, bill_id, "Bill")

    def customers_line(self, customer_id: str, line_id: str) -> Line:
        if line_id not in self.customer(customer_id).line_ids:
            raise ValueError(f"Line {line_id} not found for customer {customer_id}")
        return self.line(line_id)

    def line_by_phone(self, phone_number: str) -> Line:
        found = self.db.lines.where("phone_number", lambda line: line.phone_number, phone_number)
        if not found:
            raise ValueError(f"Line with phone number {phone_number} not found")
        return found[0]

    def customer_by_phone(self, phone_number: str) -> Customer:
        """By the contact number or the number of a line, in the table's order."""
        # Neither numbers nor whose lines they are can change, so every environment finds the same customer.
        known = self.db.customers.base.derived
        if not isinstance(phone_number, str) or phone_number not in known:
            known[phone_number] = self._search_by_phone(phone_number)
        return self.db.customers[known[phone_number]]

    def _search_by_phone(self, phone_number: str) -> str:
        for key, customer in self.db.customers.items():
            if customer.phone_number == phone_number:
                return key
            if any(self.line(line_id).phone_number == phone_number for line_id in customer.line_ids):
                return key
        raise ValueError(f"Customer with phone number {phone_number} not found")

    def bills_awaiting_payment(self, customer: Customer) -> list[Bill]:
        return [bill for bill in map(self.bill, customer.bill_ids) if bill.status == "Awaiting Payment"]

    def charge(self, customer_id: str, amount: float, description: str) -> None:
        """Put an amount on the customer's draft bill; there is a new one for the next month if there is none."""
        customer = self.customer(customer_id)
        draft = next((bill for bill in map(self.bill, customer.bill_ids) if bill.status == "Draft"), None)
        if draft is None:
            # Upstream draws the id at random, so no two of its environments agree on it; here the same calls give the same id.
            number = hashlib.sha256(f"{customer_id}/{len(customer.bill_ids)}".encode()).hexdigest()
            draft = self._add_bill(f"B{number[:8]}", customer_id, _NEXT_MONTH, "Draft")
        else:
            draft = self.db.bills.edit(draft.bill_id)
        kind = "Credit" if amount < 0 else "Charge"
        item = LineItem(description=description, amount=amount, date=TODAY, item_type=kind)
        draft.line_items = [*draft.line_items, item]
        draft.total_due += amount

    def _add_bill(self, bill_id: str, customer_id: str, month: tuple[date, date], status: Literal["Draft", "Overdue"]) -> Bill:
        """An empty bill, issued on the first day of `month`."""
        first, last = month
        bill = Bill(
            bill_id=bill_id,
            customer_id=customer_id,
            period_start=first,
            period_end=last,
            issue_date=first,
            total_due=0,
            due_date=first.replace(day=1 + _DAYS_TO_PAY),
            line_items=[],
            status=status,
        )
        self.db.bills.add(bill_id, bill)
        customer = self.db.customers.edit(customer_id)
        customer.bill_ids = [*customer.bill_ids, bill_id]
        return bill

    @helper
    def get_available_plan_ids(self) -> list[str]:
        return list(self.db.plans)

    @helper
    def set_data_usage(self, customer_id: str, line_id: str, data_used_gb: float) -> str:
        line = self.customers_line(customer_id, line_id)
        self.db.lines.edit(line.line_id).data_used_gb = data_used_gb
        return f"Data usage set to {data_used_gb} GB for line {line_id}"

    @helper
    def suspend_line_for_overdue_bill(self, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool) -> str:
        """A new bill of last month for the line's plan, overdue; the line is suspended for it."""
        line = self.line(line_id)
        if line.status != "Active":
            raise ValueError("Line must be active to suspend for unpaid bill")
        amount = self.plan(line.plan_id).price_per_month
        if amount <= 0:
            raise ValueError("Amount must be positive for overdue bill")
        if any(bill.status == "Overdue" for bill in map(self.bill, self.customer(customer_id).bill_ids)):
            raise ValueError("Customer already has an overdue bill")
        bill = self._add_bill(new_bill_id, customer_id, _LAST_MONTH, "Overdue")
        bill.line_items = [LineItem(description=f"Charge for line {line.line_id}", amount=amount, date=TODAY, item_type="Charge")]
        bill.total_due += amount
        line = self.db.lines.edit(line_id)
        line.status = "Suspended"
        line.suspension_start_date = TODAY
        if contract_ended:
            line.contract_end_date = _LAST_MONTH[1]
        return f"Line {line_id} suspended for unpaid bill {new_bill_id}. Contract ended: {contract_ended}"

    @helper
    def assert_data_refueling_amount(self, customer_id: str, line_id: str, expected_amount: float) -> bool:
        return abs(self.customers_line(customer_id, line_id).data_refueling_gb - expected_amount) < 1e-6

    @helper
    def assert_line_status(self, customer_id: str, line_id: str, expected_status: str) -> bool:
        return self.customers_line(customer_id, line_id).status == expected_status

    @helper
    def assert_overdue_bill_exists(self, customer_id: str, overdue_bill_id: str) -> bool:
        if overdue_bill_id not in self.customer(customer_id).bill_ids:
            raise ValueError(f"Overdue bill {overdue_bill_id} not found")
        if self.bill(overdue_bill_id).status != "Overdue":
            raise ValueError(f"Overdue bill {overdue_bill_id} is not overdue")
        return True

    @helper
    def assert_no_overdue_bill(self, overdue_bill_id: str) -> bool:
        """Whether it is paid or does not exist."""
        return overdue_bill_id not in self.db.bills or self.bill(overdue_bill_id).status == "Paid"


def _row(table: Table[R], key: str, name: str) -> R:
    # Ids are strings; what an agent sends instead is not found, also where it cannot be looked up.
    if not isinstance(key, str) or key not in table:
        raise ValueError(f"{name} with ID {key} not found")
    return table[key]
