"""The environment core: whose turn it is, what is counted, and every way an episode ends."""

import pytest

from envs.domain import load_domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.retail.expert import GoldAgent
from envs.types import GREETING, Action, AgentTurn, Message, StopReason, Task
from envs.users.base import UserReply
from envs.users.scripted import ScriptedUser


class PatientUser:
    """Never ends the conversation."""

    def reset(self, task: Task, seed: int | None) -> None:
        self.seed = seed

    def opening(self) -> str:
        return "Hello."

    def reply(self, message: str) -> UserReply:
        return UserReply(f"You said: {message}")


def call(name: str = "list_all_product_types", **arguments: object) -> AgentTurn:
    return AgentTurn(actions=(Action(name, arguments),))


@pytest.fixture
def env(retail) -> Env:
    env = Env(retail, retail.tasks("train")[0], PatientUser())
    env.reset(seed=3)
    return env


def test_an_episode_begins_with_the_greeting_and_the_customers_words(env):
    assert env.transcript.messages == (Message("assistant", GREETING), Message("user", "Hello."))
    assert env.user.seed == 3 and env.stop_reason is None


def test_text_goes_to_the_customer_and_calls_to_the_tools(env):
    assert env.step(AgentTurn("One moment.")) == (Message("user", "You said: One moment."),)
    (result,) = env.step(AgentTurn("aside", (Action("get_order_details", {"order_id": "#W1"}),)))
    assert result == Message(
        "tool", "Error: Order not found", action=Action("get_order_details", {"order_id": "#W1"}), error=True
    )
    assert env.transcript.messages[-2].content == "aside"
    assert [action.name for action in env.transcript.calls] == ["get_order_details"]


def test_several_calls_of_one_turn_are_answered_in_order(env):
    results = env.step(
        AgentTurn(actions=(Action("calculate", {"expression": "1+1"}), Action("calculate", {"expression": "2+2"})))
    )
    assert [message.content for message in results] == ["2.0", "4.0"]


@pytest.mark.parametrize("turn", [AgentTurn("{bad", parse_failure="no closing brace"), AgentTurn(""), AgentTurn(None)])
def test_what_does_not_parse_or_says_nothing_is_answered_by_an_error(env, turn):
    (answer,) = env.step(turn)
    assert answer.role == "tool" and answer.error and answer.action is None and answer.content.startswith("Error: ")
    assert env.transcript.parse_failures == 1 and env.transcript.calls == ()


def test_an_asynchronous_caller_takes_the_two_halves(env):
    assert env.begin(AgentTurn("Hi")) == () and env.awaiting_user
    with pytest.raises(RuntimeError, match="awaits the customer"):
        env.begin(AgentTurn("Hi"))
    assert env.finish(UserReply("Bye", StopReason.USER_STOP)) == (Message("user", "Bye"),)
    assert env.stop_reason is StopReason.USER_STOP and not env.awaiting_user
    with pytest.raises(RuntimeError, match="is over"):
        env.step(call())


def test_the_turn_limit_ends_the_episode(retail):
    env = Env(retail, retail.tasks("train")[0], PatientUser(), max_steps=2)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(AgentTurn("Hi"))
    env.reset()
    env.step(AgentTurn("Hi"))
    assert not env.done
    env.step(AgentTurn("Hi"))
    assert env.stop_reason is StopReason.MAX_STEPS


def test_too_many_errors_end_the_episode(env):
    for i in range(env.max_errors):
        env.step(call(f"no_tool_{i}") if i % 2 else AgentTurn("?", parse_failure="unreadable"))
    assert env.stop_reason is StopReason.TOO_MANY_ERRORS


def test_the_same_call_again_and_again_is_a_loop(env):
    env.step(call())
    env.step(call())
    env.step(call("calculate", expression="1"))
    for _ in range(2):
        env.step(call())
    assert not env.done
    env.step(call())
    assert env.stop_reason is StopReason.LOOP


def test_an_interruption_keeps_the_first_reason(env):
    env.interrupt(StopReason.TIMEOUT)
    env.interrupt(StopReason.CANCELLED)
    assert env.done and env.transcript.stop_reason is StopReason.TIMEOUT


def test_reset_starts_over_on_an_unchanged_database(retail, sampled):
    task = next(task for task in sampled if task.kind == "cancel")
    env = Env(retail, task, ScriptedUser())
    transcripts = []
    for _ in range(2):
        env.reset()
        assert env.toolkit.changes() == {}
        agent = GoldAgent(retail, task)
        while not env.done:
            env.step(agent.next_turn(env.transcript))
        transcripts.append(env.transcript)
        assert list(env.toolkit.changes()) == ["orders"] or "users" in env.toolkit.changes()
    assert transcripts[0] == transcripts[1]


@pytest.mark.parametrize("data", ["official", "packaged"])
def test_the_gold_agent_reaches_the_gold_database_on_every_official_task(data, retail, packaged):
    domain = retail if data == "official" else load_domain("retail", packaged)
    for task in domain.tasks("base"):
        env = Env(domain, task, ScriptedUser())
        agent = GoldAgent(domain, task)
        env.reset()
        while not env.done:
            env.step(agent.next_turn(env.transcript))
        gold = domain.new_toolkit()
        for action in task.gold_actions:
            gold.use(action)
        assert env.stop_reason.official, (task.id, env.stop_reason)
        assert env.transcript.calls == task.gold_actions and env.toolkit.same_state(gold), task.id
        said = " ".join(m.content or "" for m in env.transcript.messages if m.role == "assistant").lower().replace(",", "")
        assert all(info.lower() in said for info in task.communicate_info), task.id


def test_splits_are_those_of_the_benchmark(retail):
    assert [len(retail.tasks(split)) for split in ("train", "test", "base")] == [74, 40, 114]
    with pytest.raises(TaudojoError, match="choose one of train, test, base"):
        retail.tasks("validation")


def test_an_unknown_domain_and_a_broken_database_are_named(packaged, tmp_path):
    with pytest.raises(TaudojoError, match="no domain 'bakery'"):
        load_domain("bakery", packaged)
    folder = tmp_path / "domains" / "retail"
    folder.mkdir(parents=True)
    (folder / "db.json").write_text('{"products": {}}')
    with pytest.raises(TaudojoError, match=r"db\.json is not a retail database"):
        load_domain("retail", type(packaged)(tmp_path, "path", "broken"))


def test_a_new_environment_copies_no_row(retail):
    env = Env(retail, retail.tasks("train")[0], ScriptedUser())
    env.reset()
    assert all(row is retail.database.orders[key] for key, row in env.toolkit.db.orders.items())
    assert env.toolkit.changes() == {}


def test_gymnasium_knows_the_domains():
    gymnasium = pytest.importorskip("gymnasium")
    import envs.registration

    envs.registration.register()
    spec = gymnasium.spec("taudojo/retail-v0")
    assert spec.entry_point == "rewards.gym:make" and spec.kwargs == {"domain": "retail"}
    assert spec.vector_entry_point == "rewards.gym_vector:make_vec"
