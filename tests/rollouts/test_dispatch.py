"""Who plays what next: longest first, groups together, nobody idle, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.types import Task
from rollouts.dispatch import Dispatch
from rollouts.trajectory import EpisodeRequest


def task(name: str) -> Task:
    return Task("retail", {"id": name, "user_scenario": {"instructions": "x"}})


def requests(*groups: tuple[int, float | None]) -> list[EpisodeRequest]:
    """Groups of (size, expected tokens)."""
    return [
        EpisodeRequest(task(str(group)), seed=n, stage="test", group=group, expected_tokens=expected)
        for group, (size, expected) in enumerate(groups)
        for n in range(size)
    ]


def handouts(dispatch: Dispatch[str]) -> list[tuple[int, str]]:
    found = []
    while (handout := dispatch.next()) is not None:
        found.append(handout)
    return found


def started(asked: list[EpisodeRequest], max_concurrent: int, *workers: str) -> Dispatch[str]:
    dispatch: Dispatch[str] = Dispatch(asked, max_concurrent)
    for worker in workers:
        dispatch.join(worker)
    return dispatch


def test_without_expectations_the_order_is_that_of_the_requests():
    assert [number for number, _ in handouts(started(requests((2, None), (2, None)), 9, "a"))] == [0, 1, 2, 3]


def test_the_longest_group_goes_first():
    dispatch = started(requests((2, 100.0), (2, 400.0), (2, 300.0)), 9, "a")
    assert [number for number, _ in handouts(dispatch)] == [2, 3, 4, 5, 0, 1]


def test_a_group_stays_on_one_worker():
    dispatch = started(requests((4, None), (4, None)), 4, "a", "b")
    where = dict(handouts(dispatch))
    assert {where[n] for n in range(4)} == {"a"} and {where[n] for n in range(4, 8)} == {"b"}


def test_an_idle_worker_takes_from_another_s_group():
    dispatch = started(requests((8, None)), 8, "a", "b")
    assert sorted(worker for _, worker in handouts(dispatch)) == ["a"] * 4 + ["b"] * 4


def test_work_that_is_expected_to_take_long_counts_more():
    where = dict(handouts(started(requests((1, 900.0), (1, 300.0), (1, 300.0), (1, 300.0)), 9, "a", "b")))
    assert where == {0: "a", 1: "b", 2: "b", 3: "b"}


def test_a_worker_gets_no_more_than_its_fill_until_one_comes_back():
    dispatch = started(requests((5, None)), 2, "a")
    assert [number for number, _ in handouts(dispatch)] == [0, 1]
    assert dispatch.waiting == 3
    dispatch.done(1)
    assert handouts(dispatch) == [(2, "a")]


def test_a_slow_worker_delays_nobody():
    dispatch = started(requests(*[(1, None)] * 10), 1, "slow", "fast")
    first = dict((worker, number) for number, worker in handouts(dispatch))
    played = [first["fast"]]
    while dispatch.waiting:
        dispatch.done(played[-1])
        ((number, worker),) = handouts(dispatch)
        assert worker == "fast"
        played.append(number)
    assert len(played) == 9


def test_a_lost_worker_s_episodes_are_next_and_count_another_attempt():
    dispatch = started(requests((2, None), (2, None), (2, None)), 2, "a", "b")
    handouts(dispatch)
    assert dispatch.leave("a") == [0, 1]
    dispatch.done(2)
    assert handouts(dispatch) == [(0, "b")]
    assert dispatch.attempts[0] == 2 and dispatch.attempts[4] == 0
    dispatch.join("c")
    assert [number for number, _ in handouts(dispatch)] == [1, 4]


def test_without_workers_nothing_is_handed_out():
    dispatch: Dispatch[str] = Dispatch(requests((1, None)), 4)
    assert dispatch.next() is None and dispatch.unfinished == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_happens_every_episode_is_played_to_its_end_once(data: Any):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.none() | st.floats(1, 900)), min_size=1, max_size=8))
    asked = [replace(r) for r in requests(*sizes)]
    limit = data.draw(st.integers(1, 4))
    dispatch: Dispatch[int] = Dispatch(asked, limit)
    workers, newest, running, finished = {0}, 0, {}, []
    dispatch.join(0)
    for event in data.draw(st.lists(st.sampled_from(["done", "done", "lose", "join"]), max_size=60)):
        while (handout := dispatch.next()) is not None:
            assert handout[0] not in running
            running[handout[0]] = handout[1]
        assert all(sum(w == worker for w in running.values()) <= limit for worker in workers)
        if event == "join":
            newest += 1
            workers.add(newest)
            dispatch.join(newest)
        elif event == "done" and running:
            number = data.draw(st.sampled_from(sorted(running)))
            assert dispatch.plays(running.pop(number), number)
            dispatch.done(number)
            finished.append(number)
        elif event == "lose" and len(workers) > 1:
            worker = data.draw(st.sampled_from(sorted(workers)))
            workers.remove(worker)
            assert dispatch.leave(worker) == sorted(n for n, w in running.items() if w == worker)
            running = {n: w for n, w in running.items() if w != worker}
    newest += 1
    dispatch.join(newest)
    while dispatch.unfinished:
        while (handout := dispatch.next()) is not None:
            running[handout[0]] = handout[1]
        number = next(iter(running))
        running.pop(number)
        dispatch.done(number)
        finished.append(number)
    assert sorted(finished) == list(range(len(asked)))
    with pytest.raises(KeyError):
        dispatch.done(0)


def test_what_is_added_later_comes_after_what_waits_and_the_longest_of_it_first():
    dispatch = started(requests((2, 100.0)), 9, "a")
    assert dispatch.next() == (0, "a")
    assert dispatch.add(requests((1, 200.0), (2, 400.0))) == range(2, 5)
    assert [number for number, _ in handouts(dispatch)] == [1, 3, 4, 2]
    assert dispatch.unfinished == 5
    for number in range(5):
        dispatch.done(number)
    assert dispatch.unfinished == 0 and dispatch.attempts == {}


def test_the_last_wave_is_when_all_that_wait_will_find_places():
    dispatch = started(requests((7, None)), 2, "a")
    seen = []
    while (handout := dispatch.next()) is not None:
        seen.append(dispatch.last_wave)
        dispatch.done(handout[0])
    assert seen == [False] * 5 + [True] * 2
