"""The probabilities that a run's model gives to the tokens of its demonstrations, before and after (DFT Figure 2).

    python -m recipe.amft.evaluation.token_probabilities --run RUN --out DIR [--rows 1000]

One forward pass of the initial and of the final model over the same rows, in the processes' default device; DIR gets
summary.json: counts of learned tokens in NUM_BINS equal bins of [0, 1].
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from recipe.amft.data.demonstrations import Demonstration, DemonstrationTokenizer, load_demonstrations
from recipe.amft.evaluation.records import write_text
from recipe.amft.run_folder import FINISHED

NUM_BINS = 20
SUMMARY = "summary.json"


def histogram(probabilities: Tensor) -> Tensor:
    """(N,) probabilities -> (NUM_BINS,) counts; 1 belongs to the last bin."""
    bins = (probabilities.double() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    return torch.bincount(bins, minlength=NUM_BINS)


@torch.no_grad()
def token_probabilities(model: Any, demonstration: Demonstration) -> Tensor:
    """p(response token | everything before it), in float32, for the tokens that are learned."""
    tokens = torch.tensor([[*demonstration.prompt, *demonstration.response]], device=model.device)
    start = len(demonstration.prompt)
    logits = model(input_ids=tokens).logits[0, start - 1 : -1].float()
    chosen: Tensor = torch.log_softmax(logits, dim=-1).gather(-1, tokens[0, start:, None])[:, 0].exp().cpu()
    return chosen if demonstration.mask is None else chosen[torch.tensor(demonstration.mask).bool()]


def measure(run: Path, num_rows: int) -> dict[str, Any]:
    """Counts of both models of a finished run; ValueError when there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (run / FINISHED).exists():
        raise ValueError(f"{run} is no finished run (it has no {FINISHED}); train it first.")
    config = OmegaConf.load(run / "config.yaml")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model_type = AutoConfig.from_pretrained(run / "model").model_type
    tokenize = DemonstrationTokenizer(
        tokenizer, model_type, config.data.max_prompt_length, config.data.max_response_length,
        config.data.get("apply_chat_template_kwargs"),
    )  # fmt: skip
    files = list(config.amft.demonstrations.files or config.data.train_files)
    demonstrations, _ = load_demonstrations(files, tokenize, config.amft.demonstrations.on_bad_row)
    chosen = np.random.default_rng(0).permutation(len(demonstrations))[:num_rows]
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    counts = {}
    for name, path in (("start", config.actor_rollout_ref.model.path), ("last", run / "model")):
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.to(device).eval()
        total = sum((histogram(token_probabilities(model, demonstrations[index])) for index in chosen), torch.tensor(0))
        counts[name] = total.tolist()
    return {"rows": len(chosen), "counts": counts}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipe.amft.evaluation.token_probabilities",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a finished run folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rows", type=int, default=1000, help="demonstrations, drawn by a fixed seed")
    given = parser.parse_args(arguments)
    try:
        found = measure(given.run, given.rows)
    except ValueError as error:
        sys.exit(f"error: {error}")
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / SUMMARY, json.dumps(found, indent=1) + "\n")
    print(given.out / SUMMARY)


if __name__ == "__main__":
    main()
