"""The plan's memory against real workers: what training steps of AMFT hold at their peak, on the CPU.

    python -m benchmarks.memory [--cases weights activations ...]

Each case builds the actor worker of a run (verl's engine, FSDP2 on gloo, fp32) with one or two ranks, takes three AMFT
steps, and reads the peak of the resident memory during the third (Linux: VmHWM) above that of the worker as it was
built, without its weights. Exits with status 1 when a prediction is not within 25 % of what was measured.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TOLERANCE = 0.25
ROWS = 8  # of each batch and rank, one micro-batch
# Large blocks come from the system and go back at once, so that resident memory is what tensors hold.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Case:
    """A Qwen2 model and a batch of ROWS sequences of `length` tokens per rank."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    vocab_size: int
    length: int
    num_ranks: int = 1
    checkpointing: bool = False
    inner: str = "adamw"

    @property
    def overrides(self) -> list[str]:
        """Those of a run with this model and batch."""
        tokens = ROWS * self.length
        return [
            f"trainer.n_gpus_per_node={self.num_ranks}",
            f"data.max_prompt_length={self.length // 2}",
            f"data.max_response_length={self.length // 2}",
            f"data.train_batch_size={ROWS * self.num_ranks}",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={str(self.checkpointing).lower()}",
            f"amft.controller.meta.inner={self.inner}",
        ]


CASES = {
    "weights": Case(hidden_size=768, intermediate_size=3072, num_layers=8, vocab_size=8192, length=32),
    "activations": Case(hidden_size=256, intermediate_size=1024, num_layers=8, vocab_size=1024, length=256),
    "logits": Case(hidden_size=256, intermediate_size=512, num_layers=2, vocab_size=32768, length=128),
    "checkpointing": Case(256, 1024, num_layers=12, vocab_size=1024, length=256, checkpointing=True, inner="clipped"),
    "two ranks": Case(768, 3072, num_layers=8, vocab_size=8192, length=32, num_ranks=2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rank", nargs=3, metavar=("CASE", "RANK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank:
        name, rank, folder = options.rank
        print(json.dumps(measure(CASES[name], int(rank), Path(folder))))
        return
    print(f"{'case':<15}{'ranks':>6}{'predicted MiB':>15}{'measured MiB':>14}{'ratio':>8}", flush=True)
    ratios = [compare(name) for name in options.cases]
    sys.exit(any(abs(ratio - 1) > TOLERANCE for ratio in ratios))


def compare(name: str) -> float:
    """Run the ranks of a case in processes of their own; print a row; predicted / measured."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, Path(folder))
        command = [sys.executable, "-m", "benchmarks.memory", "--rank", name]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks = [
            subprocess.Popen([*command, str(rank), folder], env=os.environ | MALLOC, **pipes)
            for rank in range(case.num_ranks)
        ]
        outputs = [rank.communicate() for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"a worker of case {name!r} failed:\n{errors}")
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    measured, predicted = max(item["measured"] for item in found), found[0]["predicted"]
    row = f"{name:<15}{case.num_ranks:>6}{predicted / 2**20:>15.0f}{measured / 2**20:>14.0f}"
    print(f"{row}{predicted / measured:>8.2f}", flush=True)
    return predicted / measured


def save_model(case: Case, folder: Path) -> None:
    """A model folder with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = asdict(case)
    config = Qwen2Config(
        **{name: sizes[name] for name in ("hidden_size", "intermediate_size", "vocab_size")},
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.hidden_size // 64,
        num_key_value_heads=case.hidden_size // 64,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")


# ---- in a rank -------------------------------------------------------------------------------------------------------


def measure(case: Case, rank: int, folder: Path) -> dict[str, float]:
    """Bytes: the plan's for the training phase, and the peak of this rank."""
    import torch

    from recipe.amft.main import compose
    from recipe.amft.memory import read_architecture, total, training_items
    from recipe.amft.methods import make_method
    from recipe.amft.preflight import Run, everything_asked, read_settings
    from recipe.amft.shape import Shape

    model = f"actor_rollout_ref.model.path={folder / 'model'}"
    config = compose(["hardware=cpu", *case.overrides, model])
    settings = read_settings(config)
    run = Run(config, settings, Shape.from_config(config), everything_asked(make_method(settings), settings))
    architecture = read_architecture(settings, str(folder / "model"))
    join(rank, case.num_ranks, folder)
    from verl_ext.gradient_worker import local_shard  # imports verl, which `compose` has prepared for

    worker = make_worker(config)
    gc.collect()
    weights = sum(shard.nbytes for shard in map(local_shard, worker.parameters()))
    baseline = memory("VmRSS") - weights  # the process with all that it has imported
    worker.configure(*losses(), settings.controller.meta)
    for step in range(3):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        take_step(worker, case, step, architecture.vocab_size)
    torch.distributed.destroy_process_group()
    return {"measured": memory("VmHWM") - baseline, "predicted": total(training_items(run, architecture))}


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def join(rank: int, world_size: int, folder: Path) -> None:
    """The process group on gloo; verl's workers read their place from the environment."""
    import torch

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world_size
    )


def make_worker(config):
    """The actor worker as verl makes it from the configuration."""
    from functools import partial

    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.utils.losses import ppo_loss

    from recipe.amft.worker import AMFTTrainingWorker

    OmegaConf.set_struct(config, False)
    config.actor_rollout_ref.actor.optim.total_training_steps = 10
    config.actor_rollout_ref.actor.rollout_n = config.actor_rollout_ref.rollout.n
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    engine = actor.engine
    engine.use_dynamic_bsz = actor.use_dynamic_bsz
    engine.max_token_len_per_gpu = actor.ppo_max_token_len_per_gpu
    config.actor_rollout_ref.model.load_tokenizer = False
    worker = AMFTTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
            engine_config=engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    return worker


def losses() -> tuple:
    from recipe.amft.algorithm.token_losses import LossSpec

    return LossSpec(), None


def take_step(worker, case: Case, step: int, vocabulary: int) -> None:
    """Both gradients, the mixed step with a tangent, and from the second step on a meta-update."""
    from recipe.amft.worker import MixturePlan

    demonstrations, rollouts = make_batches(case, step, vocabulary)
    if step:
        worker.validation_gradient(make_batches(case, 10 + step, vocabulary)[1])
    worker.backward_demonstrations(demonstrations)
    worker.backward_rollouts(rollouts)
    worker.apply_mixture(MixturePlan(weight=0.5, track_tangent=True))


def make_batches(case: Case, seed: int, vocabulary: int) -> tuple:
    """ROWS demonstrations, and as many rollouts with advantages, of full length."""
    import torch
    from verl.utils import tensordict_utils as tu

    from recipe.amft.data.demonstrations import Demonstration, collate

    generator = torch.Generator().manual_seed(seed)
    half = case.length // 2
    tokens = torch.randint(3, vocabulary, (2, ROWS, 2, half), generator=generator).tolist()
    demonstrations, rollouts = (
        collate([Demonstration(str(index), *row) for index, row in enumerate(rows)]) for rows in tokens
    )
    fields = {
        "advantages": torch.randn(ROWS, half, generator=generator),
        "old_log_probs": torch.full((ROWS, half), -6.0),
    }
    for name, values in fields.items():
        rollouts[name] = torch.nested.as_nested_tensor(list(values), layout=torch.jagged)
    tu.assign_non_tensor(rollouts, calculate_entropy=False, num_sequences=ROWS)
    return demonstrations, rollouts


if __name__ == "__main__":
    main()
