"""FSDP2 shards of a checkpoint as one Hugging Face folder: verl's merger, in a chosen type, with its shapes checked."""

import contextlib
import io
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger, merge_non_dtensor_shards


def merge_shards(shards: Path, huggingface: Path, target: Path, dtype: str) -> None:
    """Merge on the CPU, without a process group; verl's own merger always writes bfloat16, weights of any shape.

    Args:
        shards: the folder with one file per rank, as verl's FSDP workers write it.
        huggingface: configuration, tokenizer and template of the model.
        target: the folder that is made.
        dtype: name of a torch type, for the floating-point weights.

    Raises ValueError for shards whose shapes are not those of the model.
    """
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(shards),
        hf_model_config_path=str(huggingface),
        target_dir=str(target),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ShardMerger(config, getattr(torch, dtype)).merge_and_save()


class ShardMerger(FSDPModelMerger):
    """verl's merger, with weights in `dtype`."""

    def __init__(self, config: ModelMergerConfig, dtype: torch.dtype):
        super().__init__(config)
        self.dtype = dtype

    def _load_and_merge_state_dicts(self, world_size, total_shards, mesh_shape, mesh_dim_names):
        folder = Path(self.config.local_dir)
        ranks = [
            torch.load(folder / f"model_world_size_{world_size}_rank_{rank}.pt", map_location="cpu", weights_only=False)
            for rank in range(total_shards)
        ]
        merged = {}
        for name in list(ranks[0]):
            parts = [rank.pop(name) for rank in ranks]
            if isinstance(parts[0], DTensor):
                whole = self._merge_by_placement([part._local_tensor for part in parts], parts[0].placements[-1])
            else:
                whole = merge_non_dtensor_shards(name, parts)
            merged[name] = whole.to(self.dtype) if whole.is_floating_point() else whole
        self._check_shapes(merged)
        return merged

    def _check_shapes(self, merged: dict[str, torch.Tensor]) -> None:
        with torch.device("meta"):
            model = self.get_transformers_auto_model_class().from_config(self.model_config)
        tied = set(model._tied_weights_keys or ()) if self.model_config.tie_word_embeddings else set()
        shapes = {name: tuple(tensor.shape) for name, tensor in merged.items()}
        for name, tensor in model.state_dict().items():
            if shapes.get(name) != tuple(tensor.shape) and not (name in tied and name not in shapes):
                raise ValueError(
                    f"{self.config.local_dir} gives {name} the shape {shapes.get(name)}, and the model has "
                    f"{tuple(tensor.shape)}: the shards are not those of one run; copy the checkpoint again, or give "
                    "another."
                )
