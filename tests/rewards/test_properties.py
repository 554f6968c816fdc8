"""Laws that hold for every task of every domain, whatever is done to its gold actions."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.env import Env
from envs.types import Action
from rewards.actions import action_reward
from rewards.playback import play_calls
from rewards.tau2 import official_reward

DOMAINS = ["mock", "retail", "airline", "telecom"]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.lists(st.text(max_size=3), max_size=3)
)


@st.composite
def corrupted(draw, action: Action) -> Action:
    """The action with another tool, another requestor, or an argument more, less or changed."""
    arguments = dict(action.arguments)
    match draw(st.sampled_from(["tool", "requestor", "more", "less", "changed"])):
        case "tool":
            return replace(action, name=draw(st.sampled_from(["transfer_to_human_agents", "no_such_tool", "calculate"])))
        case "requestor":
            return replace(action, requestor="user" if action.requestor == "assistant" else "assistant")
        case "less" if arguments:
            del arguments[draw(st.sampled_from(sorted(arguments)))]
        case "changed" if arguments:
            arguments[draw(st.sampled_from(sorted(arguments)))] = draw(values)
        case _:
            arguments["surplus"] = draw(values)
    return replace(action, arguments=arguments)


@pytest.fixture(scope="session")
def scores(domain_of):
    """The action reward and the official one of an episode in which these calls are made."""

    def scores(domain_name: str, task, calls) -> tuple[float, float]:
        domain = domain_of(domain_name)
        transcript, _ = play_calls(task, domain, calls, " ".join(task.communicate_info) or "Done.")
        env = Env(domain, task, _Nobody())
        return action_reward(task, transcript, env).total, official_reward(task, transcript, env).total

    return scores


class _Nobody:
    """A customer that is never asked."""


def a_task(data, domain):
    return data.draw(st.sampled_from(domain.tasks("base")), label="task")


@pytest.mark.parametrize("name", DOMAINS)
@quick
@given(data=st.data())
def test_gold_actions_score_the_maximum_and_spoiling_one_never_raises_it(domain_of, scores, name, data):
    task = a_task(data, domain_of(name))
    gold = list(task.gold_actions)
    shaped, official = scores(name, task, gold)
    assert shaped == pytest.approx(1.0) and official in (0.0, 1.0)
    if not gold:
        return
    at = data.draw(st.integers(0, len(gold) - 1), label="at")
    spoiled = data.draw(corrupted(gold[at]), label="spoiled")
    for calls in (gold[:at] + gold[at + 1 :], [*gold[:at], spoiled, *gold[at + 1 :]]):
        worse, worse_official = scores(name, task, calls)
        assert -1.0 <= worse <= shaped + 1e-9
        assert worse_official <= official or official == 0.0  # some mock tasks cannot be solved by their gold actions alone


@pytest.mark.parametrize("name", DOMAINS)
@quick
@given(data=st.data())
def test_the_order_of_dictionary_keys_is_irrelevant(domain_of, scores, name, data):
    task = a_task(data, domain_of(name))
    gold = list(task.gold_actions)
    turned = [replace(a, arguments=dict(data.draw(st.permutations(list(a.arguments.items()))))) for a in gold]
    assert scores(name, task, turned) == scores(name, task, gold)


@pytest.mark.parametrize("name", DOMAINS)
@quick
@given(data=st.data())
def test_any_calls_score_within_the_bounds_and_alike_every_time(domain_of, scores, name, data):
    domain = domain_of(name)
    task = a_task(data, domain)
    pool = [a for t in domain.tasks("base")[:20] for a in t.gold_actions] or [Action("get_users")]
    calls = data.draw(st.lists(st.sampled_from(pool).flatmap(lambda a: st.one_of(st.just(a), corrupted(a))), max_size=6))
    shaped, official = scores(name, task, calls)
    assert -1.0 <= shaped <= 1.0 and official in (0.0, 1.0)
    assert scores(name, task, calls) == (shaped, official)
