"""verl's client of the rollout engine, without a question to the load balancer where there is only one replica.

verl asks before every turn of every rollout which replica is to answer, and reports after it. Each is a call to another
process, and the answer carries an actor handle, which takes longer to unpack than a tiny model takes for a token.
"""

import ray
from verl.workers.rollout.llm_server import LLMServerClient


class OnlyReplicaClient(LLMServerClient):
    """Every request goes to the same replica."""

    def __init__(self, config, load_balancer_handle=None, *, server_id: str, server: ray.actor.ActorHandle):
        super().__init__(config, load_balancer_handle)
        self._server = (server_id, server)

    async def _acquire_server(self, request_id: str, **extra) -> tuple[str, ray.actor.ActorHandle]:
        return self._server

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        return None
