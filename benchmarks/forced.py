"""A vLLM logits processor that makes a request write given tokens: `SamplingParams(extra_args={"forced": [token, …]})`.

Only an engine's own process imports this module. Setting one logit a row costs nothing beside a decoding step.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

#: Above any logit, and finite at any temperature.
CERTAIN = 1e9


class Forced(LogitsProcessor):
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}  # row → what it shall write, what it has written

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _forced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        rows = [row for row, (tokens, written) in self._rows.items() if len(written) < len(tokens)]
        if rows:
            columns = [self._rows[row][0][len(self._rows[row][1])] for row in rows]
            logits[rows, columns] = CERTAIN
        return logits


def _forced(params: SamplingParams, prompt: list[int] | None, written: list[int]) -> tuple[list[int], list[int]] | None:
    tokens = (params.extra_args or {}).get("forced")
    return None if tokens is None else (tokens, written)
