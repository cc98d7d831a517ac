"""An environment for runs that are compared step by step; the workers import it by path."""

from recipe.amft.tasks.general_points.environment import GeneralPoints


class Parity(GeneralPoints):
    """Rewards answers whose bytes have an even sum: a random policy has both kinds, the same answer the same reward."""

    def step(self, text):
        observation, _, _, truncated, info = super().step(text)
        even = info["success"] or sum(text.encode()) % 2 == 0
        return observation, float(even), even, truncated and not even, info | {"success": even}
