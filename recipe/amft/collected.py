"""Rollouts that a method keeps (`Choice.collect`) and learns from in later steps (`StepPlan.collected`)."""

from typing import Any

from recipe.amft.data.demonstrations import Demonstration, DemonstrationStream
from recipe.amft.methods import Method


class CollectedRollouts:
    """The collected rollouts with their rewards, and the order in which they are learned.

    The order is made at the first `next`: what is added later is not learned.
    """

    def __init__(self, method: Method):
        self.method = method
        self.rows: list[tuple[Demonstration, float]] = []
        self.position = {"epoch": 0, "position": 0}  # of the stream, as `DemonstrationStream.state_dict` gives it
        self._stream: DemonstrationStream | None = None

    def add(self, row: Demonstration, reward: float) -> None:
        self.rows.append((row, reward))

    def next(self, in_pairs: bool) -> list[Demonstration]:
        """The next batch of rollouts, or of better and worse ones in turn; RuntimeError when there are none."""
        if self._stream is None:
            self._stream = self._make_stream(in_pairs)
        chosen = self._stream.next()
        self.position = self._stream.state_dict()
        return [row for unit in chosen for row in unit]

    def _make_stream(self, in_pairs: bool) -> DemonstrationStream:
        config = self.method.config
        rows, rewards = [row for row, _ in self.rows], [reward for _, reward in self.rows]
        units = [(row,) for row in rows]
        if in_pairs:
            pairs = self.method.pairs([row.row_id for row in rows], rewards)
            units = [(rows[better], rows[worse]) for better, worse in pairs]
        if not units:
            raise RuntimeError(
                f"method={config.method.name}: the {len(rows)} collected rollouts give nothing to learn "
                "from (no prompt has a correct one, or none has both kinds); sample more, or from a better model."
            )
        stream = DemonstrationStream(
            units, min(config.demonstrations.batch_size, len(units)), config.demonstrations.seed
        )
        stream.load_state_dict(self.position)
        return stream

    def state_dict(self) -> dict[str, Any]:
        return {"collected": [(vars(row), reward) for row, reward in self.rows], "collected_position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget everything and go on as `state` says; it may hold the states of other streams too."""
        self.rows = [(Demonstration(**row), reward) for row, reward in state["collected"]]
        self.position = state["collected_position"]
        self._stream = None
