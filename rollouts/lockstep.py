"""Lock-step generation: runs that repeat to the last bit.

Batch composition changes last bits, and with them sampled tokens. Here all live episodes wait for each other, their
requests enter a paused engine in a fixed order, and the engine runs them as one batch. Slower; for smoke runs and tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rollouts.engines.base import Engine, Generation, SamplingParams


class LockStep:
    """Wraps an engine for `episodes` concurrent episodes, numbered from 0."""

    def __init__(self, engine: Engine, episodes: int) -> None:
        self._engine = engine
        self._live = set(range(episodes))
        self._waiting: dict[int, tuple[Sequence[int], SamplingParams, asyncio.Future[Generation]]] = {}

    async def generate(self, number: int, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (token_ids, params, future)
        self._run_if_complete()
        return await future

    def leave(self, number: int) -> None:
        """The episode is over; the others no longer wait for it."""
        self._live.discard(number)
        self._waiting.pop(number, None)
        self._run_if_complete()

    def _run_if_complete(self) -> None:
        if self._live and self._live <= self._waiting.keys():
            batch, self._waiting = dict(sorted(self._waiting.items())), {}
            self._task = asyncio.get_running_loop().create_task(self._run(batch))

    async def _run(self, batch: dict[int, tuple[Sequence[int], SamplingParams, asyncio.Future[Generation]]]) -> None:
        try:
            await self._engine.pause()
            tasks: list[asyncio.Future[Generation]] = []
            for token_ids, params, _ in batch.values():
                before = self._engine.held()
                tasks.append(asyncio.ensure_future(self._engine.generate(token_ids, params)))
                # It reaches the paused engine before the next sets out, however long vLLM's threads take to prepare it.
                while self._engine.held() == before and not tasks[-1].done():
                    await asyncio.sleep(0.001)
            await self._engine.resume()
            results = await asyncio.gather(*tasks)
        except Exception as error:  # whoever waits must hear of it, whatever it is
            for _, _, future in batch.values():
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), generation in zip(batch.values(), results, strict=True):
            if not future.done():  # its episode's deadline may have passed
                future.set_result(generation)
