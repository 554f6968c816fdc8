"""The thirteen tools of the telecom agent.

They answer what τ²-bench v1.0.1 answers (`domains/telecom/tools.py`): checks come in its order, and a call that fails half-way
leaves what it had already written.
"""

from __future__ import annotations

from typing import Any

from envs.database import Record
from envs.telecom.accounts import MONTH_END, TODAY, Accounts
from envs.telecom.models import Bill, Customer
from envs.toolkit import ToolType, tool


class TelecomTools(Accounts):
    """The class keeps upstream's name: Python's messages for wrong arguments contain it."""

    @tool(ToolType.READ)
    def get_customer_by_phone(self, phone_number: str) -> Customer:
        """Find a customer by the contact number or the number of one of the lines.

        Args:
            phone_number: The number with its dashes, such as '555-123-2001'.
        """
        return self.customer_by_phone(phone_number)

    @tool(ToolType.READ)
    def get_customer_by_id(self, customer_id: str) -> Customer:
        """Find a customer by id.

        Args:
            customer_id: The customer's id, such as 'C1001'.
        """
        return self.customer(customer_id)

    @tool(ToolType.READ)
    def get_customer_by_name(self, full_name: str, dob: str) -> list[Customer]:
        """Find customers by name and date of birth; several may have the same.

        Args:
            full_name: First and last name, in any case.
            dob: Date of birth as YYYY-MM-DD; it must match exactly.
        """
        return [
            customer
            for customer in self.db.customers.rows()
            if customer.full_name.lower() == full_name.lower() and customer.date_of_birth == dob
        ]

    @tool(ToolType.READ)
    def get_details_by_id(self, id: str) -> Record:
        """Everything about a customer, line, device, bill or plan.

        Args:
            id: The id; its first letter says what it is of: 'C1001', 'L1001', 'D1001', 'B1001', 'P1001'.
        """
        if id.startswith("L"):
            return self.line(id)
        if id.startswith("D"):
            return self.device(id)
        if id.startswith("B"):
            return self.bill(id)
        if id.startswith("C"):
            return self.customer(id)
        if id.startswith("P"):
            return self.plan(id)
        raise ValueError(f"Unknown ID format or type: {id}")

    @tool(ToolType.WRITE)
    def suspend_line(self, customer_id: str, line_id: str, reason: str) -> dict[str, Any]:
        """Suspend an active line, for at most six months and a fee of $5 a month.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
            reason: Why it is suspended.
        """
        line = self.customers_line(customer_id, line_id)
        if line.status != "Active":
            raise ValueError("Line must be active to suspend")
        line = self.db.lines.edit(line_id)
        line.status = "Suspended"
        line.suspension_start_date = TODAY
        return {"message": "Line suspended successfully. $5/month holding fee will apply.", "line": line}

    @tool(ToolType.WRITE)
    def resume_line(self, customer_id: str, line_id: str) -> dict[str, Any]:
        """Make a suspended line, or one that waits for activation, active. The policy says when that is allowed.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
        """
        line = self.customers_line(customer_id, line_id)
        if line.status not in ("Suspended", "Pending Activation"):
            raise ValueError("Line must be suspended to resume")
        line = self.db.lines.edit(line_id)
        line.status = "Active"
        line.suspension_start_date = None
        return {"message": "Line resumed successfully", "line": line}

    @tool(ToolType.READ)
    def get_bills_for_customer(self, customer_id: str, limit: int = 12) -> list[Bill]:
        """A customer's bills, the newest first.

        Args:
            customer_id: The customer's id, such as 'C1001'.
            limit: How many bills at most.
        """
        bills = [self.bill(bill_id) for bill_id in self.customer(customer_id).bill_ids]
        return sorted(bills, key=lambda bill: bill.issue_date, reverse=True)[:limit]

    @tool(ToolType.WRITE)
    def send_payment_request(self, customer_id: str, bill_id: str) -> str:
        """Ask the customer to pay a bill, which then awaits payment. Only one bill of a customer can.

        Look at the bill first: whether it is overdue, or paid already, is not checked here.

        Args:
            customer_id: Id of the customer who owns the bill.
            bill_id: The bill's id, such as 'B1001'.
        """
        customer = self.customer(customer_id)
        if self.bills_awaiting_payment(customer):
            raise ValueError("A bill is already awaiting payment for this customer")
        if bill_id not in customer.bill_ids:
            raise ValueError(f"Bill {bill_id} not found for customer {customer_id}")
        self.db.bills.edit(self.bill(bill_id).bill_id).status = "Awaiting Payment"
        return f"Payment request sent to the customer for bill {bill_id}"

    @tool(ToolType.READ)
    def get_data_usage(self, customer_id: str, line_id: str) -> dict[str, Any]:
        """A line's data in this billing cycle: used, limit, refueled, and when the cycle ends.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
        """
        line = self.customers_line(customer_id, line_id)
        return {
            "line_id": line_id,
            "data_used_gb": line.data_used_gb,
            "data_limit_gb": self.plan(line.plan_id).data_limit_gb,
            "data_refueling_gb": line.data_refueling_gb,
            "cycle_end_date": MONTH_END,
        }

    @tool(ToolType.WRITE)
    def enable_roaming(self, customer_id: str, line_id: str) -> str:
        """Let a line be used abroad. The phone has a setting of its own for that.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
        """
        if self.customers_line(customer_id, line_id).roaming_enabled:
            return "Roaming was already enabled"
        self.db.lines.edit(line_id).roaming_enabled = True
        return "Roaming enabled successfully"

    @tool(ToolType.WRITE)
    def disable_roaming(self, customer_id: str, line_id: str) -> str:
        """Let a line not be used abroad.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
        """
        if not self.customers_line(customer_id, line_id).roaming_enabled:
            return "Roaming was already disabled"
        self.db.lines.edit(line_id).roaming_enabled = False
        return "Roaming disabled successfully"

    @tool(ToolType.GENERIC)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the customer to a human: only when asked for, or when the policy and the tools cannot solve the problem.

        Args:
            summary: What the customer needs, in a sentence.
        """
        return "Transfer successful"

    @tool(ToolType.WRITE)
    def refuel_data(self, customer_id: str, line_id: str, gb_amount: float) -> dict[str, Any]:
        """Add data to a line for this cycle and charge the customer the plan's price per GB.

        Args:
            customer_id: Id of the customer who owns the line.
            line_id: The line's id, such as 'L1001'.
            gb_amount: How many GB to add.
        """
        line = self.customers_line(customer_id, line_id)
        if gb_amount <= 0:
            raise ValueError("Refuel amount must be positive")
        price = self.plan(line.plan_id).data_refueling_price_per_gb
        charge = gb_amount * price
        line = self.db.lines.edit(line_id)
        line.data_refueling_gb += gb_amount
        self.charge(customer_id, charge, f"Data refueling: {gb_amount} GB at ${price}/GB")
        return {
            "message": f"Successfully added {gb_amount} GB of data for line {line_id} for ${charge:.2f}",
            "new_data_refueling_gb": line.data_refueling_gb,
            "charge": charge,
        }
