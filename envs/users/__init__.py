"""Simulated customers."""

from envs.users.base import User, UserReply
from envs.users.scripted import ScriptedUser

__all__ = ["ScriptedUser", "User", "UserReply"]
