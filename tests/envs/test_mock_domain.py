"""The mock domain: user tools, initial states, assertions, a conversation that began earlier, solo mode."""

import json

import pytest

from envs.data import DataSource
from envs.domain import STOP_TOKEN, Domain, load_domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.types import GREETING, Action, AgentTurn, Message, StopReason, Task
from envs.users.base import UserReply


@pytest.fixture(scope="module")
def mock(tmp_path_factory) -> Domain:
    """Upstream's rows, written here because the packaged data has no inbox."""
    folder = tmp_path_factory.mktemp("tau2") / "domains" / "mock"
    folder.mkdir(parents=True)
    task = {"task_id": "task_1", "title": "Tidy", "description": None, "status": "pending"}
    user = {"user_id": "user_1", "name": "Ann", "tasks": ["task_1"]}
    files = {
        "db.json": json.dumps({"tasks": {"task_1": task}, "users": {"user_1": user}}),
        "user_db.json": json.dumps({"notifications": {"n1": {"notification_id": "n1", "message": "Tidy!"}}}),
        "policy.md": "Be kind.",
        "policy_solo.md": "Be quick.",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return load_domain("mock", DataSource(folder.parents[1], "test", "1"))


class InboxUser:
    """Dismisses a notification before the first word, looks again before the last one; keeps what it was shown."""

    def reset(self, task: Task, seed: int | None) -> None:
        self.seen: list[str] = []
        self.told: list[str] = []

    def opening(self) -> UserReply:
        return UserReply("", StopReason.USER_STOP, (Action("dismiss_notification", {"notification_id": "n1"}),))

    def observe(self, results: tuple[Message, ...]) -> None:
        self.seen += [message.content or "" for message in results]

    def reply(self, message: str) -> UserReply:
        self.told.append(message)
        if len(self.seen) == 1 and message:
            return UserReply("Let me look.", actions=(Action("check_notifications"), Action("no_such_tool")))
        return UserReply("Please add a task.") if len(self.seen) == 1 else UserReply("Thanks. ###STOP###", StopReason.USER_STOP)


def make_task(**changes: object) -> Task:
    return Task("mock", {"id": "t", "user_scenario": {"instructions": "Anything."}, "ticket": "Do it.", **changes})


def initial(**state: object) -> Task:
    return make_task(initial_state=state)


def test_the_tools_are_those_of_the_benchmark(mock):
    names = [schema["function"]["name"] for schema in mock.tool_schemas]
    assert names == ["create_task", "get_users", "transfer_to_human_agents", "update_task_status"]
    assert [s["function"]["name"] for s in mock.user_tool_schemas] == ["check_notifications", "dismiss_notification"]
    assert (mock.write_tools, mock.user_write_tools) == ({"create_task", "update_task_status"}, {"dismiss_notification"})
    create = mock.tool_schemas[0]["function"]["parameters"]
    assert create["required"] == ["user_id", "title"]
    assert create["properties"]["description"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert mock.tool_schemas[3]["function"]["parameters"]["properties"]["status"]["enum"] == ["pending", "completed"]


def test_a_customer_acts_before_speaking_and_the_agent_does_not_see_it(mock):
    env = Env(mock, make_task(), InboxUser())
    assert env.reset() == (Message("assistant", GREETING), Message("user", "Please add a task."))
    assert env.user.seen == ["Notification n1 dismissed"] and env.user.told == [""]
    assert env.toolkit.changes()["user.notifications"]["n1"]["status"] == "read"
    (result,) = env.step(AgentTurn(actions=(Action("create_task", {"user_id": "user_1", "title": "Rest"}),)))
    assert result.content == '{"task_id": "task_2", "title": "Rest", "description": null, "status": "pending"}'
    assert env.step(AgentTurn("It is added.")) == (Message("user", "Thanks. ###STOP###"),)
    assert env.stop_reason is StopReason.USER_STOP and env.user.told == ["", "It is added.", ""]
    shown = '[{"notification_id": "n1", "message": "Tidy!", "status": "read", "task_id": null}]'
    assert env.user.seen[1:] == [shown, "Error: Tool 'no_such_tool' not found."]
    transcript = env.transcript
    assert [(a.name, a.requestor) for a in transcript.calls] == [
        ("dismiss_notification", "user"),
        ("create_task", "assistant"),
        ("check_notifications", "user"),
        ("no_such_tool", "user"),
    ]
    assert "Let me look." in [message.content for message in transcript.messages]
    assert len(transcript.messages) - len(transcript.agent_messages) == 5
    assert type(transcript).from_json(json.loads(json.dumps(transcript.to_json()))) == transcript


def test_an_agent_cannot_call_in_the_customers_name(mock):
    env = Env(mock, make_task(), InboxUser())
    env.reset()
    (result,) = env.step(AgentTurn(actions=(Action("check_notifications", {}, "user"),)))
    assert result.content == "Error: Tool 'check_notifications' not found." and result.action.requestor == "assistant"


def test_an_asynchronous_caller_asks_until_the_customer_has_answered(mock):
    env = Env(mock, make_task(), InboxUser())
    env.open()
    assert env.awaiting_user and env.transcript.messages == (Message("assistant", GREETING),)
    assert env.finish(env.ask()) == () and env.awaiting_user
    assert env.finish(env.ask()) == (Message("user", "Please add a task."),) and not env.awaiting_user
    with pytest.raises(RuntimeError, match="does not await the customer"):
        env.ask()


def test_a_synchronous_caller_of_an_asynchronous_customer_is_told_how_to_play(mock):
    class Awaitable(InboxUser):
        def opening(self):
            class Later:
                def __await__(self):
                    yield

            return Later()

    with pytest.raises(TypeError, match="asynchronously"):
        Env(mock, make_task(), Awaitable()).reset()


def test_a_customer_that_never_stops_calling_is_a_fault_of_the_simulation(mock):
    class Restless(InboxUser):
        def reply(self, message: str) -> UserReply:
            return self.opening()

    env = Env(mock, make_task(), Restless())
    env.reset()
    assert env.stop_reason is StopReason.USER_ERROR and not env.stop_reason.agent_at_fault


def test_initial_calls_prepare_both_sides(mock):
    add = {"notification_id": "n2", "message": "Rest!", "task_id": "task_1"}
    create = {"user_id": "user_1", "title": "Rest"}
    toolkit = mock.new_toolkit(
        initial(
            initialization_actions=[
                {"env_type": "user", "func_name": "add_notification", "arguments": add},
                {"env_type": "assistant", "func_name": "create_task", "arguments": create},
            ]
        )
    )
    unread = {"notification_id": "n2", "expected_status": "unread"}
    two_tasks = {"user_id": "user_1", "expected_number": 2}
    assert toolkit.check({"env_type": "user", "func_name": "assert_notification_status", "arguments": unread})
    assert toolkit.check({"env_type": "assistant", "func_name": "assert_number_of_tasks", "arguments": two_tasks})
    with pytest.raises(ValueError, match="no write to undo"):
        toolkit.undo()


def test_initial_data_is_merged_and_blinds_the_customers_tools_as_upstream_does(mock):
    rows = {
        "tasks": {"task_2": {"task_id": "task_2", "title": "Rest", "status": "completed"}},
        "users": {"user_1": {"tasks": []}},
    }
    toolkit = mock.new_toolkit(initial(initialization_data={"agent_data": rows}))
    assert toolkit.db.users["user_1"].name == "Ann" and toolkit.db.users["user_1"].tasks == []
    assert list(toolkit.db.tasks) == ["task_1", "task_2"]
    assert toolkit.user_db_hash() == toolkit.db_hash()
    looked = toolkit.use(Action("check_notifications", {}, "user"))
    assert looked.content == "Error: 'MockDB' object has no attribute 'notifications'"
    branch = toolkit.fork()
    branch.use(Action("update_task_status", {"task_id": "task_1", "status": "completed"}))
    assert branch.user_db_hash() == branch.db_hash() != toolkit.db_hash()


def history(answer: str) -> list[dict]:
    call = {"id": "c1", "name": "create_task", "arguments": {"user_id": "user_1", "title": "Rest"}}
    return [
        {"role": "user", "content": "Add a task: Rest."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "id": "c1", "content": answer},
        {"role": "assistant", "content": "It is task_2."},
    ]


ANSWER = '{"task_id":"task_2","title":"Rest","description":null,"status":"pending"}'


def test_an_earlier_conversation_is_replayed_and_goes_on(mock):
    env = Env(mock, initial(message_history=history(ANSWER)), InboxUser())
    messages = env.reset()
    assert [m.role for m in messages[:4]] == ["user", "assistant", "tool", "assistant"]
    assert messages[2].action == Action("create_task", {"user_id": "user_1", "title": "Rest"})
    assert env.user.told == ["It is task_2."] and env.stop_reason is StopReason.USER_STOP
    assert "task_2" in env.toolkit.db.tasks and "task_2" not in mock.new_toolkit().db.tasks


def test_a_state_that_does_not_fit_names_the_task(mock):
    wrong = [
        initial(message_history=history('{"task_id": "task_9"}')),
        initial(initialization_actions=[{"env_type": "user", "func_name": "restore", "arguments": {}}]),
        initial(initialization_data={"agent_data": {"boxes": {}}}),
        initial(initialization_data={"agent_data": {"tasks": {"task_1": {"title": 3}}}}),
    ]
    for task in wrong:
        with pytest.raises(TaudojoError, match="initial state of task t does not fit the domain mock"):
            Env(mock, task, InboxUser()).reset()


def test_every_reset_begins_with_the_same_state(mock):
    create = {"env_type": "assistant", "func_name": "create_task", "arguments": {"user_id": "user_1", "title": "A"}}
    task = initial(initialization_actions=[create])
    env = Env(mock, task, InboxUser())
    hashes = []
    for _ in range(3):
        env.reset()
        hashes.append(env.toolkit.db_hash())
        env.step(AgentTurn(actions=(Action("create_task", {"user_id": "user_1", "title": "B"}),)))
    assert len(set(hashes)) == 1 and env.toolkit.db_hash() not in hashes


def test_a_solo_agent_works_on_the_ticket_with_all_tools(mock):
    env = Env(mock, make_task(), None)
    assert env.solo and env.reset() == (Message("user", "Do it."),)
    names = {schema["function"]["name"] for schema in mock.solo_tool_schemas}
    assert {"create_task", "dismiss_notification", "done"} <= names and mock.solo_policy == "Be quick."
    (result,) = env.step(AgentTurn(actions=(Action("dismiss_notification", {"notification_id": "n1"}),)))
    assert result.content == "Notification n1 dismissed"
    (answer,) = env.step(AgentTurn("Hello?"))
    assert answer.error and "no customer" in answer.content
    assert env.step(AgentTurn(actions=(Action("get_users"), Action("done")))) == ()
    assert env.stop_reason is StopReason.AGENT_STOP and env.transcript.messages[-1] == Message("assistant", STOP_TOKEN)


def test_a_solo_agent_may_say_the_stop_token(mock):
    env = Env(mock, make_task(), None)
    env.reset()
    assert env.step(AgentTurn(f"All done. {STOP_TOKEN}")) == () and env.stop_reason is StopReason.AGENT_STOP


def test_solo_mode_needs_a_ticket_and_a_domain_that_has_it(mock, retail):
    with pytest.raises(TaudojoError, match="has no ticket"):
        Env(mock, make_task(ticket=None), None).reset()
    with pytest.raises(TaudojoError, match="retail has no solo mode"):
        Env(retail, retail.tasks("base")[0], None)


def test_the_packaged_inbox_begins_empty(packaged):
    toolkit = load_domain("mock", packaged).new_toolkit()
    assert toolkit.use(Action("check_notifications", {}, "user")).content == "[]"


def test_the_official_tasks_have_states_that_fit(packaged):
    domain = load_domain("mock", packaged)
    tasks = domain.tasks("base")
    assert len(tasks) == 9 and sum(bool(task.initial_state) for task in tasks) == 4
    for task in tasks:
        assert domain.new_toolkit(task).db_hash()
