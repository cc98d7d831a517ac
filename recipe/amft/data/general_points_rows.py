"""The data rows of General Points: one for each demonstration of a hand, plain or after failed attempts."""

import json
import random
from typing import Any

from recipe.amft.data.general_points_hands import Hand, numbers
from recipe.amft.tasks.general_points import solver
from recipe.amft.tasks.general_points.environment import GeneralPoints

ENV_ID = "general_points"


def rows_of(
    environment: GeneralPoints, env_kwargs: dict[str, Any], hand: Hand, demonstrations: int, rng: random.Random
) -> list[dict[str, Any]]:
    """The rows of one hand, its cards in a random order: one for each demonstration, by consecutive seeds."""
    ranks, target = hand
    options = {"cards": rng.sample(ranks, len(ranks)), "target": target}
    first_seed = rng.randrange(2**31)
    num_solutions = len(solver.formulas(numbers(environment, ranks), target))
    hand_id = f"{ENV_ID}/cards={'-'.join(map(str, ranks))}/target={target}/face_rule={environment.face_rule}"
    rows = []
    for demonstration in range(min(demonstrations, num_solutions)):
        seed = first_seed + demonstration
        observation, _ = environment.reset(seed, options)
        rows.append(
            {
                "data_source": ENV_ID,
                "prompt": [{"role": "user", "content": observation["text"]}],
                "target": [{"role": "assistant", "content": environment.expert_action()}],
                "ability": "general_points",
                "reward_model": {"style": "rule", "ground_truth": str(target)},
                "extra_info": {
                    "id": f"{hand_id}/demonstration={demonstration}",
                    "env_id": ENV_ID,
                    "env_kwargs": json.dumps(env_kwargs, sort_keys=True),
                    "seed": seed,
                    "options": json.dumps(options, sort_keys=True),
                },
            }
        )
    return rows


def turn_into_revisions(
    environment: GeneralPoints, rows: list[dict[str, Any]], share: float, rng: random.Random
) -> None:
    """Give a share of the rows a prompt with failed attempts: formulas of the hand's numbers with other values."""
    most = environment.verify_iter - 1
    for row in rows:
        if most < 1 or rng.random() >= share:
            continue
        info = row["extra_info"]
        options = json.loads(info["options"])
        values = numbers(environment, options["cards"])
        others = sorted(solver.integer_targets(values) - {options["target"]})
        if not others:
            continue
        environment.reset(info["seed"], options)
        for _ in range(rng.randint(1, most)):
            formula = rng.choice(solver.formulas(values, rng.choice(others)))
            attempt = environment.answer(formula)
            observation, _, _, _, _ = environment.step(attempt)
            row["prompt"] = [
                *row["prompt"],
                {"role": "assistant", "content": attempt},
                {"role": "user", "content": observation["text"]},
            ]


def numbered(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The same rows, told their split and their place in it."""
    for index, row in enumerate(rows):
        row["extra_info"] |= {"split": split, "index": index}
    return rows
