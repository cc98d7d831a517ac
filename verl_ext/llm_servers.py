"""verl's rollout servers and their client, without a load balancer where there is one replica.

verl asks the balancer before every turn of every rollout which replica is to answer, and reports after it. Each is a
call to another process, and the answer carries an actor handle, which takes longer to unpack than a tiny model takes
for a token. One replica has a name that is known before it stands, so that the agent loops can start beside it.
"""

import ray
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager
from verl.workers.rollout.replica import get_rollout_replica_class


def import_server(name: str) -> None:
    """Import the engine `name` (vllm) into this process: seconds, which verl spends when it starts the first server."""
    get_rollout_replica_class(name)


class Servers(LLMServerManager):
    """verl's; the process of the load balancer is started only when there is something to balance."""

    async def _init_global_load_balancer(self) -> None:
        if len(self.server_handles) > 1:
            await super()._init_global_load_balancer()


class OnlyReplicaClient(LLMServerClient):
    """Every request goes to replica 0, which is looked up with the first one."""

    def __init__(self, config):
        super().__init__(config)
        self._server: tuple[str, ray.actor.ActorHandle] | None = None

    async def _acquire_server(self, request_id: str, **extra) -> tuple[str, ray.actor.ActorHandle]:
        if self._server is None:
            name = f"{self.config.actor_rollout_ref.rollout.name}_server_0_0"
            self._server = (name, ray.get_actor(name))
        return self._server

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        return None
