"""Chaos: workers are killed every few seconds and the customers' endpoint fails a fifth of its calls. No episode is lost."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from envs.types import StopReason, Task
from envs.users.llm import scenario
from envs.users.scripted import ScriptedUser
from rewards.metrics import block
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeScript
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory

EPISODES = 200
KILL_EVERY_S = 6.0
FAILING = 0.2


class Simulator:
    """A chat-completions endpoint that plays every task's scripted customer, and fails a fifth of its calls in five ways."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = {scenario(task): task for task in tasks}
        self.calls: Counter[str] = Counter()
        self.random = random.Random(0)
        self.lock = threading.Lock()

    def answer(self, messages: list[dict[str, Any]]) -> str:
        """The conversation so far is told in full, so the customer is made anew each time."""
        system = messages[0]["content"]
        (task,) = (task for text, task in self.tasks.items() if text in system)
        user = ScriptedUser()
        user.reset(task, None)
        heard = [message["content"] for message in messages if message["role"] == "user"]
        reply = user.opening()
        for words in heard[1:]:
            reply = user.reply(words)
        return reply if isinstance(reply, str) else reply.text

    def fault(self) -> str:
        with self.lock:
            kind = self.random.choice(["429", "500", "late", "empty", "malformed"]) if self.random.random() < FAILING else "sound"
            self.calls[kind] += 1
        return kind


@pytest.fixture
def simulator(task_sets: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Simulator, str]]:
    state = Simulator([*task_sets.sft, *task_sets.grpo])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind = state.fault()
            text = "" if kind == "empty" else state.answer(body["messages"])
            if kind == "late":
                time.sleep(2.0)
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            try:
                self.send_response(int(kind) if kind.isdigit() else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"choices": [' if kind == "malformed" else content)
            except OSError:
                pass  # the asker is dead, or has lost patience

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512

        def handle_error(self, *args: object) -> None:
            pass  # askers die here

    http = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield state, f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


@pytest.mark.slow
def test_every_episode_ends_once_with_its_own_world_whatever_dies(
    cluster: None, world_config: Any, task_sets: Any, simulator: tuple[Simulator, str], tmp_path: Path
):
    state, url = simulator
    user = {"model": "customer", "base_url": url, "timeout_s": 1.0, "attempts": 3, "backoff_s": 0.05}
    chaotic = replace(world_config, user="llm", user_settings=user)
    engine = EngineConfig(FakeScript([[5] * 2048], latency_s=0.3, token_s=0.005).model_path, cores=1)
    tasks = task_sets.grpo
    requests = [
        EpisodeRequest(tasks[n // 8 % len(tasks)], seed=n, stage="chaos", group=n // 8, policy="paced") for n in range(EPISODES)
    ]
    pool = RolloutPool.start(chaotic, engine, workers=3, max_concurrent=16)
    pool.store = store = TrajectoryStore(tmp_path)
    kills: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(KILL_EVERY_S):
            if len(pool._workers) > 1:
                victim = pool._workers[len(kills) % len(pool._workers)]
                kills.append(pool._numbers[victim])
                ray.kill(victim)

    killer = threading.Thread(target=kill)
    try:
        pool.load_weights(ray.put(np.zeros(64, np.uint8)), version=7)
        killer.start()
        done: list[Trajectory] = []
        played = pool.play(requests, done.append)
    finally:
        over.set()
        killer.join()
        pool.close()

    assert len(kills) >= 3, "the test should be chaotic"
    assert sum(n for kind, n in state.calls.items() if kind != "sound") > 0.1 * state.calls.total()
    assert [(t.transcript.task_id, t.seed, t.group) for t in played] == [(r.task.id, r.seed, r.group) for r in requests]
    assert Counter(t.seed for t in done) == Counter(range(EPISODES))
    stops = Counter(t.transcript.stop_reason for t in played)
    assert stops.total() == EPISODES
    assert set(stops) <= {StopReason.USER_STOP, StopReason.TRANSFER, StopReason.USER_ERROR, StopReason.ENGINE_ERROR}
    assert stops[StopReason.USER_ERROR] + stops[StopReason.ENGINE_ERROR] < 0.2 * EPISODES
    sound = [t for t in played if t.transcript.stop_reason.official]
    assert {t.metrics.official_reward for t in sound} == {1.0}  # the expert's changes, in a database of the episode's own
    assert all(not t.transcript.stop_reason.agent_at_fault for t in played if t not in sound)
    assert {v for t in played for s in t.segments for _, _, v in s.versions} == {7}
    assert max(t.attempts for t in played) > 1 and max(t.worker for t in played) > 2
    stored = store.read("chaos", 0)
    assert [t.seed for t in stored] == list(range(EPISODES))
    assert sum(t.sampled_tokens for t in stored) == sum(t.sampled_tokens for t in played)
    assert block([t.metrics for t in played])["n"] == EPISODES
