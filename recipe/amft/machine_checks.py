"""Checks of the machine and of what lies on it: GPUs, packages, the model folder. A dry run lists them as findings."""

import importlib.util
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from recipe.amft.config_checks import MODEL, ROLLOUT, Run
from recipe.amft.hardware import GPU, GPUS, recognise

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_device(run: Run) -> None:
    import torch

    device, num_visible = run.config.trainer.device, torch.cuda.device_count()
    if device == "cuda" and num_visible == 0:
        raise ValueError(
            "trainer.device='cuda' (hardware=gpu), but this machine shows no GPU; start the run on a node with GPUs, "
            "or choose hardware=cpu with a tiny model."
        )
    if device == "cpu" and num_visible > 0:
        raise ValueError(
            f"trainer.device='cpu' (hardware=cpu), but this machine shows {num_visible} GPUs, which verl would take; "
            "choose hardware=gpu, or hide them: CUDA_VISIBLE_DEVICES='' in the environment."
        )
    if device == "cuda" and run.shape.gpus_per_node > num_visible:
        raise ValueError(
            f"trainer.n_gpus_per_node={run.shape.gpus_per_node}, but this machine shows {num_visible}; give at most "
            f"trainer.n_gpus_per_node={num_visible}."
        )


def check_cluster(run: Run) -> None:
    address = OmegaConf.select(run.config, "ray_kwargs.ray_init.address")
    if run.shape.num_nodes > 1 and address in (None, "local"):
        raise ValueError(
            f"trainer.nnodes={run.shape.num_nodes}, but ray_kwargs.ray_init.address={address!r} starts Ray on this "
            "machine alone; start Ray on all nodes and name the head in RAY_ADDRESS, or let launch/ do so "
            "(docs/launch.md)."
        )


def check_attention(run: Run) -> None:
    attention = OmegaConf.select(run.config, f"{MODEL}.override_config.attn_implementation") or "flash_attention_2"
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            f"{MODEL}.override_config.attn_implementation='flash_attention_2' needs the package flash-attn, which is "
            "not installed; install it (pip install 'amft[flash]'), or choose hardware=gpu_sdpa."
        )


def check_model(run: Run) -> None:
    """The model folder: there, with a configuration that can be trained and a context that is long enough."""
    path = run.config.actor_rollout_ref.model.path
    if path is None:
        return  # preflight said so
    if re.search(r"llama-?3\.2.*vision|mllama", str(path), re.IGNORECASE):
        raise _no_mllama(path)
    file = Path(path) / "config.json"
    if not file.is_file():
        _check_hub_id(path)
        return
    try:
        values = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); copy the model folder again.") from None
    if values.get("model_type") == "mllama":
        raise _no_mllama(path)
    if "vision_config" in values and run.needs.collected:
        raise ValueError(
            f"method={run.settings.method.name} learns from collected rollouts, which are kept as text without their "
            f"images; {MODEL}.path={path} is a vision-language model: choose a method that learns from fresh rollouts."
        )
    if "vision_config" in values and run.uses_critic:
        raise ValueError(
            f"algorithm.adv_estimator={run.value('algorithm.adv_estimator')} needs a critic, and {MODEL}.path={path} "
            "is a vision-language model: transformers has no such model with a value head, and verl 0.9.1 makes one of "
            "the package trl, which this project does not install; choose an estimator without a critic "
            "(algorithm.adv_estimator=grpo)."
        )
    values = values.get("text_config") or values
    context = values.get("max_position_embeddings")
    asked = run.value(f"{ROLLOUT}.max_model_len") or run.shape.sequence_length
    if context is not None and max(asked, run.shape.sequence_length) > context:
        raise ValueError(
            f"the model's context is max_position_embeddings={context} ({file}), but {ROLLOUT}.max_model_len={asked} "
            f"and data.max_prompt_length + data.max_response_length={run.shape.sequence_length}; shorten them, or "
            "prepare a copy of the model with a longer context."
        )
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    head_dim = values.get("head_dim") or (width // heads if heads and width else None)
    if run.config.trainer.device == "cpu" and head_dim is not None and head_dim % 32:
        raise ValueError(
            f"the model's attention heads have head_dim={head_dim} ({file}); vLLM's CPU attention takes multiples of "
            "32: change hidden_size or num_attention_heads, or use a GPU."
        )


def _check_hub_id(path: str) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{MODEL}.path={path} has no config.json; give a model folder in Hugging Face format.")
    if not HUB_ID.fullmatch(path):
        raise ValueError(f"{MODEL}.path={path} does not exist; give a model folder, or the hub's id of one (org/name).")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(path, "config.json"), str):
            raise ValueError(
                f"{MODEL}.path={path} is not in the local Hugging Face cache and HF_HUB_OFFLINE is set; download it "
                "where there is a network, or give a folder."
            )


def _no_mllama(path: str) -> ValueError:
    return ValueError(
        f"{MODEL}.path={path} is a Llama-3.2-Vision model (mllama), which vLLM dropped after 0.10.2 and verl 0.9.1 "
        "does not train; use Qwen2.5-VL or Qwen3-VL for images, or a text model."
    )


def gpu_memory_gib(run: Run) -> float | None:
    """`amft.gpu_memory_gib`, else that of `amft.plan.gpu` or this machine's GPU; None on CPU, or when unknown."""
    if run.config.trainer.device == "cpu":
        return None
    if run.settings.gpu_memory_gib is not None:
        return run.settings.gpu_memory_gib
    if run.settings.plan.gpu is not None:
        return GPUS[run.settings.plan.gpu].memory_gib
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None


def hardware_of(run: Run) -> tuple[str, GPU] | None:
    """What to call the GPU that the plan is for, and its numbers: the table's, with those of `amft.plan` on top.

    None where neither says: an unknown machine, and any CPU without all of the numbers.
    """
    plan, name = run.settings.plan, run.settings.plan.gpu
    if name is None and run.config.trainer.device != "cpu":
        import torch

        name = recognise(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    given = {key: getattr(plan, key) for key in ("peak_tflops", "memory_gbytes", "link_gbytes")}
    given = {key: value for key, value in given.items() if value is not None}
    if name is not None:
        gpu = replace(GPUS[name], **given)
    elif len(given) == 3:
        gpu = GPU(memory_gib=math.nan, **given)
    else:
        return None
    nodes = f"{run.shape.num_nodes} x {run.shape.gpus_per_node}"
    return f"{nodes} {name or 'GPUs as given'} ({gpu.peak_tflops:g} TFLOP/s, {gpu.memory_gbytes:g} GB/s)", gpu
