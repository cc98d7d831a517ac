"""Environments that misbehave on purpose; the workers import them by path."""

import itertools

from recipe.amft.tasks.general_points.environment import GeneralPoints


class CrashesOnTarget(GeneralPoints):
    """Raises inside `step` for hands whose target is even, as a broken grader would."""

    def step(self, text):
        if self._hand_target % 2 == 0:
            raise RuntimeError("this hand crashes")
        return super().step(text)


class Lucky(GeneralPoints):
    """Rewards every second episode of this process, whatever its text, unless the target is a multiple of 3: a policy
    that repeats itself has both kinds of rollouts on some prompts too, and fails the others. The expert is right."""

    _episodes = itertools.count()

    def reset(self, seed, options=None):
        self._is_lucky = next(Lucky._episodes) % 2 == 0
        return super().reset(seed, options)

    def step(self, text):
        observation, _, _, truncated, info = super().step(text)
        lucky = info["success"] or (self._is_lucky and self._hand_target % 3 > 0)
        return observation, float(lucky), lucky, truncated and not lucky, info | {"success": lucky}
