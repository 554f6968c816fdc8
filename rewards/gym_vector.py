"""Many episodes in one process, in Gymnasium's vector form: as many texts in, as many out.

>>> import gymnasium, rewards
>>> envs = gymnasium.make_vec("taudojo/retail-v0", num_envs=64, split="train")
>>> observations, infos = envs.reset(seed=1)
>>> observations, rewards, terminations, truncations, infos = envs.step([agent(text) for text in observations])

Every step is a function call, no threads and no processes. How a finished episode is followed by the next is
`envs.metadata["autoreset_mode"]`, by default Gymnasium's own: the step after the end ignores the action and resets
(`AutoresetMode.NEXT_STEP`). `make_vec(…, autoreset_mode=…)` takes `SAME_STEP` and `DISABLED` too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rewards.gym import Episodes, TextEnv, episodes_of


class TextVectorEnv(SyncVectorEnv):
    """`num_envs` environments that share domain, tasks and data; each has its own seed, user and databases."""

    def __init__(
        self,
        episodes: Episodes,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        super().__init__([partial(TextEnv, episodes, render_mode)] * num_envs, copy=False, autoreset_mode=autoreset_mode)


def make_vec(
    num_envs: int = 1,
    domain: str = "retail",
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    **settings: Any,
) -> TextVectorEnv:
    """Build the environments behind `gymnasium.make_vec("taudojo/<domain>-v0", ...)`; `settings` as in `rewards.gym.episodes_of`.

    Raises:
        TaudojoError: there is no such domain, data, task or user.
    """
    return TextVectorEnv(episodes_of(domain, **settings), num_envs, autoreset_mode, render_mode)
