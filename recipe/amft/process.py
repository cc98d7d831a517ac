"""The environment of the processes of a run: what has to be set before verl, Ray and vLLM are imported."""

import os
import warnings


def prepare_process() -> None:
    """Set what must be set before verl, Ray and vLLM are imported.

    `AMFT_HARDWARE` (cpu or gpu, detected when unset) selects the default of the `hardware` group. On a machine without
    a GPU verl gets the CPU platform of `verl_ext.cpu`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    import torch

    has_gpu = torch.cuda.is_available()
    os.environ.setdefault("AMFT_HARDWARE", "gpu" if has_gpu else "cpu")
    os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_ext.register")
    if not has_gpu:
        os.environ.setdefault("VERL_PLATFORM", "cpu")
    for name, value in process_variables(has_gpu).items():
        os.environ.setdefault(name, value)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def process_variables(has_gpu: bool) -> dict[str, str]:
    """Environment of every process of a run, with the reason for each."""
    variables = {
        "VERL_LOGGING_LEVEL": "ERROR",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # many processes share the cores: waiting threads must not spin
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if not has_gpu:
        variables |= {
            "RAY_AUTH_MODE": "disabled",  # an old token file in the home would switch it on for some processes only
            "TORCHDYNAMO_DISABLE": "1",  # vLLM starts a compiler even with enforce_eager
            "TQ_NUM_THREADS": "2",  # TransferQueue warns in every process otherwise
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks share the cores
            "VLLM_ENGINE_READY_TIMEOUT_S": "300",
        }
    return variables
