"""Which model `model=PATH` means: a Hugging Face folder, a run folder (its final model), or a training checkpoint.

A checkpoint's FSDP shards are merged by verl's merger into a Hugging Face folder inside it, which goes when the trainer
deletes the checkpoint. The folder appears when it is whole, and is made anew when the shards have changed.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.amft.run_state import STATE_FILE

CHECKPOINT = re.compile(r"global_step_(\d+)")
WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
RUN_IDENTITY, RUN_MODEL = "run.json", "model"  # as recipe/amft/run_folder.py writes them
COMPLETE = "COMPLETE"  # as verl_ext/trainer.py writes it
SOURCE = "merged_from.json"
CHUNKS, CHUNK_BYTES = 64, 65_536  # of a weight file that its digest reads


@dataclass(frozen=True)
class Model:
    """A model that can be evaluated.

    Attributes:
        label: a short name, for the output folder.
        folder: where configuration and tokenizer lie.
        shards: for a checkpoint the folder of its shards, which have to be merged; else None.
    """

    label: str
    folder: Path
    shards: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        values = json.loads((self.folder / "config.json").read_text())
        assert isinstance(values, dict)
        return values

    def fingerprint(self) -> dict[str, Any]:
        """What tells this model from another: digests of small files, sizes and sampled digests of weight files."""
        weights = _shard_files(self.shards) if self.shards else _weight_files(self.folder)
        small = [path for path in sorted(self.folder.iterdir()) if path.suffix in (".json", ".jinja", ".model", ".txt")]
        described = [path for path in small if path.name not in (SOURCE, "preparation.json")]
        return {
            "weights": {path.name: sampled_digest(path) for path in weights},
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in described},
        }

    def weights_folder(self, dtype: str, merged_dir: str | None = None) -> Path:
        """The Hugging Face folder that the engine loads; merges the shards of a checkpoint, or finds them merged."""
        if self.shards is None:
            return self.folder
        root = Path(merged_dir) / self.label if merged_dir else self.shards.parent
        target = (root / f"merged_{dtype}").absolute()
        source = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in _shard_files(self.shards)}
        if (target / SOURCE).is_file() and json.loads((target / SOURCE).read_text()) == source:
            return target
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            merge(self.shards, self.folder, unfinished, dtype)
            (unfinished / SOURCE).write_text(json.dumps(source))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(unfinished, target)
        except PermissionError as error:
            raise ValueError(f"{target.parent} cannot be written ({error}); give merged_dir=DIR.") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return target


def find_model(path: str) -> Model:
    """The model at `path`; ValueError says what is there instead, and what to give."""
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(
            f"model={path} {what} (looked for {folder}); give a Hugging Face folder (the hub's are downloaded "
            "with `hf download NAME --local-dir DIR`), a run folder, or a checkpoint."
        )
    if folder.name == "actor" and CHECKPOINT.fullmatch(folder.parent.name):
        folder = folder.parent
    if CHECKPOINT.fullmatch(folder.name) or (folder / "actor").is_dir():
        return _checkpoint(path, folder)
    if (folder / "config.json").is_file():
        return _hugging_face(path, folder)
    if (folder / RUN_IDENTITY).is_file():
        return _run(path, folder)
    steps = _steps(folder)
    if steps:
        raise ValueError(f"model={path} holds checkpoints; give one of them: {_listed(steps)}.")
    raise ValueError(
        f"model={path} has no config.json, so it is no Hugging Face folder, no {RUN_IDENTITY}, so it is no run folder, "
        "and no actor/, so it is no checkpoint (global_step_N); check the path."
    )


def _hugging_face(path: str, folder: Path) -> Model:
    if not _weight_files(folder):
        raise ValueError(
            f"model={path} has a config.json and no weights ({', '.join(WEIGHTS)}); copy the folder again."
        )
    _check_tokenizer(path, folder)
    label = folder.parent.name if folder.name == RUN_MODEL and (folder.parent / RUN_IDENTITY).is_file() else folder.name
    return Model(label, folder)


def _run(path: str, folder: Path) -> Model:
    if (folder / RUN_MODEL / "config.json").is_file():
        return _hugging_face(path, folder / RUN_MODEL)
    steps = _steps(folder / "checkpoints")
    instead = f"give a checkpoint: {_listed(steps)}" if steps else "it has no complete checkpoint either"
    raise ValueError(f"model={path} is a run without a final model (it did not finish); {instead}.")


def _checkpoint(path: str, folder: Path) -> Model:
    shards = folder / "actor"
    files = _shard_files(shards)
    if not (shards / "huggingface" / "config.json").is_file() or not (shards / "fsdp_config.json").is_file():
        raise ValueError(
            f"model={path} has no actor/huggingface/config.json or no actor/fsdp_config.json, so it is no checkpoint "
            "of verl's FSDP workers; give another."
        )
    world_size = json.loads((shards / "fsdp_config.json").read_text()).get("world_size")
    unfinished = (folder / STATE_FILE).exists() and not (folder / COMPLETE).exists()
    if unfinished or len(files) != world_size:
        raise ValueError(
            f"model={path} is not complete ({len(files)} of {world_size} shards; written to its end: "
            f"{'no' if unfinished else 'yes'}); give another checkpoint: {_listed(_steps(folder.parent)) or 'none'}."
        )
    _check_tokenizer(path, shards / "huggingface")
    run = folder.parent.parent.name if folder.parent.name == "checkpoints" else ""
    return Model("-".join(part for part in (run, folder.name) if part), shards / "huggingface", shards)


def _check_tokenizer(path: str, folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"model={path} has no tokenizer ({', '.join(TOKENIZERS)}); copy it into {folder}.")


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model_world_size_*_rank_*.pt"))


def _steps(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, in the order of their steps."""
    found = [entry for entry in folder.glob("global_step_*") if CHECKPOINT.fullmatch(entry.name)]
    complete = [entry for entry in found if (entry / COMPLETE).exists() or not (entry / STATE_FILE).exists()]
    return sorted(complete, key=lambda entry: int(entry.name.rsplit("_", 1)[1]))


def _listed(steps: list[Path]) -> str:
    return ", ".join(str(step) for step in steps[-5:])


def sampled_digest(path: Path) -> dict[str, Any]:
    """Size, and a digest of evenly spaced chunks: seconds for any size, and training changes every chunk."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(CHUNKS):
            file.seek(max(0, size - CHUNK_BYTES) * index // (CHUNKS - 1))
            digest.update(file.read(CHUNK_BYTES))
    return {"bytes": size, "sampled_sha256": digest.hexdigest()[:16]}


def merge(shards: Path, huggingface: Path, target: Path, dtype: str) -> None:
    """The shards as a Hugging Face folder `target`, with weights in `dtype`."""
    from verl_ext.merger import merge_shards

    shutil.rmtree(target, ignore_errors=True)
    merge_shards(shards, huggingface, target, dtype)
    written = json.loads((target / "config.json").read_text())  # names verl's dtype
    (target / "config.json").write_text(json.dumps({**written, "dtype": dtype}, indent=2))
