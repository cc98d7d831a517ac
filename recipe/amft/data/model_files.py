"""The files of a Hugging Face model folder: read, copied, and their changed content."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
RECORD = "preparation.json"
LENGTH_LIMITS = ("max_new_tokens", "max_length")  # of a generation_config; vLLM takes them for limits on every answer


def changed_config(
    config: Mapping[str, Any], theta: float, max_position_embeddings: int, eos_id: int
) -> dict[str, Any]:
    """rope_theta stands where transformers 4 (top level) and 5 (rope_parameters) look for it: both get it."""
    changed = {
        **config,
        "rope_theta": theta,
        "max_position_embeddings": max_position_embeddings,
        "eos_token_id": eos_id,
    }
    if "rope_parameters" in config:
        changed["rope_parameters"] = {"rope_type": "default", **(config["rope_parameters"] or {}), "rope_theta": theta}
    return changed


def changed_tokenizer(
    config: Mapping[str, Any], eos_token: str, max_position_embeddings: int, template: str
) -> dict[str, Any]:
    """The template stands here too, for releases of transformers that do not read chat_template.jinja."""
    longest = max(int(config.get("model_max_length") or 0), max_position_embeddings)
    return {**config, "eos_token": eos_token, "model_max_length": longest, "chat_template": template}


def changed_generation(config: Mapping[str, Any], eos_id: int) -> dict[str, Any]:
    """Ends at `eos_id`, and has no limit on the length, which belongs to the run."""
    dropped = (*LENGTH_LIMITS, "_from_model_config")
    return {name: value for name, value in config.items() if name not in dropped} | {"eos_token_id": eos_id}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[what was, what is] of the keys that differ."""
    keys = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [{name: side[name] for name in keys if name in side} for side in (before, after)]


def rope_theta(config: Mapping[str, Any]) -> float | None:
    """Where transformers 5 keeps it, else where transformers 4 does."""
    parameters = config.get("rope_parameters") or {}
    return parameters.get("rope_theta", config.get("rope_theta"))


def token_text(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def copy_files(source: str, model: Path, folder: Path, weights: str) -> None:
    """Files of the top level; weights as symbolic links to the files themselves (not to a hub cache's links)."""
    files = [path for path in sorted(model.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if not any(path.suffix in WEIGHTS for path in files):
        raise ValueError(f"source={source!r} has no weights ({', '.join(WEIGHTS)}); the download is not complete.")
    for path in files:
        if path.suffix in WEIGHTS and weights == "symlink":
            (folder / path.name).symlink_to(path.resolve())
        elif path.name not in (RECORD, "chat_template.json"):
            shutil.copyfile(path, folder / path.name)


def read_json(path: Path, **default: Any) -> Any:
    """The object in a JSON file; `missing=` in place of a file that is not there."""
    if not path.is_file():
        if "missing" in default:
            return default["missing"]
        raise ValueError(f"{path} does not exist; give a complete model folder.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the model again.") from None


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
