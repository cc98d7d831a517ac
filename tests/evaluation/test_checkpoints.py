"""model=PATH: what each kind of folder means, and the merge of FSDP shards, against the weights they were cut from."""

import json
import shutil

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.amft.data.tiny_model import make_model, make_tokenizer
from recipe.amft.evaluation.checkpoints import find_model, sampled_digest

RANKS = 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model whose rows do not divide evenly by two ranks, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("small") / "model"
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, hidden_size=33 * 2, intermediate_size=65, num_layers=1, num_heads=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(small, tmp_path):
    """A run folder with one checkpoint as verl's FSDP2 workers write it: one file of local shards per rank."""
    step = tmp_path / "run" / "checkpoints" / "global_step_20"
    shards = step / "actor"
    shards.mkdir(parents=True)
    write_shards(shards, AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).state_dict())
    (shards / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": RANKS}))
    shutil.copytree(small, shards / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (step / "amft.json").write_text("{}")
    (step / "COMPLETE").write_text('{"step": 20}')
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path / "run"


def write_shards(shards, weights):
    """One file of local parts per rank, as FSDP2 shards the first dimension."""
    for rank in range(RANKS):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
        mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
        local = {
            name: DTensor.from_local(
                tensor.tensor_split(cut(len(tensor)))[rank].clone(),
                mesh,
                [Shard(0)],
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
            for name, tensor in weights.items()
        }
        torch.save(local, shards / f"model_world_size_{RANKS}_rank_{rank}.pt")
        torch.distributed.destroy_process_group()


def cut(size):
    """Where torch.chunk cuts: the first ranks have the larger part."""
    part = -(-size // RANKS)
    return [min(part * rank, size) for rank in range(1, RANKS)]


def test_merged_shards_are_the_weights_that_were_cut(run, small):
    """Every tensor is equal, in float32, and the folder is a whole model with tokenizer and template."""
    model = find_model(str(run / "checkpoints" / "global_step_20"))
    assert model.label == "run-global_step_20"
    folder = model.weights_folder("float32")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    expected = AutoModelForCausalLM.from_pretrained(small, dtype="auto")
    assert merged.dtype == expected.dtype == torch.float32
    assert merged.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor), name
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(small).chat_template


def test_a_merge_in_bfloat16_rounds_once(run, small):
    """The weights that vLLM would make of the float32 ones; both merges stand side by side."""
    model = find_model(str(run / "checkpoints" / "global_step_20" / "actor"))
    folder = model.weights_folder("bfloat16")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(small, dtype="auto").state_dict().items():
        assert torch.equal(merged[name], tensor.bfloat16()), name
    assert model.weights_folder("float32") != folder


def test_a_merge_is_kept_until_the_shards_change(run):
    """The second call merges nothing; a checkpoint written again at the same step is merged again."""
    model = find_model(str(run / "checkpoints" / "global_step_20"))
    weights = model.weights_folder("float32") / "model.safetensors"
    first = weights.stat().st_mtime_ns
    model.weights_folder("float32")
    assert weights.stat().st_mtime_ns == first
    fingerprint = model.fingerprint()
    trained = {
        name: tensor + 1 for name, tensor in AutoModelForCausalLM.from_pretrained(weights.parent).state_dict().items()
    }
    write_shards(run / "checkpoints" / "global_step_20" / "actor", trained)
    assert model.fingerprint() != fingerprint
    merged = AutoModelForCausalLM.from_pretrained(model.weights_folder("float32")).state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in trained.items())


def test_shards_that_do_not_fit_the_model_are_refused(run):
    """A rank's file of another run: nothing half merged is left."""
    step = run / "checkpoints" / "global_step_20"
    shard = step / "actor" / "model_world_size_2_rank_0.pt"
    content = torch.load(shard, weights_only=False)
    torch.save({name: tensor._local_tensor for name, tensor in content.items()}, shard)
    with pytest.raises(ValueError, match=r"gives .* the shape .* the shards are not those of one run"):
        find_model(str(step)).weights_folder("float32")
    assert not [path for path in step.iterdir() if "merged" in path.name]


def test_merged_weights_lie_where_the_user_says(run, tmp_path):
    """merged_dir=DIR, for checkpoints on a disk that may not be written."""
    model = find_model(str(run / "checkpoints" / "global_step_20"))
    folder = model.weights_folder("bfloat16", str(tmp_path / "elsewhere"))
    assert folder.is_relative_to(tmp_path / "elsewhere")
    assert not list((run / "checkpoints" / "global_step_20").glob("merged*"))


def test_a_run_folder_means_its_final_model(run, small):
    """With a model it is that one, also by the path of the model itself; the label is the run's name."""
    with pytest.raises(ValueError, match=r"did not finish.*global_step_20"):
        find_model(str(run))
    shutil.copytree(small, run / "model")
    assert find_model(str(run)) == find_model(str(run / "model"))
    assert find_model(str(run)).label == "run"
    assert find_model(str(run)).weights_folder("float32") == run / "model"


def test_an_incomplete_checkpoint_is_refused(run):
    """Without the mark that is written last, or without a shard."""
    step = run / "checkpoints" / "global_step_20"
    (step / "COMPLETE").unlink()
    with pytest.raises(ValueError, match="not complete"):
        find_model(str(step))
    (step / "COMPLETE").write_text("{}")
    (step / "actor" / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(ValueError, match="1 of 2 shards"):
        find_model(str(step))


def test_wrong_paths_say_what_they_are(run, small, tmp_path):
    """Missing, a file, a folder of checkpoints, a folder of nothing, weights or tokenizer missing."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(small, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(small, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    cases = {
        tmp_path / "nowhere": "does not exist",
        run / "run.json": "is a file",
        run / "checkpoints": r"holds checkpoints; give one of them: .*global_step_20",
        tmp_path / "empty": "has no config.json",
        tmp_path / "weightless": "no weights",
        tmp_path / "mute": "no tokenizer",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            find_model(str(path))


def test_a_fingerprint_changes_with_weights_and_template(small, tmp_path):
    """Another weight, or another chat template, is another model; a copy is the same one."""
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    before = find_model(str(small)).fingerprint()
    assert find_model(str(copy)).fingerprint() == before
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert find_model(str(copy)).fingerprint() != before
    shutil.copy(small / "chat_template.jinja", copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_model(str(copy)).fingerprint() != before


def test_a_digest_reads_the_whole_of_a_small_file(tmp_path):
    """Up to the chunks' total size every byte counts."""
    path = tmp_path / "weights.bin"
    content = bytearray(torch.arange(100_000, dtype=torch.int32).numpy().tobytes())
    path.write_bytes(content)
    before = sampled_digest(path)
    for place in (0, 123_456, len(content) - 1):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert sampled_digest(path) != before
