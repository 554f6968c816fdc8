"""The test of CONTRIBUTING.md's reward. Run by tests/test_contributing.py, beside the files that the recipe makes."""

from types import SimpleNamespace

from envs.types import GREETING, Message, StopReason, Task, Transcript
from rewards.compose import build_reward


def test_two_of_ten_turns_leave_eight_tenths():
    messages = tuple(Message("assistant", text) for text in (GREETING, "Let me see.", "Done."))
    transcript = Transcript("t", "retail", messages, StopReason.USER_STOP)
    reward = build_reward({"brevity": {"weight": 0.5}})
    assert reward(Task("retail", {"id": "t"}), transcript, SimpleNamespace(max_steps=10)).total == 0.4
