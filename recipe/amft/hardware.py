"""The hardware as its makers describe it, for the plan of a run on a machine that is not here: `amft.plan:`.

Sources: NVIDIA's data sheets of the A100, H100, H200, B200, L40S and the Ada architecture paper (RTX 4090). Peak is
dense bf16 with fp32 accumulation (half of the figure "with sparsity"); memory is what CUDA reports, rounded down, a
little less than the name says; the link is one direction of NVLink, or of PCIe 4.0 x16 where there is none.
"""

from dataclasses import dataclass

from recipe.amft.algorithm.checks import require_choice


@dataclass(frozen=True)
class GPU:
    """One GPU.

    Attributes:
        memory_gib: what CUDA reports.
        peak_tflops: dense bf16, 10^12 operations a second.
        memory_gbytes: bandwidth of its memory, 10^9 bytes a second.
        link_gbytes: bandwidth to the other GPUs of its node, one direction, 10^9 bytes a second.
    """

    memory_gib: float
    peak_tflops: float
    memory_gbytes: float
    link_gbytes: float


GPUS = {
    "a100-40gb": GPU(39, 312, 1555, 300),
    "a100-80gb": GPU(79, 312, 2039, 300),
    "h100": GPU(79, 989, 3350, 450),
    "h200": GPU(139, 989, 4800, 450),
    "b200": GPU(178, 2250, 8000, 900),
    "l40s": GPU(44, 362, 864, 32),
    "rtx-4090": GPU(23.5, 165, 1008, 32),
}
# How CUDA's device names begin, the longer first.
DEVICE_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
}


def recognise(device_name: str) -> str | None:
    """The key of GPUS for the name that CUDA reports; None for a GPU that is not in the table."""
    return next((key for prefix, key in DEVICE_NAMES.items() if device_name.startswith(prefix)), None)


@dataclass(frozen=True)
class PlanConfig:
    """Numbers of the hardware, and how much of them a run gets out; None: that of GPUS for `gpu`."""

    gpu: str | None = None  # a key of GPUS; None: this machine's
    peak_tflops: float | None = None  # dense bf16, 10^12 operations a second
    memory_gbytes: float | None = None  # bandwidth of the GPU's memory, 10^9 bytes a second
    link_gbytes: float | None = None  # between the GPUs of a node, one direction, 10^9 bytes a second
    network_gbytes: float = 25.0  # between nodes, per GPU, one direction: a 200 Gbit/s card each, as in a DGX A100
    training_mfu: float = 0.35  # share of the peak in training; 0.3 to 0.5 is common for FSDP
    decode_efficiency: float = 0.6  # share of the memory's bandwidth that decoding gets
    response_share: float = 1.0  # mean length of a response, as a share of the longest

    def __post_init__(self) -> None:
        if self.gpu is not None:
            require_choice("plan.gpu", self.gpu, GPUS)
        for name in ("peak_tflops", "memory_gbytes", "link_gbytes", "network_gbytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"plan.{name}={value!r} must be positive, or null for the table's number.")
        for name in ("training_mfu", "decode_efficiency", "response_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"plan.{name}={getattr(self, name)!r} is a share; choose a number in (0, 1].")
