"""How much of a rollout step the environments take, on the CPU quickstart or any other task.

    python -m benchmarks.environments [--out runs/environments] [Hydra overrides]

trains a few steps (`task=gsm8k`, `trainer.total_training_steps=8` and the like are Hydra's) and prints, over the steps
that generate, seconds of generation and of environments. Exits with status 1 above 5%. A folder that holds a run is
read, not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ALLOWED_SHARE = 0.05
SHORT = ("amft.warm_up.steps=5", "trainer.total_training_steps=6", "trainer.val_before_train=false")
NO_FILES = ("trainer.test_freq=-1", "trainer.save_freq=-1")


def rollout_steps(folder: Path) -> list[dict[str, float]]:
    """The metrics of the steps that generated."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "time/environment_share" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/environments"))
    arguments, overrides = parser.parse_known_args()
    if not (arguments.out / "metrics.jsonl").exists():
        command = [sys.executable, "-m", "recipe.amft.main", f"amft.run_dir={arguments.out}", *SHORT, *NO_FILES]
        subprocess.run([*command, *overrides], check=True)
    steps = rollout_steps(arguments.out)
    if not steps:
        sys.exit(f"error: {arguments.out} has no step that generates.")
    for step in steps:
        print(
            f"step {step['step']:>4}  generation {step['time/generation']:6.2f} s  environments "
            f"{step['time/environment']:6.3f} s  {step['time/environment_share']:6.2%}"
        )
    share = statistics.mean(step["time/environment_share"] for step in steps)
    print(f"mean of {len(steps)} steps: {share:.2%} (allowed {ALLOWED_SHARE:.0%})")
    if share > ALLOWED_SHARE:
        sys.exit(1)


if __name__ == "__main__":
    main()
