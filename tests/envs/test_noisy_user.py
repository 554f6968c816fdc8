"""A disturbed customer: which faults come, that they come again with the same seed, and that none makes a task impossible."""

import asyncio
import re
from typing import Any

import pytest

from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, StopReason, Task
from envs.users.base import UserReply
from envs.users.noisy import NoisyUser
from envs.users.registry import USERS, user_factory
from envs.users.scripted import ScriptedUser

WORDS = "Hello, please cancel order #W2378156 because Yusuf Rossi at yusuf.rossi9301@example.com does not need this anymore."
QUIET = {"typo_rate": 0.0, "wrong_id_rate": 0.0, "topic_change_rate": 0.0, "early_stop_rate": 0.0}


class Parrot:
    """Says the same words again and again."""

    def __init__(self, words: str = WORDS, stop: StopReason | None = None) -> None:
        self.words, self.stop, self.heard = words, stop, []

    def reset(self, task: Task, seed: int | None) -> None:
        self.heard = []

    def opening(self) -> str:
        return self.words

    def reply(self, message: str) -> UserReply:
        self.heard.append(message)
        return UserReply(self.words, self.stop)


def noisy(inner: Any = None, seed: int | None = 1, **rates: float) -> NoisyUser:
    user = NoisyUser(inner or Parrot(), **{**QUIET, **rates})
    user.reset(Task("retail", {"id": "1"}), seed)
    return user


def conversation(user: NoisyUser, turns: int = 12) -> list[str]:
    return [user.opening().text, *(user.reply(f"turn {n}").text for n in range(turns))]


def test_without_rates_nothing_is_changed():
    assert set(conversation(noisy())) == {WORDS}


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    rates = {"typo_rate": 0.5, "wrong_id_rate": 0.5, "topic_change_rate": 0.3, "early_stop_rate": 0.1}
    first, again, other = (conversation(noisy(seed=seed, **rates)) for seed in (3, 3, 4))
    assert first == again != other


def test_one_fault_s_rate_does_not_move_another_fault():
    alone = [text != WORDS for text in conversation(noisy(topic_change_rate=0.3))]
    with_typos = [text.endswith("?") for text in conversation(noisy(topic_change_rate=0.3, typo_rate=1.0))]
    assert alone == with_typos and any(alone)


def test_typos_spare_ids_addresses_and_names():
    for seed in range(30):
        text = noisy(seed=seed, typo_rate=1.0).reply("?").text
        assert text != WORDS
        assert all(kept in text for kept in ("#W2378156", "yusuf.rossi9301@example.com", "Yusuf Rossi"))
        assert abs(len(text) - len(WORDS)) <= 3


@pytest.mark.parametrize(
    "given",
    ["#W2378156", "yusuf_rossi_9620", "a.b@example.com", "555-123-2002", "19122", "1151293680", "EHGLP3"],
)
def test_an_id_is_wrong_at_first_and_right_in_the_next_reply(given):
    user = noisy(Parrot(f"It is {given}."), wrong_id_rate=1.0)
    wrong = re.fullmatch(r"It is (\S+)\.", user.opening().text)[1]
    assert wrong != given and len(wrong) == len(given) and sum(a != b for a, b in zip(wrong, given, strict=True)) == 1
    assert user.reply("Not found.").text == f"Sorry, I told you {wrong}, but it is {given}. It is {given}."
    assert user.reply("Found.").text == f"It is {given}."


def test_each_id_is_wrong_at_most_once():
    user = noisy(Parrot("Order #W2378156 of zip 19122."), wrong_id_rate=1.0)
    texts = conversation(user, 5)
    assert "#W2378156" not in texts[0] and "19122" in texts[0]
    assert texts[1].endswith("Order #W2378156 of zip 19122.")
    assert set(texts[2:]) == {"Order #W2378156 of zip 19122."}


def test_a_change_of_topic_is_never_followed_by_another_and_the_customer_did_not_hear_the_agent():
    parrot = Parrot()
    texts = conversation(noisy(parrot, topic_change_rate=1.0), 6)[1:]
    assert [text == WORDS for text in texts] == [False, True] * 3
    assert parrot.heard == ["turn 1", "turn 3", "turn 5"]


def test_hanging_up_ends_the_conversation():
    reply = noisy(early_stop_rate=1.0).reply("Hello?")
    assert reply.stop is StopReason.USER_STOP and "###STOP###" in reply.text


def test_the_last_words_and_their_stop_token_come_through():
    user = noisy(Parrot("that is all, thank you. ###STOP###", StopReason.USER_STOP), typo_rate=1.0, wrong_id_rate=1.0)
    reply = user.reply("Anything else?")
    assert reply.stop is StopReason.USER_STOP and reply.text.endswith("###STOP###")


def test_calls_of_the_customer_pass_untouched():
    class Caller(Parrot):
        def __init__(self) -> None:
            super().__init__()
            self.seen: tuple = ()

        def reply(self, message: str) -> UserReply:
            return UserReply("", actions=(Action("toggle_data", {}, "user"),)) if message else UserReply(WORDS)

        def observe(self, results: tuple) -> None:
            self.seen = results

    caller = Caller()
    user = noisy(caller, typo_rate=1.0, wrong_id_rate=1.0)
    assert user.reply("Turn it on.").actions == (Action("toggle_data", {}, "user"),)
    user.observe(("result",))
    assert caller.seen == ("result",)
    assert noisy(caller, topic_change_rate=1.0, early_stop_rate=1.0).reply("").text == WORDS  # it is in the middle of something


def test_an_awaited_customer_is_disturbed_alike():
    class Later(Parrot):
        async def opening(self) -> str:
            return self.words

        async def reply(self, message: str) -> UserReply:
            return UserReply(self.words)

    rates = {"typo_rate": 0.5, "wrong_id_rate": 0.5}

    async def talk() -> list[str]:
        user = noisy(Later(), **rates)
        return [(await user.opening()).text, *[(await user.reply(f"turn {n}")).text for n in range(12)]]

    assert asyncio.run(talk()) == conversation(noisy(**rates))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(TaudojoError, match="typo_rate is"):
        NoisyUser(Parrot(), typo_rate=rate)


def test_an_episode_with_a_noisy_scripted_customer_ends(retail):
    for number, task in enumerate(retail.tasks("test")[:10]):
        env = Env(
            retail,
            task,
            user_factory("noisy", {"user": {"name": "scripted"}, "typo_rate": 0.5, "topic_change_rate": 0.5}, retail)(),
        )
        env.reset(seed=number)
        while not env.done:
            env.step(AgentTurn("Could you give me your email?"))
        assert env.stop_reason in (StopReason.USER_STOP, StopReason.MAX_STEPS)


# -- the registry


def test_every_name_of_the_registry_has_a_file_of_settings_that_fits():
    from training.compose import load, options

    assert set(options("user")) == set(USERS)
    assert {name: load([f"user={name}"]).user.name for name in USERS} == {name: name for name in USERS}


@pytest.mark.parametrize("name", ["scripted", "noisy"])
def test_the_shipped_settings_build_a_customer(retail, name):
    from training.compose import load

    config = load([f"user={name}"]).user
    assert isinstance(user_factory(name, config.settings, retail)(), ScriptedUser if name == "scripted" else NoisyUser)


def test_solo_has_no_customer_and_only_where_the_domain_allows_it(retail):
    with pytest.raises(TaudojoError, match="retail has no solo mode"):
        user_factory("solo", {}, retail)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("scriptd", {}, "user.name=scriptd is not one of scripted, llm, noisy, solo"),
        ("scripted", {"max_replys": 3}, "did you mean max_replies"),
        ("llm", {}, "user.settings.model is missing"),
        ("llm", {"modell": "m"}, "did you mean model"),
        ("noisy", {"typo": 0.1}, "did you mean typo_rate"),
        ("noisy", {"typo_rate": 2.0}, "typo_rate is 2.0"),
        ("noisy", {"user": {"name": "noisy"}}, "name the customer to disturb"),
        ("noisy", {"user": "scripted"}, "name the customer to disturb"),
    ],
)
def test_wrong_settings_are_told_at_once(retail, name, settings, message):
    with pytest.raises(TaudojoError, match=re.escape(message)):
        user_factory(name, settings, retail)
