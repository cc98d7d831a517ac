"""verl's replay buffer with a poll interval that suits short steps and a limit on waiting."""

import time

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class BoundedReplayBuffer(ReplayBuffer):
    """Waits for rollouts at most `timeout_seconds`: a dead rollout worker ends the run instead of hanging it."""

    def __init__(self, *args, poll_interval: float, timeout_seconds: float, **kwargs):
        super().__init__(*args, poll_interval=poll_interval, **kwargs)
        self.timeout_seconds = timeout_seconds
        self._waiting_since: float | None = None

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        """As verl's; raises TimeoutError when the batch is not complete in `timeout_seconds`."""
        self._waiting_since = time.monotonic()
        return super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        waited = time.monotonic() - self._waiting_since
        if waited > self.timeout_seconds:
            counts = {
                state: len(getattr(self, f"{state}_keys")[partition_id])
                for state in ("pending", "running", "finished", "failure")
            }
            raise TimeoutError(
                f"rollouts of partition {partition_id!r} are not complete after {waited:.0f} s: prompts {counts}. "
                "A rollout worker or the vLLM server has stopped answering (its own log says why), or generation is "
                "slower than amft.limits.rollout_seconds allows."
            )
        return super()._wait_for_next_poll(partition_id, last_debug_time)
