"""The short form of the telecom domain, for models with little context: a policy of a few hundred tokens that says how phones are
mended, and tool answers as plain lines. Every id and fact that a task needs stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from envs.compact import parsed, with_tools
from envs.domain import Domain
from envs.types import Action, ToolResult

_RULES = """\
You are a telecom agent. Each turn either calls one tool or writes to the user.
1. Find the customer by phone number, id, or name and date of birth. Take ids from the tools, never invent them.
2. The phone is in the user's hand: ask the user to check it, and to change what is wrong, step by step.
3. No service: airplane mode off; SIM missing: reseat it; reset APN settings and restart; line suspended: rule 6.
4. No mobile data: rule 3 first; mobile data on; abroad: data roaming on, and enable_roaming for the line (free);
 usage over the limit: ask how much to refuel (at most 2 GB), tell the price. Slow, that is not Excellent:
 data saver off, network mode 4g_5g_preferred, VPN off.
5. No MMS: rules 3 and 4 first; network mode not 2G; Wi-Fi Calling off; messaging app has sms and storage permission;
 MMSC URL not set: reset APN settings and restart.
6. Suspended for an overdue bill: send a payment request, the user pays, see that the bill is Paid, resume the line, the user
 restarts. Contract ended, or SIM locked: transfer.
7. Before a write that costs money, name it and ask for confirmation (yes/no).
8. Have the result tested: status bar, speed test, or MMS. Transfer to a human only if all this does not help.
User can check: status bar, network status, SIM card, network mode preference, data saver, APN settings, Wi-Fi, Wi-Fi Calling,
 VPN, apps, app permissions, speed test, MMS, payment request.
User can change: airplane mode, mobile data, data roaming, data saver, Wi-Fi, Wi-Fi Calling, VPN, network mode preference,
 app permissions, APN settings; reseat the SIM card, restart, pay.
"""


def compact_policy(domain: Domain) -> str:
    """The rules and all of the agent's tools with their arguments."""
    return with_tools(_RULES, domain)


def render_result(action: Action, result: ToolResult) -> str:
    """A tool's answer in few words; errors and plain strings as they are."""
    value = parsed(result)
    if isinstance(value, dict) and value:
        return _object(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "\n".join(map(_object, value))
    return result.content


def _object(value: Mapping[str, Any]) -> str:
    """The fields tell what it is; the more telling ones come first."""
    for field, render in _RENDERERS.items():
        if field in value:
            return render(value)
    return json.dumps(value)


def _customer(customer: Mapping[str, Any]) -> str:
    address = ", ".join(customer["address"][field] for field in ("street", "city", "state", "zip_code"))
    methods = (
        f"{m['method_type']} {m['account_number_last_4']} until {m['expiration_date']}" for m in customer["payment_methods"]
    )
    lines = [
        f"customer {customer['customer_id']}: {customer['full_name']}, {customer['account_status']}, "
        f"born {customer['date_of_birth']}, phone {customer['phone_number']}, {customer['email']}",
        f"address {address}",
        f"lines {_joined(customer['line_ids'])}; bills {_joined(customer['bill_ids'])}",
        f"pays with {_joined(methods, ', ')}; goodwill credit used {customer['goodwill_credit_used_this_year']}"
        + _dated(customer, created_at="since", last_extension_date="last extension"),
    ]
    return "\n".join(lines)


def _line(line: Mapping[str, Any]) -> str:
    return (
        f"line {line['line_id']} {line['phone_number']}: {line['status']}, plan {line['plan_id']}, device {line['device_id']}, "
        f"used {line['data_used_gb']} GB, refueled {line['data_refueling_gb']} GB, "
        f"roaming {'on' if line['roaming_enabled'] else 'off'}"
        + _dated(
            line,
            contract_end_date="contract until",
            suspension_start_date="suspended since",
            last_plan_change_date="plan changed",
            last_sim_replacement_date="SIM replaced",
        )
    )


def _written_line(answer: Mapping[str, Any]) -> str:
    return f"{answer['message']}\n{_line(answer['line'])}"


def _bill(bill: Mapping[str, Any]) -> str:
    items = "; ".join(f"{i['item_type']} {i['amount']} {i['description']} ({i['date']})" for i in bill["line_items"])
    return (
        f"bill {bill['bill_id']} of {bill['customer_id']}: {bill['status']}, {bill['total_due']} due {bill['due_date']}, "
        f"{bill['period_start']} to {bill['period_end']}, issued {bill['issue_date']}" + (f": {items}" if items else "")
    )


def _plan(plan: Mapping[str, Any]) -> str:
    return (
        f"plan {plan['plan_id']} {plan['name']}: {plan['data_limit_gb']} GB, {plan['price_per_month']} a month, "
        f"refuel {plan['data_refueling_price_per_gb']} per GB"
    )


def _device(device: Mapping[str, Any]) -> str:
    return (
        f"device {device['device_id']}: {device['device_type']} {device['model']}, IMEI {device['imei']}, "
        f"eSIM {'yes' if device['is_esim_capable'] else 'no'}, {'activated' if device['activated'] else 'not activated'}"
        + _dated(device, activation_date="on", last_esim_transfer_date="last eSIM transfer")
    )


def _usage(usage: Mapping[str, Any]) -> str:
    return (
        f"line {usage['line_id']}: used {usage['data_used_gb']} of {usage['data_limit_gb']} GB, "
        f"refueled {usage['data_refueling_gb']} GB, cycle ends {usage['cycle_end_date']}"
    )


def _dated(row: Mapping[str, Any], **fields: str) -> str:
    return "".join(f", {words} {row[field]}" for field, words in fields.items() if row[field] is not None)


def _joined(values: Any, between: str = " ") -> str:
    return between.join(values) or "none"


_RENDERERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "full_name": _customer,
    "line": _written_line,
    "cycle_end_date": _usage,
    "phone_number": _line,
    "line_items": _bill,
    "price_per_month": _plan,
    "device_type": _device,
    "charge": lambda answer: str(answer["message"]),
}
