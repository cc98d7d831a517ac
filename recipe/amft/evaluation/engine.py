"""vLLM for an evaluation: many requests at a time, each a prompt of token ids with its own seed."""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from recipe.amft.evaluation.episodes import Generation
from recipe.amft.evaluation.settings import Benchmark, EngineSettings, nearest

CPU_KV_CACHE_GIB = 0.25
IMAGES_OF_A_CONVERSATION = 16
# Let vLLM's processes take images without torchvision (verl_ext/cpu/vllm_images.py).
CPU_IMAGES = {
    "scheduler_cls": "verl_ext.cpu.vllm_images.Scheduler",
    "worker_extension_cls": "verl_ext.cpu.vllm_images.WorkerExtension",
}
HEAD_DIM_MULTIPLE = 32  # of vLLM's CPU attention
SHUTDOWN_SECONDS = 20.0  # vLLM's own 5 are less than its worker takes to end


class EngineFailed(Exception):
    """vLLM did not start, or died; its log says why."""


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """What the engine will be started with: `settings` with the machine's and the model's choices filled in."""

    dtype: str
    max_model_len: int
    arguments: Mapping[str, Any]  # of AsyncEngineArgs, without the model


def plan_engine(settings: EngineSettings, model_config: Mapping[str, Any], has_gpu: bool, seeded: bool) -> EnginePlan:
    """Checked arguments for this machine; ValueError where the model does not fit them.

    Args:
        model_config: config.json of the model.
        seeded: whether requests carry seeds. With chunked prefill vLLM rewinds the random generator of a seeded
            request, which generators on a CPU cannot do: the engine dies.
    """
    text = model_config.get("text_config") or model_config
    context = text.get("max_position_embeddings")
    length = settings.max_model_len or context
    if length is None:
        raise ValueError("the model's config.json has no max_position_embeddings; give engine.max_model_len=N.")
    if context is not None and length > context:
        raise ValueError(
            f"engine.max_model_len={length} is longer than the model's context (max_position_embeddings={context}); "
            "give a shorter one, or prepare a copy of the model with a longer context (docs/data.md)."
        )
    dtype = settings.dtype or ("bfloat16" if has_gpu else "float32")
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": length,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": max(settings.max_num_batched_tokens, length),
        "enforce_eager": settings.enforce_eager if settings.enforce_eager is not None else not has_gpu,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,
    }
    shows_images = "vision_config" in model_config
    if shows_images:
        arguments["limit_mm_per_prompt"] = {"image": IMAGES_OF_A_CONVERSATION, "video": 0}
    gib = settings.kv_cache_gib
    if has_gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    else:
        _check_head_dim(text)
        gib = gib or CPU_KV_CACHE_GIB
        if seeded:
            arguments["enable_chunked_prefill"] = False
        if shows_images:
            arguments |= CPU_IMAGES
    if gib is not None:
        arguments["kv_cache_memory_bytes"] = int(gib * 2**30)
    return EnginePlan(dtype, length, arguments | dict(settings.extra))


def _check_head_dim(text: Mapping[str, Any]) -> None:
    heads, width = text.get("num_attention_heads"), text.get("hidden_size")
    head_dim = text.get("head_dim") or (width // heads if heads and width else None)
    if head_dim is not None and head_dim % HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"the model's attention heads have head_dim={head_dim}; vLLM's CPU attention takes multiples of "
            f"{HEAD_DIM_MULTIPLE}: evaluate it on a GPU."
        )


def check_extra(extra: Mapping[str, Any]) -> None:
    """ValueError for a field that vLLM's AsyncEngineArgs do not have."""
    if not extra:
        return
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [item.name for item in dataclasses.fields(AsyncEngineArgs)]
    for name in extra:
        if name not in known:
            first = ", ".join(nearest(name, known).split(", ")[:5])
            raise ValueError(f"engine.extra.{name} is no argument of vLLM's engine; nearest: {first}.")


class Engine:
    """A running vLLM engine, as a context that ends its processes. EngineFailed when it does not start, or dies.

    Args:
        log: a file that gets what vLLM and its processes print.
    """

    def __init__(self, model: Path, plan: EnginePlan, log: Path):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.log = log
        if CPU_IMAGES.items() <= plan.arguments.items():
            from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models

            allow_images_without_torchvision()
            register_vllm_models()
        try:
            with printing_to(log):
                self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **plan.arguments))
        except Exception as error:
            raise EngineFailed(f"vLLM did not start ({type(error).__name__}: {error}); its log is {log}") from error
        logging.getLogger("vllm").setLevel(logging.ERROR)  # in this process: its own are in the log

    async def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        benchmark: Benchmark,
        seed: int | None,
        images: Sequence[Any] = (),
    ) -> Generation:
        """One answer to `prompt`, where an image is one token; the end-of-turn token that stops it is part of it."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params = SamplingParams(
            temperature=benchmark.temperature,
            top_p=benchmark.top_p,
            max_tokens=max_tokens,
            seed=seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request = TokensPrompt(prompt_token_ids=list(prompt))
        if images:
            request["multi_modal_data"] = {"image": list(images)}
        final = None
        try:
            async for output in self.engine.generate(request, params, uuid4().hex):
                final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailed(f"vLLM died ({type(error).__name__}: {error}); its log is {self.log}") from error
        if final is None or not final.outputs or final.outputs[0].finish_reason not in ("stop", "length"):
            reason = final.outputs[0].finish_reason if final and final.outputs else None
            raise EngineFailed(f"vLLM ended a request without an answer (finish_reason={reason!r}); log: {self.log}")
        answer = final.outputs[0]
        return Generation(list(answer.token_ids), answer.finish_reason == "length")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine.shutdown(timeout=SHUTDOWN_SECONDS)


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Sends file descriptors 1 and 2 to `path`; processes that are started meanwhile keep them there."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)
