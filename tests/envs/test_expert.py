"""The general expert, by domain; and domains of one's own."""

import sys
from pathlib import Path

import pytest

from envs import compact as general_form
from envs.data import DataSource, open_source
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.expert import GoldAgent, confirmation
from envs.retail.expert import GoldAgent as RetailAgent
from envs.telecom.expert import GoldAgent as TelecomAgent
from envs.types import Action, AgentTurn, StopReason, Task, Transcript
from envs.users.base import User
from envs.users.scripted import ScriptedUser

GIVE_UP = "transfer_to_human_agents"


def played(domain: Domain, task: Task, user: User | None) -> Env:
    """The task as the domain's expert plays it."""
    env = Env(domain, task, user, max_steps=60)
    env.reset()
    expert = domain.expert(task, solo=env.solo)
    while not env.done:
        env.step(expert.next_turn(env.transcript))
    return env


def after_gold(domain: Domain, task: Task, *, solo: bool = False) -> object:
    toolkit = domain.new_toolkit(task, solo=solo)
    for action in task.gold_actions:
        toolkit.use(action)
    return toolkit


# -- the expert


@pytest.mark.parametrize("name", ["airline", "mock"])
def test_the_general_expert_reaches_the_gold_database_on_every_official_task(name):
    domain = load_domain(name, open_source("packaged"))
    for task in domain.tasks("base"):
        env = played(domain, task, ScriptedUser())
        before = sum(m.role == "tool" for m in task.history)
        gold = tuple(action for action in task.gold_actions if action.requestor == "assistant")
        assert env.transcript.calls[before:] == gold, task.id
        assert env.toolkit.same_state(after_gold(domain, task)), task.id
        transferred = any(action.name == GIVE_UP for action in gold)
        assert env.stop_reason is (StopReason.TRANSFER if transferred else StopReason.USER_STOP), task.id
        said = " ".join(m.content or "" for m in env.transcript.messages if m.role == "assistant").lower().replace(",", "")
        assert all(info.lower() in said for info in task.communicate_info), task.id


@pytest.mark.parametrize("name", ["mock", "telecom"])
def test_an_expert_that_works_alone_does_the_customers_part_and_ends_the_work(name):
    domain = load_domain(name, open_source("packaged"))
    tasks = [task for task in domain.tasks("base") if task.ticket]
    assert len(tasks) > 5
    for task in tasks[:30]:
        env = played(domain, task, None)
        assert env.stop_reason is StopReason.AGENT_STOP, task.id
        assert [(a.name, a.arguments) for a in env.transcript.calls] == [(a.name, a.arguments) for a in task.gold_actions]
        assert all(env.toolkit.check(assertion) for assertion in task.criteria.get("env_assertions") or ()), task.id


def test_a_write_is_asked_for_once_in_words_that_name_it(mock):
    task = next(task for task in mock.tasks("base") if task.id == "create_task_1")
    said = [m.content for m in played(mock, task, ScriptedUser()).transcript.messages if m.content and m.role != "tool"]
    question = "I will create task: user id user_1, title Important Meeting. Do you confirm (yes/no)?"
    assert said.count(question) == 1 and said[said.index(question) + 1].startswith("Yes, please create task")
    nested = Action("book", {"flights": [{"flight_number": "HAT1"}], "total_baggages": 1})
    assert confirmation(nested).startswith('I will book: flights [{"flight_number": "HAT1"}], total baggages 1.')


def test_the_turns_follow_from_the_transcript(mock):
    task = next(task for task in mock.tasks("base") if task.id == "update_task_1")
    env = Env(mock, task, ScriptedUser())
    env.reset()
    while not env.done:
        turn = mock.expert(task).next_turn(env.transcript)
        assert mock.expert(task).next_turn(Transcript.from_json(env.transcript.to_json())) == turn
        env.step(turn)
    assert env.toolkit.same_state(after_gold(mock, task))


def test_a_domain_s_own_expert_comes_first_and_alone_the_general_one_plays(retail, telecom, airline):
    assert isinstance(retail.expert(retail.tasks("base")[0]), RetailAgent)
    assert isinstance(telecom.expert(telecom.tasks("base")[0]), TelecomAgent)
    assert isinstance(airline.expert(airline.tasks("base")[0]), GoldAgent)
    assert isinstance(telecom.expert(telecom.tasks("base")[0], solo=True), GoldAgent)


def test_only_retail_makes_tasks(retail, airline, mock, telecom):
    assert retail.sampler is not None and "cancel" in retail.sampler.KINDS
    assert [domain.sampler for domain in (airline, mock, telecom)] == [None] * 3


# -- domains of one's own


def test_a_domain_of_ones_own_is_loaded_by_its_dotted_name(tmp_path: Path, monkeypatch):
    folder = tmp_path / "shop_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "echo.py").write_text(
        "from envs.domain import DomainParts, load_domain\n"
        "def load(source):\n"
        "    mock = load_domain('mock', source)\n"
        "    return DomainParts(mock.database, type(mock.new_toolkit()), policy='Echo.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = open_source("packaged")
    echo = load_domain("shop_of_a_test.echo", source)
    assert (echo.name, echo.policy) == ("echo", "Echo.") and echo is load_domain("shop_of_a_test.echo", source)
    assert echo.sampler is None and echo.compact is general_form
    task = Task("echo", {"id": "t", "evaluation_criteria": {"actions": [{"name": "get_users", "arguments": {}}]}})
    assert echo.expert(task).next_turn(Transcript("t", "echo", (), None)) == AgentTurn(actions=(Action("get_users"),))
    sys.modules.pop("shop_of_a_test.echo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bakery", r"no domain 'bakery'; choose one of mock, retail, airline, telecom, or the dotted name"),
        ("no_such_shop.bakery", r"no_such_shop\.bakery cannot be imported .*PYTHONPATH"),
        ("../bakery", r"no domain '\.\./bakery'"),
        (".bakery", r"no domain '\.bakery'"),
    ],
)
def test_a_domain_that_is_not_there_is_named(tmp_path: Path, name, message):
    with pytest.raises(TaudojoError, match=message):
        load_domain(name, DataSource(tmp_path, "test", "1"))
