"""The scripted customer says what the scenario says, and no more."""

import re

import pytest

from envs.retail.expert import confirmation
from envs.types import Action, StopReason, Task
from envs.users.scripted import ScriptedUser


def scenario(**instructions: str | None) -> Task:
    told = {
        "reason_for_call": "You want to cancel order #W1234567 because you no longer need it.",
        "known_info": "You are Sara Doe in zip code 12345.",
        "unknown_info": "You do not remember your email address.",
        "task_instructions": "You are in a hurry.",
        **instructions,
    }
    return Task("retail", {"id": "1", "user_scenario": {"instructions": told}})


@pytest.fixture
def user() -> ScriptedUser:
    user = ScriptedUser()
    user.reset(scenario(), None)
    return user


def test_the_opening_gives_the_reason_and_the_name_in_the_first_person(user):
    assert user.opening() == "I want to cancel order #W1234567 because I no longer need it. I am Sara Doe in zip code 12345."


def test_stage_directions_stay_unsaid():
    user = ScriptedUser()
    reason = "You want to return the lamp. If the agent asks for confirmation, keep it. Make sure you sound angry."
    user.reset(scenario(reason_for_call=reason), None)
    assert user.opening() == "I want to return the lamp. I am Sara Doe in zip code 12345."


def test_a_confirmation_names_the_action(user):
    question = confirmation(Action("cancel_pending_order", {"order_id": "#W1234567", "reason": "no longer needed"}))
    reply = user.reply(question)
    assert reply.text == "Yes, please cancel order #W1234567 because no longer needed." and reply.stop is None


def test_an_order_that_the_scenario_does_not_name_is_not_confirmed(user):
    reply = user.reply("I will cancel order #W7654321 because no longer needed. Do you confirm (yes/no)?")
    assert reply.text.startswith("No, that is not what I asked for.") and reply.stop is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is your email address?", "I do not remember my email address."),
        ("Could you tell me your name and zip code?", "I am Sara Doe in zip code 12345."),
        ("Which order do you mean?", "#W1234567"),
        ("What is the reason for the cancellation?", "because I no longer need it"),
    ],
)
def test_questions_are_answered_from_the_scenario(user, question, answer):
    reply = user.reply(question)
    assert answer in reply.text and reply.stop is None


def test_an_unknown_question_reveals_the_rest_once(user):
    assert "I am in a hurry." in user.reply("How is the weather?").text
    assert user.reply("How is the weather there?").text == "I have told you all I know."


def test_a_report_ends_the_conversation(user):
    assert user.reply("Order #W1234567 is cancelled.").stop is StopReason.USER_STOP


def test_an_announcement_does_not_end_it(user):
    assert user.reply("One moment, let me look at your order.").stop is None


def test_nothing_else_is_wanted(user):
    assert user.reply("It is cancelled. Is there anything else I can do?").stop is StopReason.USER_STOP


def test_a_transfer_ends_the_conversation(user):
    assert user.reply("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.").stop is StopReason.TRANSFER


def test_an_agent_that_only_asks_is_left_in_the_end(user):
    replies = [user.reply(f"What about question {i}?") for i in range(10)]
    assert [reply.stop for reply in replies] == [None] * 9 + [StopReason.USER_STOP]
    user.reset(scenario(), None)
    assert [user.reply("Why?").stop for _ in range(3)] == [None, None, StopReason.USER_STOP]


def test_no_id_is_said_that_neither_the_scenario_nor_the_agent_gave(retail, sampled):
    questions = ("What is your order id?", "Which item ids and payment method id?", "What is your user id?", "Anything to add?")
    for task in [*sampled[:80], *retail.tasks("base")]:
        user = ScriptedUser()
        user.reset(task, 0)
        words = " ".join([user.opening(), *(user.reply(question).text for question in questions)])
        given = " ".join(str(value) for value in task.instructions.values())
        assert all(found in given for found in re.findall(r"W\d{7}|\b\d{8,}\b|\w+_\d{4,}", words)), task.id


def test_instructions_may_be_a_single_text():
    user = ScriptedUser()
    user.reset(Task("retail", {"id": "1", "user_scenario": {"instructions": "You want a refund."}}), None)
    assert user.opening() == "I want a refund."


def test_endless_words_are_not_repeated(user):
    assert user.reply("I will " + "." * 50_000 + "x. Do you confirm (yes/no)?").text == "Yes, please go ahead."


def test_an_earlier_conversation_is_gone_on_with_by_saying_what_is_wanted_now():
    history = [
        {"role": "user", "content": "Is order #W1234567 on its way?"},
        {"role": "assistant", "content": "No, order #W1234567 is pending."},
    ]
    told = {"reason_for_call": "You want to cancel order #W1234567.", "known_info": "You are Sara Doe."}
    user = ScriptedUser()
    user.reset(
        Task("retail", {"id": "1", "user_scenario": {"instructions": told}, "initial_state": {"message_history": history}}),
        None,
    )
    first = user.reply("No, order #W1234567 is pending.")
    assert (first.text, first.stop) == ("I want to cancel order #W1234567. I am Sara Doe.", None)
    assert user.reply("It is cancelled.").stop is StopReason.USER_STOP
