"""Telecom: what agent and customer tools answer, and what passes between the two databases."""

import json

import pytest

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.telecom import PhoneDatabase, TelecomTools, TelecomUserTools
from envs.toolkit import ToolKit
from envs.types import Action, Task, ToolResult

JOHN = {"env_type": "user", "func_name": "set_user_info", "arguments": {"name": "John Smith", "phone_number": "555-123-2002"}}
LINE = {"customer_id": "C1001", "line_id": "L1002"}


@pytest.fixture(scope="module")
def telecom() -> Domain:
    return load_domain("telecom", open_source("packaged"))


def toolkit_after(telecom: Domain, *functions: dict) -> ToolKit:
    """The tools for John Smith, after these initialisation functions."""
    return telecom.new_toolkit(
        Task("telecom", {"id": "made up", "initial_state": {"initialization_actions": [JOHN, *functions]}})
    )


def on_phone(name: str, **arguments: object) -> dict:
    return {"env_type": "user", "func_name": name, "arguments": arguments}


def agent(toolkit: ToolKit, name: str, **arguments: object) -> ToolResult:
    return toolkit.use(Action(name, arguments))


def user(toolkit: ToolKit, name: str, **arguments: object) -> str:
    result = toolkit.use(Action(name, arguments, "user"))
    assert not result.error, result
    return result.content


def shows(toolkit: ToolKit) -> str:
    return user(toolkit, "check_status_bar")


def test_agent_and_customer_have_upstreams_tools(telecom):
    assert (len(TelecomTools.tools), len(TelecomUserTools.tools)) == (13, 30)
    assert (len(telecom.write_tools), len(telecom.user_write_tools)) == (6, 15)
    for schema in (*telecom.tool_schemas, *telecom.user_tool_schemas):
        function = schema["function"]
        assert function["description"] and "Args:" not in function["description"]
        assert all(p["description"] for p in function["parameters"]["properties"].values()), function["name"]


def test_the_unchanged_database_has_the_official_hash(telecom):
    assert telecom.new_toolkit().db_hash() == "304cf5ef059852e117ea801ab9a5efc24c9713ec887679dc2e30acceb4b6742d"


def test_the_policies_are_both_documents_in_their_tags(telecom):
    for policy in (telecom.policy, telecom.solo_policy):
        assert policy.startswith("<main_policy>\n# Telecom Agent Policy")
        assert "identify the customer.\n</main_policy>\n<tech_support_policy>\n# Introduction" in policy
        assert policy.endswith("permissions.\n</tech_support_policy>")
    assert "YOU ARE BEING TRANSFERRED" in telecom.policy and "YOU ARE BEING TRANSFERRED" not in telecom.solo_policy


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (Action("get_customer_by_phone", {"phone_number": "5551232002"}), "Customer with phone number 5551232002 not found"),
        (Action("get_customer_by_id", {"customer_id": ["C1001"]}), "Customer with ID ['C1001'] not found"),
        (Action("get_details_by_id", {"id": "X1"}), "Unknown ID format or type: X1"),
        (Action("get_details_by_id", {"id": "L9"}), "Line with ID L9 not found"),
        (Action("get_details_by_id", {"id": 7}), "'int' object has no attribute 'startswith'"),
        (Action("suspend_line", {"customer_id": "C1001", "line_id": "L1003", "reason": "x"}), "Line must be active to suspend"),
        (Action("resume_line", LINE), "Line must be suspended to resume"),
        (Action("resume_line", {"customer_id": "C1001", "line_id": "L1004"}), "Line L1004 not found for customer C1001"),
        (Action("send_payment_request", {"customer_id": "C1001", "bill_id": "B1004"}), "Bill B1004 not found for customer C1001"),
        (Action("refuel_data", {**LINE, "gb_amount": 0}), "Refuel amount must be positive"),
        (
            Action("enable_roaming", {"customer_id": "C1001"}),
            "TelecomTools.enable_roaming() missing 1 required positional argument: 'line_id'",
        ),
        (
            Action("grant_app_permission", {"app_name": "messaging"}, "user"),
            "TelecomUserTools.grant_app_permission() missing 1 required positional argument: 'permission'",
        ),
        (
            Action("grant_app_permission", {"app_name": "messaging", "permission": None}, "user"),
            "'NoneType' object has no attribute 'lower'",
        ),
        (Action("set_apn_settings", {"apn_settings": "internet"}, "user"), "'str' object has no attribute 'apn_name'"),
        (Action("set_network_mode_preference", {"mode": 5}, "user"), "'int' object has no attribute 'value'"),
        (Action("set_data_usage", {**LINE, "data_used_gb": 1.0}), "Tool 'set_data_usage' not found."),
        (Action("break_vpn", {}, "user"), "Tool 'break_vpn' not found."),
    ],
)
def test_a_wrong_call_is_answered_in_upstreams_words(telecom, action, answer):
    assert toolkit_after(telecom).use(action) == ToolResult(f"Error: {answer}", error=True)


def test_unknown_apn_settings_are_refused_as_upstream(telecom):
    toolkit = toolkit_after(telecom)
    result = toolkit.use(Action("set_apn_settings", {"apn_settings": {"mms_apn": None, "speed": 5}}, "user"))
    assert result.error and "1 validation error for APNSettings\nspeed\n  Extra inputs are not permitted" in result.content
    assert toolkit.same_state(toolkit_after(telecom))


def test_customers_are_found_by_contact_number_line_and_name(telecom):
    toolkit = telecom.new_toolkit()
    for number, customer in (("555-123-1002", "C1002"), ("555-123-2003", "C1001"), ("555-123-2009", "C1003")):
        assert json.loads(agent(toolkit, "get_customer_by_phone", phone_number=number).content)["customer_id"] == customer
    found = json.loads(agent(toolkit, "get_customer_by_name", full_name="EMMA wilson", dob="1995-08-17").content)
    assert [customer["customer_id"] for customer in found] == ["C1004"]
    assert agent(toolkit, "get_customer_by_name", full_name="Emma Wilson", dob="1995-08-18").content == "[]"


def test_dates_and_numbers_are_printed_as_upstream_prints_them(telecom):
    toolkit = telecom.new_toolkit()
    device = json.loads(agent(toolkit, "get_details_by_id", id="D1002").content)
    assert (device["activation_date"], device["imei"]) == ("2025-02-15 11:45:00", "234567890123456")
    usage = agent(toolkit, "get_data_usage", **LINE).content
    assert usage == (
        '{"line_id": "L1002", "data_used_gb": "8.7", "data_limit_gb": "15.0", "data_refueling_gb": "0.0", '
        '"cycle_end_date": "2025-02-28"}'
    )
    bills = json.loads(agent(toolkit, "get_bills_for_customer", customer_id="C1001", limit=2).content)
    assert [bill["bill_id"] for bill in bills] == ["B1003", "B1002"]


def test_refueling_is_charged_to_the_draft_bill_or_to_a_new_one(telecom):
    toolkit = telecom.new_toolkit()
    answer = agent(toolkit, "refuel_data", **LINE, gb_amount=2).content
    assert json.loads(answer)["message"] == "Successfully added 2 GB of data for line L1002 for $4.00"
    bill = json.loads(agent(toolkit, "get_details_by_id", id="B1003").content)
    assert (bill["total_due"], bill["line_items"][0]["description"]) == (4.0, "Data refueling: 2 GB at $2.0/GB")
    sarah = {"customer_id": "C1002", "line_id": "L1004", "gb_amount": 10.0}
    again = telecom.new_toolkit()
    for other in (toolkit, again):
        agent(other, "refuel_data", **sarah)
        agent(other, "refuel_data", **sarah)
    new = json.loads(agent(toolkit, "get_bills_for_customer", customer_id="C1002").content)[0]
    assert (new["status"], new["total_due"], new["issue_date"], new["due_date"]) == ("Draft", 2.0, "2025-03-01", "2025-03-15")
    assert len(new["line_items"]) == 2
    assert again.changes()["customers"]["C1002"] == toolkit.changes()["customers"]["C1002"]


def test_an_overdue_bill_is_paid_and_the_line_works_after_a_restart(telecom):
    suspended = {"env_type": "assistant", "func_name": "suspend_line_for_overdue_bill"}
    suspended["arguments"] = {**LINE, "new_bill_id": "B9", "contract_ended": False}
    toolkit = toolkit_after(telecom, suspended, on_phone("simulate_network_search"))
    assert "No Signal" in shows(toolkit)
    assert user(toolkit, "check_payment_request") == "No payment request has been made."
    assert user(toolkit, "make_payment") == "You do not have a payment request."
    agent(toolkit, "send_payment_request", customer_id="C1001", bill_id="B9")
    assert user(toolkit, "check_payment_request") == "You have a payment request for bill B9 of 65.0 USD."
    again = agent(toolkit, "send_payment_request", customer_id="C1001", bill_id="B1002")
    assert again.content == "Error: A bill is already awaiting payment for this customer"
    assert user(toolkit, "make_payment") == "Payment of 65.0 USD has been made for bill B9."
    assert json.loads(agent(toolkit, "get_details_by_id", id="B9").content)["status"] == "Paid"
    assert toolkit.check(
        {
            "env_type": "assistant",
            "func_name": "assert_no_overdue_bill",
            "arguments": {"overdue_bill_id": "B9"},
            "assert_value": True,
        }
    )
    answer = json.loads(agent(toolkit, "resume_line", **LINE).content)
    assert answer["message"] == "Line resumed successfully" and answer["line"]["suspension_start_date"] is None
    assert "No Signal" in shows(toolkit)
    assert user(toolkit, "reboot_device") == (
        "Restarting network services...\nStatus Bar: 📶⁴ Excellent | 5G | 📱 Data Enabled | 🔋 80%"
    )


def test_the_phone_learns_what_the_carrier_allows(telecom):
    used_up = {"env_type": "assistant", "func_name": "set_data_usage", "arguments": {**LINE, "data_used_gb": 15.1}}
    abroad = [on_phone("set_user_location", abroad=True), on_phone("turn_roaming_on")]
    toolkit = toolkit_after(telecom, used_up, *abroad)
    assert user(toolkit, "run_speed_test") == "Speed test failed: No Connection."
    agent(toolkit, "refuel_data", **LINE, gb_amount=2.0)
    assert user(toolkit, "run_speed_test") == "Speed Test Result: 275.00 Mbps (Excellent). Connection is very fast."
    agent(toolkit, "disable_roaming", **LINE)
    assert user(toolkit, "can_send_mms") == "Your messaging app cannot send MMS messages."
    agent(toolkit, "enable_roaming", **LINE)
    assert user(toolkit, "can_send_mms") == "Your messaging app can send MMS messages."


def test_an_unknown_phone_number_fails_every_call_as_upstream(telecom):
    stranger = {**JOHN, "arguments": {"name": "Nobody", "phone_number": "555"}}
    toolkit = telecom.new_toolkit()
    with pytest.raises(ValueError, match="Line with phone number 555 not found"):
        toolkit.initialise({"initialization_actions": [stranger]})
    assert agent(toolkit, "get_details_by_id", id="L1002").content == "Error: Line with phone number 555 not found"


def test_airplane_mode_ends_wifi_and_vpn_and_comes_back_with_a_search(telecom):
    toolkit = toolkit_after(telecom)
    user(toolkit, "toggle_wifi")
    assert user(toolkit, "connect_vpn").startswith("VPN connected successfully.\n")
    assert user(toolkit, "connect_vpn") == "VPN already connected."
    assert user(toolkit, "toggle_airplane_mode") == "Airplane Mode is now ON.\nStatus Bar: ✈️ Airplane Mode | 🔋 80%"
    assert user(toolkit, "check_vpn_status") == "VPN is turned OFF."
    assert user(toolkit, "toggle_wifi").startswith("Cannot change Wi-Fi settings while Airplane Mode is ON.\n")
    assert "📶⁴ Excellent | 5G" in user(toolkit, "toggle_airplane_mode")


@pytest.mark.parametrize(
    ("mode", "vpn", "saver", "answer"),
    [
        ("2g_only", False, False, "0.05 Mbps (Very Poor)"),
        ("3g_only", False, False, "1.50 Mbps (Poor)"),
        ("4g_only", False, False, "44.00 Mbps (Good)"),
        ("4g_5g_preferred", True, False, "27.50 Mbps (Good)"),
        ("4g_5g_preferred", True, True, "5.50 Mbps (Fair)"),
    ],
)
def test_speed_follows_from_network_signal_vpn_and_data_saver(telecom, mode, vpn, saver, answer):
    toolkit = toolkit_after(telecom, *[on_phone("break_vpn")] * vpn)
    user(toolkit, "set_network_mode_preference", mode=mode)
    if saver:
        user(toolkit, "toggle_data_saver_mode")
    assert user(toolkit, "run_speed_test").startswith(f"Speed Test Result: {answer}. Connection is ")


def test_a_broken_vpn_is_slow_again_and_shows_upstreams_details(telecom):
    toolkit = toolkit_after(telecom, on_phone("break_vpn")).fork()
    user(toolkit, "disconnect_vpn")
    user(toolkit, "connect_vpn")
    assert user(toolkit, "check_vpn_status") == (
        "VPN is ON and connected. Details: {'server_address': '192.168.1.1', 'protocol': 'OpenVPN', "
        "'server_performance': <PerformanceLevel.POOR: 'poor'>}"
    )
    other = toolkit_after(telecom)
    user(other, "connect_vpn")
    assert "EXCELLENT" in user(other, "check_vpn_status")


def test_an_unknown_mode_is_refused_and_none_is_let_in(telecom):
    toolkit = toolkit_after(telecom)
    known = "4g_5g_preferred, 4g_only, 3g_only, 2g_only"
    for mode in ("6g", None):
        answer = user(toolkit, "set_network_mode_preference", mode=mode)
        assert answer.startswith(f"Failed to set network mode: '{mode}' is not a valid option. Please use one of: {known}\n")
    assert toolkit.use(Action("check_network_mode_preference", {}, "user")).error


def test_apn_settings_are_reset_at_the_restart(telecom):
    toolkit = toolkit_after(telecom, on_phone("break_apn_settings"), on_phone("break_apn_mms_setting"))
    assert user(toolkit, "check_apn_settings").startswith("Current APN Name: broken\nMMSC URL (for picture messages): Not Set\n")
    assert user(toolkit, "reset_apn_settings") == (
        "APN settings will reset at reboot.\nStatus Bar: 📵 No Signal | 📵 Data Disabled | 🔋 80%"
    )
    assert user(toolkit, "reboot_device").startswith("Resetting APN settings...\nRestarting network services...\n")
    assert user(toolkit, "can_send_mms") == "Your messaging app can send MMS messages."
    assert toolkit.same_state(toolkit_after(telecom, on_phone("simulate_network_search")))


def test_permissions_are_granted_by_name(telecom):
    toolkit = toolkit_after(
        telecom, *[on_phone("remove_app_permission", app_name="messaging", permission=p) for p in ("sms", "storage")]
    )
    assert user(toolkit, "check_app_permissions", app_name="messaging") == "App 'messaging' has permission for: phone."
    user(toolkit, "grant_app_permission", app_name="messaging", permission="SMS")
    assert user(toolkit, "check_app_status", app_name="messaging") == (
        "Status for App: messaging\n - Permissions Granted:\n   - sms\n   - phone"
    )
    refused = user(toolkit, "grant_app_permission", app_name="messaging", permission="camera").splitlines()[0]
    known = "['sms', 'storage', 'phone', 'network']"
    assert refused == f"Error. Permission 'camera' not tracked for app 'messaging', available permissions: {known}"
    assert user(toolkit, "check_app_status", app_name="maps") == "App 'maps' not found on this phone."
    assert user(toolkit, "check_installed_apps") == "The following apps are installed on the phone: messaging, browser"


def test_a_locked_sim_card_stays_locked(telecom):
    toolkit = toolkit_after(telecom, on_phone("unseat_sim_card"), on_phone("lock_sim_card", mode="pin"))
    assert user(toolkit, "check_sim_status") == "No SIM card detected in the phone."
    user(toolkit, "reseat_sim_card")
    assert user(toolkit, "check_sim_status") == "The SIM card is locked with a PIN code."
    assert "SIM Card Status: locked_pin\nCellular Connection: no_service" in user(toolkit, "check_network_status")


def test_a_write_on_the_phone_stays_in_its_environment(telecom):
    base = telecom.user_database
    assert isinstance(base, PhoneDatabase)
    untouched = base.hash()
    first, second = toolkit_after(telecom), toolkit_after(telecom)
    before = first.snapshot()
    for name in ("toggle_data", "reset_apn_settings", "connect_vpn", "reboot_device"):
        user(first, name)
    user(first, "grant_app_permission", app_name="messaging", permission="network")
    assert not first.same_state(second)
    assert (base.hash(), toolkit_after(telecom).user_db_hash()) == (untouched, second.user_db_hash())
    first.restore(before)
    assert first.same_state(second)


def test_alone_the_agent_uses_the_phone_itself(telecom):
    task = next(t for t in telecom.tasks("base") if t.ticket)
    toolkit = telecom.new_toolkit(task, solo=True)
    assert not agent(toolkit, "check_status_bar").error
    refused = toolkit.use(Action("check_status_bar", {}, "user"))
    assert refused == ToolResult("Error: User tool calls are not allowed in solo mode", error=True)
    assert len(telecom.solo_tool_schemas) == 44
