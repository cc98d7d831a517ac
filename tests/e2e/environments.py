"""Environments that misbehave on purpose; the workers import them by path."""

import zlib

from recipe.amft.tasks.general_points.environment import GeneralPoints


class CrashesOnTarget(GeneralPoints):
    """Raises inside `step` for hands whose target is even, as a broken grader would."""

    def step(self, text):
        if self._hand_target % 2 == 0:
            raise RuntimeError("this hand crashes")
        return super().step(text)


class Lucky(GeneralPoints):
    """Rewards half of all texts unless the target is a multiple of 3: an untrained model has both kinds of rollouts on
    some prompts, and fails the others. The expert is right on all."""

    def step(self, text):
        observation, _, _, truncated, info = super().step(text)
        lucky = info["success"] or (zlib.crc32(text.encode()) % 2 == 0 and self._hand_target % 3 > 0)
        return observation, float(lucky), lucky, truncated and not lucky, info | {"success": lucky}
