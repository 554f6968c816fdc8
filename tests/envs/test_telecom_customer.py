"""Telecom's scripted customer: what an agent's words ask for, and whole conversations with the expert."""

import pytest

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.telecom.expert import GoldAgent, request
from envs.telecom.phone_user import spoken
from envs.telecom.requests import Step, steps
from envs.telecom.user_tools import TelecomUserTools
from envs.types import Action, AgentTurn, StopReason, Task
from envs.users.scripted import ScriptedUser

GRANT = "grant_app_permission"


@pytest.fixture(scope="module")
def telecom() -> Domain:
    return load_domain("telecom", open_source("packaged"))


def on_the_phone(telecom: Domain, task: Task) -> Env:
    env = Env(telecom, task, ScriptedUser(), max_steps=40)
    env.reset()
    return env


def told(env: Env, message: str) -> str:
    """What the customer answers."""
    return env.step(AgentTurn(message))[-1].content or ""


def own_calls(env: Env) -> list[str]:
    return [action.name for action in env.transcript.calls if action.requestor == "user"]


def switch(tool: str, wanted: bool) -> Step:
    return Step(tool, wanted=wanted)


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ("Please toggle airplane mode off.", [switch("toggle_airplane_mode", False)]),
        ("If airplane mode is on please turn it off and let me know if it helps.", [switch("toggle_airplane_mode", False)]),
        (
            "Please check if airplane mode is on and turn it off.",
            [Step("check_network_status"), switch("toggle_airplane_mode", False)],
        ),
        (
            "Toggle airplane mode on and then off.",
            [switch("toggle_airplane_mode", True), switch("toggle_airplane_mode", False)],
        ),
        ("Please use toggle_roaming().", [Step("toggle_roaming")]),
        ("Use `toggle_data_saver_mode()` to turn it OFF.", [switch("toggle_data_saver_mode", False)]),
        (
            "I have enabled roaming on your line. Please turn on data roaming on your phone, restart it and run a speed test.",
            [switch("toggle_roaming", True), Step("reboot_device"), Step("run_speed_test")],
        ),
        (
            "1. Turn off airplane mode\n2. Reseat the SIM card\n3. Restart your phone",
            [switch("toggle_airplane_mode", False), Step("reseat_sim_card"), Step("reboot_device")],
        ),
        ("Make sure mobile data is on.", [switch("toggle_data", True)]),
        ("I need you to turn on mobile data.", [switch("toggle_data", True)]),
        ("Did you turn on mobile data?", [Step("check_network_status")]),
        ("Turn on wifi", [switch("toggle_wifi", True)]),
        ("Is wifi on?", [Step("check_wifi_status")]),
        ("Please turn Wi-Fi Calling off.", [switch("toggle_wifi_calling", False)]),
        ("What does your status bar show?", [Step("check_status_bar")]),
        ("Let me know whether the status bar shows signal.", [Step("check_status_bar")]),
        ("Turn your phone off and back on.", [Step("reboot_device")]),
        ("Remove and reinsert your SIM card", [Step("reseat_sim_card")]),
        ("Please check your SIM card", [Step("check_sim_status")]),
        ("Please reset your APN settings and then restart.", [Step("reset_apn_settings"), Step("reboot_device")]),
        ("The APN settings will reset at the next restart.", []),
        ("Please check the APN settings", [Step("check_apn_settings")]),
        (
            "Please set the MMSC URL to http://mms.carrier.com/mms/wapenc",
            [Step("set_apn_settings", {"apn_settings": {"mmsc_url": "http://mms.carrier.com/mms/wapenc"}})],
        ),
        ("Set your network mode to 4g_only", [Step("set_network_mode_preference", {"mode": "4g_only"})]),
        (
            "Switch your preferred network type from 2G to one that includes 5G.",
            [Step("set_network_mode_preference", {"mode": "4g_5g_preferred"})],
        ),
        ("What is your network mode preference?", [Step("check_network_mode_preference")]),
        ("Is your VPN connected?", [Step("check_vpn_status")]),
        ("Please disconnect your VPN.", [Step("disconnect_vpn")]),
        ("Connect to your VPN", [Step("connect_vpn")]),
        ("Is Data Saver on?", [Step("check_data_restriction_status")]),
        ("Is Wi-Fi Calling on?", [Step("check_wifi_calling_status")]),
        ("Which apps are installed on your phone?", [Step("check_installed_apps")]),
        ("What is the status of the messaging app?", [Step("check_app_status", {"app_name": "messaging"})]),
        ("Check the permissions of the browser.", [Step("check_app_permissions", {"app_name": "browser"})]),
        (
            'grant_app_permission(app_name="messaging", permission="storage") and grant_app_permission(permission="sms")',
            [Step(GRANT, {"app_name": "messaging", "permission": name}) for name in ("storage", "sms")],
        ),
        ("Can you send an MMS message now?", [Step("can_send_mms")]),
        (
            "I have sent you a payment request for bill B1 of $65.0. Please check it and make the payment.",
            [Step("check_payment_request"), Step("make_payment")],
        ),
        ("Would you like to pay the bill now?", []),
        ("I will refuel 2.0 GB of data for line L1002 for $4.00. Do you confirm (yes/no)?", []),
        ("Don't reset your APN settings.", []),
        ("Once you have restarted your phone, let me know.", []),
        ("How much data would you like to refuel?", []),
        ("Your problem is solved. Is there anything else I can help you with?", []),
    ],
)
def test_an_agents_words_become_steps(message, asked):
    assert list(steps(message)) == asked


def test_every_tool_of_the_customer_can_be_asked_for_by_its_name():
    for name in TelecomUserTools.tools:
        words = f"Please use {name}."
        if name == "set_network_mode_preference":
            words = f"Please use {name} with mode 3g_only."
        elif name == GRANT:
            words = f"Please use {name} for the sms permission."
        elif name == "set_apn_settings":
            words = f"Please use {name} with mmsc_url http://a.b/c"
        assert [step.tool for step in steps(words)] == [name]


def test_the_experts_requests_are_understood(telecom):
    asked = {repr(a): a for task in telecom.tasks("full") for a in task.gold_actions if a.requestor == "user"}
    assert len(asked) > 10
    for action in asked.values():
        step = steps(request(action))[-1]
        assert (step.tool, dict(step.arguments)) == (action.name, dict(action.arguments))


def test_answers_are_sentences_with_the_last_status_bar():
    assert spoken(["Airplane Mode is now OFF.\nStatus Bar: a | b", "SIM card re-seated successfully.\nStatus Bar: c"]) == (
        "Airplane Mode is now OFF. SIM card re-seated successfully. Status Bar: c."
    )
    assert spoken(["Your messaging app cannot send MMS messages."]) == "My messaging app cannot send MMS messages."
    assert spoken(["Error: no such app"]) == "That did not work: no such app."


def test_a_switch_that_is_right_already_is_left_alone(telecom):
    task = next(task for task in telecom.tasks("base") if "airplane_mode_on" in task.id)
    env = on_the_phone(telecom, task)
    assert told(env, "Please turn airplane mode off.").startswith("Airplane Mode is now OFF.")
    assert told(env, "Please turn airplane mode off.") == "Airplane Mode is already OFF."
    assert own_calls(env).count("toggle_airplane_mode") == 1
    assert "ON" in told(env, "Toggle airplane mode.")


def test_the_customer_tells_what_the_scenario_says_about_place_number_and_data(telecom):
    task = next(task for task in telecom.tasks("base") if "user_abroad" in task.id)
    env = on_the_phone(telecom, task)
    assert told(env, "Are you abroad?") == "I am currently abroad in France."
    assert told(env, "What is your phone number?") == "I am John Smith with phone number 555-123-2002."
    assert "I am willing to refuel 2.0 GB of data if necessary" in told(env, "How much data would you like to refuel?")


def test_the_customer_tries_before_hanging_up_and_complains_twice(telecom):
    task = next(task for task in telecom.tasks("base") if task.id.startswith("[mms_issue]"))
    env = on_the_phone(telecom, task)
    for _ in range(2):
        assert told(env, "All is well. Goodbye.").startswith("My problem is not solved yet. My messaging app cannot send MMS")
    told(env, "Goodbye.")
    assert env.stop_reason is StopReason.USER_STOP


def test_conversations_about_the_phone_may_be_longer_than_others(telecom):
    env = on_the_phone(telecom, telecom.tasks("base")[0])
    for number in range(15):
        told(env, f"What about question {number}?")
    assert env.stop_reason is None
    env = Env(telecom, telecom.tasks("base")[0], ScriptedUser(max_phone_replies=3))
    env.reset()
    for number in range(5):  # two more, since the customer complains twice
        assert env.stop_reason is None
        told(env, f"What about question {number}?")
    assert env.stop_reason is StopReason.USER_STOP


def test_one_message_brings_about_a_bounded_number_of_calls(telecom):
    env = on_the_phone(telecom, telecom.tasks("base")[0])
    told(env, "Turn off airplane mode. Restart your phone. " * 40)
    assert env.stop_reason is None
    assert len(own_calls(env)) <= 20


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_expert_solves_every_task_with_the_customers_help(telecom, split):
    for task in telecom.tasks(split):
        env, agent = on_the_phone(telecom, task), GoldAgent(telecom, task)
        while not env.done:
            env.step(agent.next_turn(env.transcript))
        transcript = env.transcript
        assert transcript.stop_reason in (StopReason.USER_STOP, StopReason.TRANSFER), task.id
        assert not [message.content for message in transcript.messages if message.error], task.id
        assert all(env.toolkit.check(assertion) for assertion in task.criteria["env_assertions"] or ()), task.id
        made = {(call.name, call.requestor) for call in transcript.calls}
        assert {(action.name, action.requestor) for action in task.gold_actions} <= made, task.id
        assert sum(message.role == "assistant" for message in transcript.messages) <= 30, task.id


def test_the_experts_turns_follow_from_the_transcript(telecom):
    task = telecom.tasks("base")[0]
    env, agent = on_the_phone(telecom, task), GoldAgent(telecom, task)
    first = agent.next_turn(env.transcript)
    assert first == AgentTurn(actions=(Action("get_customer_by_phone", {"phone_number": "555-123-2002"}),))
    env.step(first)
    assert agent.next_turn(env.transcript) == GoldAgent(telecom, task).next_turn(env.transcript) != first
