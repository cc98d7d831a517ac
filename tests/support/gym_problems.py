"""Problems of reasoning-gym as this project's environment poses them."""

from recipe.amft.tasks.environment import make_environment


def posed(dataset, index=0, **env_kwargs):
    """An environment with an entry of `dataset` posed."""
    environment = make_environment("reasoning_gym", {"dataset": dataset, "answer_format": "plain"} | env_kwargs)
    environment.reset(0, {"index": index, "size": 100})
    return environment


def result_of(answer, dataset, **env_kwargs):
    """(reward, problem) of one answer."""
    _, reward, _, _, info = posed(dataset, **env_kwargs).step(answer)
    return reward, info["problem"]
