"""A customer played by a language model, against a server on loopback that speaks the chat-completions protocol."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.errors import TaudojoError, UserError
from envs.types import Action, AgentTurn, StopReason, Task
from envs.users.endpoint import ChatEndpoint, EndpointSettings
from envs.users.llm import AsyncLLMUser, LLMUser, scenario
from envs.users.registry import usage_of, user_factory

UPSTREAM = Path(__file__).parents[3] / "shared" / "tau2"
KEY = "sk-very-secret-0123456789"


def said(text: str | None, *calls: tuple[str, dict[str, Any]], **usage: int) -> dict[str, Any]:
    """A well-formed answer of the endpoint."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"id_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, (name, arguments) in enumerate(calls)
        ]
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, **usage},
    }


@dataclass
class Reply:
    """One answer: its status, its body (JSON, or bytes as they are), and how long it takes."""

    body: Any
    status: int = 200
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """Answers in turn; the last answer stays.

    `asked` are the bodies that came, `keys` their Authorization headers, `most_waiting` how many waited for an answer at once.
    """

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    waiting: int = 0
    most_waiting: int = 0

    def will_say(self, *replies: Any) -> None:
        self.replies = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]

    def endpoint(self, **settings: Any) -> ChatEndpoint:
        return ChatEndpoint(EndpointSettings(**{"model": "m", "base_url": self.url, "backoff_s": 0.0, **settings}))


class ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.asked.append(body)
                state.keys.append(self.headers.get("Authorization"))
                reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
                state.waiting += 1
                state.most_waiting = max(state.most_waiting, state.waiting)
            threading.Event().wait(reply.delay_s)  # not `time.sleep`, which a test replaces
            with lock:
                state.waiting -= 1
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                pass  # the client's time limit was shorter

        def log_message(self, *args: object) -> None:
            pass

    http = ManyAtOnce(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="session")
def mock() -> Domain:
    return load_domain("mock", open_source("path", UPSTREAM) if UPSTREAM.is_dir() else open_source("packaged"))


@pytest.fixture
def task(retail: Domain) -> Task:
    return retail.tasks("base")[0]


# -- what is said


def test_the_model_plays_the_customer_of_the_scenario(server, retail, task):
    server.will_say(said("Hi, I want to exchange a keyboard."), said("I am Yusuf Rossi."), said("Thanks. ###STOP###"))
    env = Env(retail, task, LLMUser.of(retail, server.endpoint()))
    env.reset(seed=7)
    env.step(AgentTurn("Who are you?"))
    env.step(AgentTurn("Done. Anything else?"))
    assert env.stop_reason is StopReason.USER_STOP
    assert [m.content for m in env.transcript.messages if m.role == "user"][:2] == [
        "Hi, I want to exchange a keyboard.",
        "I am Yusuf Rossi.",
    ]
    last = server.asked[-1]
    guidelines = retail.source.file("user_simulator", "simulation_guidelines.md").read_text(encoding="utf-8")
    system = last["messages"][0]["content"]
    assert system.startswith(guidelines) and system.endswith(f"<scenario>\n{scenario(task)}\n</scenario>")
    assert [(m["role"], m["content"]) for m in last["messages"][1:]] == [
        ("user", "Hi! How can I help you today?"),
        ("assistant", "Hi, I want to exchange a keyboard."),
        ("user", "Who are you?"),
        ("assistant", "I am Yusuf Rossi."),
        ("user", "Done. Anything else?"),
    ]
    assert last["model"] == "m" and last["seed"] == 7 and "tools" not in last
    assert server.keys == [f"Bearer {KEY}"] * 3


def test_the_scenario_is_written_as_the_benchmark_writes_it():
    instructions = {
        "domain": "retail",
        "reason_for_call": "You want\nout.",
        "known_info": "You are Yusuf.",
        "unknown_info": None,
        "task_instructions": "Be brief.",
    }
    structured = Task("retail", {"id": "1", "user_scenario": {"persona": "Terse.", "instructions": instructions}})
    assert scenario(structured) == (
        "Persona:\n\tTerse.\nInstructions:\n\tDomain: retail\n\tReason for call:\n\t\tYou want\n\t\tout.\n"
        "\tKnown info:\n\t\tYou are Yusuf.\n\tTask instructions:\n\t\tBe brief."
    )
    assert scenario(Task("mock", {"id": "1", "user_scenario": {"instructions": "Say hi."}})) == "Instructions:\n\tSay hi."


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("###STOP###", StopReason.USER_STOP),
        ("OK. ###TRANSFER###", StopReason.TRANSFER),
        ("###OUT-OF-SCOPE###", StopReason.OUT_OF_SCOPE),
        ("###TRANSFER### ###STOP###", StopReason.TRANSFER),
        ("Please stop.", None),
    ],
)
def test_the_three_stop_tokens_end_the_conversation(server, retail, task, text, stop):
    server.will_say(said("Hello"), said(text))
    env = Env(retail, task, LLMUser.of(retail, server.endpoint()))
    env.reset()
    env.step(AgentTurn("Anything else?"))
    assert env.stop_reason is stop and env.transcript.messages[-1].content == text


def test_the_customer_uses_its_own_tools_unseen_by_the_agent(server, mock):
    task = next(t for t in mock.tasks("base") if t.id == "update_task_with_user_tools")
    server.will_say(said(None, ("check_notifications", {}), ("no_such_tool", {"x": 1})), said("Please complete task_1."))
    env = Env(mock, task, LLMUser.of(mock, server.endpoint()))
    read = env.reset()
    assert [m.content for m in read] == ["Hi! How can I help you today?", "Please complete task_1."]
    calls = [(m.action, m.error) for m in env.transcript.messages if m.role == "tool"]
    assert calls == [
        (Action("check_notifications", {}, "user"), False),
        (Action("no_such_tool", {"x": 1}, "user"), True),
    ]
    first, second = server.asked
    assert {tool["function"]["name"] for tool in first["tools"]} >= {"check_notifications", "dismiss_notification"}
    assert "You have some tools" in first["messages"][0]["content"]
    assistant, seen, refused = second["messages"][-3:]
    assert [call["id"] for call in assistant["tool_calls"]] == ["id_0", "id_1"]
    assert (seen["role"], seen["tool_call_id"], refused["tool_call_id"]) == ("tool", "id_0", "id_1")
    assert "notif_1" in seen["content"] and refused["content"] == "Error: Tool 'no_such_tool' not found."


def test_a_conversation_with_a_history_goes_on_from_there(server, mock):
    task = next(t for t in mock.tasks("base") if t.id == "update_task_with_message_history")
    server.will_say(said("Mark it as completed."))
    env = Env(mock, task, LLMUser.of(mock, server.endpoint()))
    env.reset()
    asked = server.asked[0]["messages"][1:]
    assert [m["role"] for m in asked] == ["assistant", "user"]  # the agent's call and its result were not heard
    assert asked[1]["content"].startswith("I've created a task")
    assert env.transcript.messages[-1].content == "Mark it as completed."


def test_forks_of_a_conversation_go_their_own_ways_over_one_endpoint(server, retail, task):
    server.will_say(said("Hello"), said("One"), said("Two"))
    endpoint = server.endpoint()
    env = Env(retail, task, LLMUser.of(retail, endpoint))
    env.reset()
    other = env.fork()
    env.step(AgentTurn("A?"))
    other.step(AgentTurn("B?"))
    assert [m["content"] for m in server.asked[-1]["messages"][1:]] == ["Hi! How can I help you today?", "Hello", "B?"]
    assert endpoint.usage.answers == 3


def test_settings_that_are_null_are_not_sent(server, retail, task):
    server.will_say(said("Hello"))
    quiet = server.endpoint(temperature=None, max_tokens=None, seeded=False, extra_body={"top_k": 5})
    user = LLMUser.of(retail, quiet)
    user.reset(task, 3)
    user.opening()
    assert set(server.asked[0]) == {"model", "messages", "top_k"}


# -- what goes wrong

MALFORMED = [
    b"{not json",
    b"",
    b"[]",
    {"choices": []},
    {"choices": [{"message": None}]},
    {"error": {"message": "overloaded"}},
    said(""),
    said("   "),
    said(None),
    {**said("x"), "choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}}]},
    {**said("x"), "choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}}]},
    {**said("x"), "choices": [{"message": {"content": None, "tool_calls": [{"function": None}]}}]},
    said("Half a character: \ud83d"),
    said(None, ("half", {"key\udc00": ["\ud83d"]})),
    said(None, ("half\ud83d", {})),
    said(None, ("not_a_number", {"price": float("nan")})),
    said(None, ("too_large", {"price": float("inf")})),
    b"[" * 100_000,
    {**said("x"), "choices": [{"message": {"tool_calls": [{"function": {"name": "deep", "arguments": "[" * 100_000}}]}}]},
]


@pytest.mark.parametrize("bad", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_or_empty_answer_is_asked_for_again(server, bad):
    server.will_say(bad, said("Hello"))
    endpoint = server.endpoint()
    assert endpoint.ask([{"role": "user", "content": "Hi"}]).content == "Hello"
    assert endpoint.usage.retries == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_server_is_asked_again(server, status):
    server.will_say(Reply({"error": {"message": "busy"}}, status), Reply({"error": {"message": "busy"}}, status), said("Hello"))
    endpoint = server.endpoint()
    assert endpoint.ask([{"role": "user", "content": "Hi"}]).content == "Hello"
    assert (endpoint.usage.retries, endpoint.usage.answers) == (2, 1)


def test_the_server_s_own_pause_is_kept(server):
    server.will_say(Reply({}, 429, headers={"Retry-After": "0.4"}), said("Hello"))
    begin = time.monotonic()
    server.endpoint().ask([{"role": "user", "content": "Hi"}])
    assert time.monotonic() - begin >= 0.4


def test_pauses_grow_and_stay_under_their_limit(server, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("envs.users.endpoint.time.sleep", pauses.append)
    server.will_say(Reply({}, 500))
    with pytest.raises(UserError):
        server.endpoint(attempts=6, backoff_s=1.0, max_backoff_s=5.0).ask([{"role": "user", "content": "Hi"}])
    assert len(pauses) == 5
    assert all(0.75 * full <= pause <= full for pause, full in zip(pauses, (1, 2, 4, 5, 5), strict=True))


def test_a_slow_server_is_given_up_and_asked_again(server):
    server.will_say(Reply(said("Late"), delay_s=1.5), said("Hello"))
    endpoint = server.endpoint(timeout_s=0.3)
    assert endpoint.ask([{"role": "user", "content": "Hi"}]).content == "Hello"
    assert endpoint.usage.retries == 1


def test_a_server_that_is_not_there_is_an_error_that_names_the_model(server):
    endpoint = server.endpoint(base_url="http://127.0.0.1:9/v1", attempts=2)
    with pytest.raises(UserError, match=r"m gave no usable answer .* in 2 tries"):
        endpoint.ask([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_asked_for_twice(server, status):
    server.will_say(said("Hello"), Reply({"error": {"message": "too rude"}}, status))
    endpoint = server.endpoint()
    endpoint.ask([{"role": "user", "content": "Hi"}])
    with pytest.raises(UserError, match=rf"status {status}: .*too rude"):
        endpoint.ask([{"role": "user", "content": "Hi"}])
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_address_or_model_stops_the_run_at_its_first_question(server, retail, task, status):
    server.will_say(Reply({"error": {"message": "no such model"}}, status))
    env = Env(retail, task, LLMUser.of(retail, server.endpoint()))
    with pytest.raises(TaudojoError, match=rf"status {status}: .*no such model.*check user\.settings"):
        env.reset()


def test_an_empty_purse_is_a_refusal(server):
    server.will_say(Reply({"error": {"message": "pay first", "code": "insufficient_quota"}}, 429))
    with pytest.raises(UserError, match="pay first"):
        server.endpoint().ask([{"role": "user", "content": "Hi"}])
    assert len(server.asked) == 1


def test_the_key_is_in_no_message_and_in_no_log(server, caplog):
    caplog.set_level(logging.DEBUG)
    for status in (401, 500):
        server.will_say(Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status))
        endpoint = server.endpoint(attempts=1)
        with pytest.raises((UserError, TaudojoError)) as caught:
            endpoint.ask([{"role": "user", "content": "Hi"}])
        assert KEY not in str(caught.value) and "***" in str(caught.value)
        assert KEY not in repr(endpoint.settings) + repr(endpoint)
    ours = [r.getMessage() for r in caplog.records if r.name.split(".")[0] in ("envs", "rollouts", "rewards")]
    assert KEY not in "\n".join(ours)


def test_an_episode_ends_without_blame_when_the_customer_fails(server, retail, task):
    server.will_say(said("Hello"), Reply({}, 500))
    env = Env(retail, task, LLMUser.of(retail, server.endpoint(attempts=2)))
    env.reset()
    assert env.step(AgentTurn("Who are you?")) == ()
    assert env.stop_reason is StopReason.USER_ERROR and not env.stop_reason.agent_at_fault
    server.will_say(Reply({}, 500))
    env.reset()
    assert env.stop_reason is StopReason.USER_ERROR


# -- many at once, and what it costs


def test_many_conversations_wait_side_by_side(server, retail, task):
    server.will_say(Reply(said("Hello"), delay_s=0.2))
    endpoint = server.endpoint()

    async def one(seed: int) -> StopReason | None:
        env = Env(retail, task, AsyncLLMUser.of(retail, endpoint))
        env.open(seed)
        while env.awaiting_user:
            env.finish(await env.ask())
        env.begin(AgentTurn("Who are you?"))
        while env.awaiting_user:
            env.finish(await env.ask())
        return env.stop_reason

    async def all_of_them() -> list[StopReason | None]:
        return list(await asyncio.gather(*(one(seed) for seed in range(20))))

    assert asyncio.run(all_of_them()) == [None] * 20
    assert server.most_waiting > 1
    assert endpoint.usage.answers == 40
    assert asyncio.run(one(1)) is None  # another event loop


def test_an_awaited_customer_is_asked_again_too(server):
    server.will_say(Reply({}, 503), b"?", said("Hello"))
    endpoint = server.endpoint()
    assert asyncio.run(endpoint.aask([{"role": "user", "content": "Hi"}])).content == "Hello"
    server.will_say(Reply({}, 400))
    with pytest.raises(UserError):
        asyncio.run(endpoint.aask([{"role": "user", "content": "Hi"}]))


def test_tokens_and_money_are_counted_for_the_conversation_and_for_the_run(server, retail, task):
    server.will_say(said("Hello", prompt_tokens=1000, completion_tokens=100))
    endpoint = server.endpoint(usd_per_million_prompt_tokens=2.0, usd_per_million_completion_tokens=8.0)
    users = [LLMUser.of(retail, endpoint) for _ in range(2)]
    for user in users:
        user.reset(task, None)
        user.opening()
    users[0].reply("Go on")
    used = usage_of(users[0])
    assert used is not None and (used.answers, used.prompt_tokens, used.completion_tokens) == (2, 2000, 200)
    assert used.cost_usd == pytest.approx(2 * (0.002 + 0.0008))
    assert (endpoint.usage.answers, endpoint.usage.cost_usd) == (3, pytest.approx(3 * 0.0028))
    assert "cost_usd" not in server.endpoint().usage.to_json()


# -- settings


def test_the_registry_builds_it_from_plain_settings(server, retail, task):
    server.will_say(said("Hello"))
    users = user_factory("llm", {"model": "m", "base_url": server.url}, retail)
    env = Env(retail, task, users())
    env.reset()
    assert users.usage is not None and users.usage.answers == 1
    assert isinstance(user_factory("llm", {"model": "m", "base_url": server.url}, retail, asynchronous=True)(), AsyncLLMUser)


def test_without_a_key_the_variable_is_named(server, retail, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TaudojoError, match="set the environment variable OPENAI_API_KEY"):
        user_factory("llm", {"model": "m"}, retail)
    with pytest.raises(TaudojoError, match="set the environment variable MY_KEY"):
        user_factory("llm", {"model": "m", "api_key_env": "MY_KEY"}, retail)
    server.will_say(said("Hello"))
    assert server.endpoint().ask([{"role": "user", "content": "Hi"}]).content == "Hello"  # a server of one's own asks for none


def test_a_key_among_the_settings_is_refused_without_repeating_it(retail):
    with pytest.raises(TaudojoError, match="environment variable") as caught:
        user_factory("llm", {"model": "m", "api_key": KEY}, retail)
    assert KEY not in str(caught.value)


def test_openai_is_imported_by_nobody_before_it_is_asked():
    script = "import sys, envs.users.registry, envs.users.llm, rewards.gym; assert 'openai' not in sys.modules"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
