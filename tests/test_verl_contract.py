"""Every symbol of verl 0.9.1 that verl_ext and the recipe build on, with the signature they rely on."""

import inspect

import pytest

CALLS = {
    "verl.trainer.ppo.v1.trainer_sync.PPOTrainerSync.__init__": ["self", "config"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._build_replay_buffer": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._setup": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._init_tokenizer": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._init_dataloader": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._init_resource_pool_mgr": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._load_checkpoint": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._save_checkpoint": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._validate": ["self"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._get_required_batch_multiple": ["self", "dp_size"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_old_log_prob": ["self", "batch", "metrics"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_ref_log_prob": ["self", "batch", "metrics"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_values": ["self", "batch", "metrics"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_advantage": ["self", "batch", "metrics"],
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer._update_critic": ["self", "batch", "metrics"],
    "verl.trainer.ppo.v1.replay_buffer.ReplayBuffer.sample": ["self", "global_steps", "partition_id", "batch_size"],
    "verl.trainer.ppo.v1.replay_buffer.ReplayBuffer._wait_for_next_poll": ["self", "partition_id", "last_debug_time"],
    "verl.trainer.ppo.padding_utils.upsample_batch_to_divisible_size": ["batch", "batch_multiple", "eos_token_id"],
    "verl.trainer.constants_ppo.get_ppo_ray_runtime_env": ["config"],
    "verl.workers.engine_workers.TrainingWorker._postprocess_output": [
        "self", "output", "global_token_num", "delta_time", "forward_only", "images_seqlens",
    ],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.forward_backward_batch": [
        "self", "data", "loss_function", "forward_only",
    ],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.optimizer_step": ["self"],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.optimizer_zero_grad": ["self"],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.lr_scheduler_step": ["self"],
    "verl.workers.utils.padding.no_padding_2_padding": ["tensor", "data"],
    "verl.workers.utils.padding.response_to_nested": ["tensor", "response_mask"],
    "verl.workers.utils.losses.ppo_loss": ["config", "model_output", "data", "dp_group"],
    "verl.utils.distributed.initialize_global_process_group_ray": ["timeout_second", "backend"],
    "verl.utils.model.load_valuehead_model": ["local_path", "torch_dtype", "model_config", "trust_remote_code"],
    "verl.utils.import_utils.load_class_from_fqn": ["fqn", "description"],
    "verl.checkpoint_engine.base.CheckpointEngineManager.update_weights": ["self", "global_steps"],
    "verl.checkpoint_engine.base.CheckpointEngineManager.sleep_replicas": ["self"],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.save_checkpoint": [
        "self", "local_path", "hdfs_path", "global_step", "max_ckpt_to_keep", "kwargs",
    ],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.load_checkpoint": [
        "self", "local_path", "hdfs_path", "del_local_after_load", "kwargs",
    ],
    "verl.model_merger.fsdp_model_merger.FSDPModelMerger._load_and_merge_state_dicts": [
        "self", "world_size", "total_shards", "mesh_shape", "mesh_dim_names",
    ],
    "verl.model_merger.fsdp_model_merger.FSDPModelMerger._merge_by_placement": ["self", "tensors", "placement"],
    "verl.model_merger.fsdp_model_merger.merge_non_dtensor_shards": ["key", "shards"],
    "verl.model_merger.fsdp_model_merger.FSDPModelMerger.merge_and_save": ["self"],
}  # fmt: skip
STARTS_WITH = {
    "verl.experimental.agent_loop.agent_loop.AgentLoopBase.run": ["self", "sampling_params"],
    "verl.experimental.agent_loop.agent_loop.AgentLoopBase.ct_build_initial_tokens": ["self", "messages"],
    "verl.experimental.agent_loop.agent_loop.AgentLoopBase.ct_merge_assistant_token": [
        "self", "runtime_token_ids", "assistant_token_ids", "response_mask", "response_logprobs",
    ],
    "verl.experimental.agent_loop.agent_loop.AgentLoopBase.ct_merge_context_msg": [
        "self", "previous_messages", "updated_messages", "runtime_token_ids", "response_mask", "response_logprobs",
    ],
    "verl.workers.rollout.llm_server.LLMServerClient.__init__": ["self", "config", "load_balancer_handle"],
    "verl.workers.rollout.llm_server.LLMServerClient._acquire_server": ["self", "request_id"],
    "verl.workers.rollout.llm_server.LLMServerClient._release_server": ["self", "server_id", "request_id"],
    "verl.workers.rollout.llm_server.LLMServerManager.get_client": ["self", "client_cls"],
    "verl.workers.rollout.llm_server.LLMServerClient.generate": ["self", "request_id", "prompt_ids", "sampling_params"],
    "verl.trainer.ppo.utils.create_rl_dataset": ["data_paths", "data_config", "tokenizer", "processor"],
    "verl.trainer.ppo.utils.create_rl_sampler": ["data_config", "dataset"],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.get_per_tensor_param": ["self"],
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine.train_mode": ["self"],
    "verl.utils.tokenizer.continuous_token_wiring.create_continuous_token_builder": ["tokenizer"],
    "verl.utils.tokenizer.chat_template.apply_chat_template": ["processor", "messages"],
    "verl.utils.tokenizer.hf_processor": ["name_or_path"],
    "verl.models.transformers.qwen2_vl._get_input_embeds": [
        "model", "input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "image_grid_thw",
        "video_grid_thw",
    ],
    "verl.workers.engine.base.maybe_fix_3d_position_ids": ["data"],
    "verl.workers.engine_workers.maybe_fix_3d_position_ids": ["data"],
}  # fmt: skip


def resolve(path: str):
    """The object at a dotted path whose head is the longest importable module."""
    import importlib

    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            target = getattr(target, name)
        return target
    raise ModuleNotFoundError(path)


def parameters(path: str) -> list[str]:
    target = resolve(path)
    return list(inspect.signature(inspect.unwrap(target)).parameters)


@pytest.mark.parametrize("path", CALLS)
def test_signature_is_the_one_we_call_or_override(path):
    """The parameter names, in order."""
    assert parameters(path) == CALLS[path]


@pytest.mark.parametrize("path", STARTS_WITH)
def test_signature_starts_with_what_we_pass(path):
    """Further parameters may follow; these come first."""
    assert parameters(path)[: len(STARTS_WITH[path])] == STARTS_WITH[path]


def test_the_actor_worker_class_can_be_swapped():
    """`ActorRolloutRefWorker` takes its training worker from the class attribute that AMFTWorker overrides."""
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    from recipe.amft.worker import AMFTTrainingWorker, AMFTWorker

    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker
    assert AMFTWorker.actor_worker_cls is AMFTTrainingWorker
    assert "self.actor_worker_cls(" in inspect.getsource(ActorRolloutRefWorker.init_model)


def test_a_checkpoint_can_hold_weights_alone():
    """What is written and read is decided when it is, by the manager's lists."""
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    for name in ("save", "load"):
        source = inspect.getsource(getattr(BaseCheckpointManager, f"should_{name}_optimizer").fget)
        assert f"in self.checkpoint_{name}_contents" in source


def test_the_trainer_builds_what_we_replace_through_overridable_methods():
    """`_setup` calls tokenizer, data, pools and checkpoint loading in the order that AMFTTrainer assumes."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    source = inspect.getsource(PPOTrainer._setup)
    order = [
        source.index(f"self.{name}(")
        for name in ("_init_tokenizer", "_init_dataloader", "_init_resource_pool_mgr", "_load_checkpoint")
    ]
    assert order == sorted(order)


def test_the_trainer_starts_the_rollout_engine_by_the_name_that_we_replace():
    """`_setup` makes one of them and asks it for its replicas; what it passes, we pass later."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from verl_ext.trainer import NoRolloutEngine, RecipeTrainer

    source = inspect.getsource(PPOTrainer._setup)
    assert source.count("LLMServerManager.create(") == 1
    assert source.count("self.llm_server_manager") == 3
    assert "self.llm_server_manager.get_replicas()" in source
    for argument in ("config=self.config", "worker_group=self.actor_rollout_wg", "rollout_resource_pool="):
        assert argument in source
        assert argument in inspect.getsource(RecipeTrainer.start_rollout_engine)
    assert NoRolloutEngine.create(config=None, worker_group=None, rollout_resource_pool=None).get_replicas() == []


def test_the_only_replica_has_the_name_that_its_client_looks_up():
    """The first server of replica 0 is an actor "vllm_server_0_0", and only the balancer's method starts a balancer."""
    from verl.workers.rollout.llm_server import LLMServerManager
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica

    launch = inspect.getsource(vLLMReplica.launch_servers)
    assert 'name = f"{prefix}server_{self.replica_rank}_{node_rank}{self.name_suffix}"' in launch
    assert vLLMReplica._get_server_name_prefix(None) == "vllm_"
    assert "await instance._init_global_load_balancer()" in inspect.getsource(LLMServerManager.create.__wrapped__)
    assert inspect.iscoroutinefunction(LLMServerManager._init_global_load_balancer)


def test_the_merger_writes_what_our_override_returns():
    """`merge_and_save` takes its weights from the one method that ShardMerger replaces; its settings are ours."""
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    assert "self._load_and_merge_state_dicts(" in inspect.getsource(FSDPModelMerger.merge_and_save)
    needed = {"operation", "backend", "local_dir", "hf_model_config_path", "target_dir"}
    assert needed <= set(inspect.signature(ModelMergerConfig).parameters)
