"""A Hugging Face model folder made ready for long reasoning: rope, positions, end-of-text token, chat template.

    python -m recipe.amft.data.prepare_model --source Qwen/Qwen2.5-Math-7B --out models/qwen2_5_math_7b_think \
        --template qwen2_5_math_think --rope-theta 40000 --max-position-embeddings 16384

The defaults are those of the runs that AMFT compares with (LUFFY, SRFT): rope_theta 10000 -> 40000, 4,096 -> 16,384
positions, `<|endoftext|>` ends an answer, and the prompt ends with `<think>`. Weights are linked, not changed.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recipe.amft.data.command_line import Parser
from recipe.amft.data.model_files import (
    RECORD,
    changed_config,
    changed_generation,
    changed_tokenizer,
    copy_files,
    differences,
    read_json,
    rope_theta,
    token_text,
    write_json,
)

MODEL_TYPES = ("qwen2", "qwen3")  # plain rotary positions, ChatML tokens
TEMPLATES = Path(__file__).with_name("templates")
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Settings:
    """What is changed; see the top of this file.

    Attributes:
        template: a file of recipe/amft/data/templates without its suffix, or the path of a Jinja file.
        eos_token: ends an answer; `<|im_end|>` for tasks of several turns, where it also closes the turn.
        weights: symlink | copy.
    """

    template: str = "qwen2_5_math_think"
    rope_theta: float = 40000.0
    max_position_embeddings: int = 16384
    eos_token: str = "<|endoftext|>"
    weights: str = "symlink"

    def __post_init__(self) -> None:
        for name in ("rope_theta", "max_position_embeddings"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be positive.")
        if self.weights not in ("symlink", "copy"):
            raise ValueError(f"weights={self.weights!r} is unknown; choose symlink or copy.")


def prepare_model(source: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Fill the empty `folder`; returns {what: [before, after]}. ValueError for a model that this does not fit."""
    model = local_folder(source)
    config = read_json(model / "config.json")
    check_architecture(source, config)
    template = read_template(settings.template)
    eos_id = check_tokenizer(source, model, template, settings.eos_token)
    copy_files(source, model, folder, settings.weights)
    tokenizer_config = read_json(model / "tokenizer_config.json")
    generation = read_json(model / "generation_config.json", missing={})
    positions, eos_token = settings.max_position_embeddings, settings.eos_token
    new_config = changed_config(config, float(settings.rope_theta), positions, eos_id)
    new_tokenizer = changed_tokenizer(tokenizer_config, eos_token, positions, template)
    new_generation = changed_generation(generation, eos_id)
    write_json(folder / "config.json", new_config)
    write_json(folder / "tokenizer_config.json", new_tokenizer)
    write_json(folder / "generation_config.json", new_generation)
    special_tokens = read_json(model / "special_tokens_map.json", missing=None)
    if special_tokens is not None:  # older releases of transformers read it
        write_json(folder / "special_tokens_map.json", special_tokens | {"eos_token": eos_token})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    changes = {
        "rope_theta": [rope_theta(config), rope_theta(new_config)],
        "max_position_embeddings": [config.get("max_position_embeddings"), positions],
        "eos_token_id": [config.get("eos_token_id"), eos_id],
        "eos_token": [token_text(tokenizer_config.get("eos_token")), eos_token],
        "model_max_length": [tokenizer_config.get("model_max_length"), new_tokenizer["model_max_length"]],
        "generation_config": differences(generation, new_generation),
        "chat_template": ["(replaced)", settings.template],
    }
    write_json(folder / RECORD, {"source": source, "settings": asdict(settings), "changes": changes})
    return changes


# ---- checks ----------------------------------------------------------------------------------------------------------


def local_folder(source: str) -> Path:
    """The folder itself, or the hub's files of `owner/name`; ValueError says how to get what is missing."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"source={source!r} has no config.json; give a model folder in Hugging Face format.")
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"source={source!r} is not a folder (looked for {path.absolute()}); give one, or owner/name.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source))
    except Exception as error:  # network, permissions, unknown repository
        reason = " ".join(str(error).split())
        raise ValueError(
            f"source={source!r} is no folder here and cannot be fetched from the hub ({reason}). On a machine that "
            f"reaches it: hf download {source} --local-dir FOLDER; then give that folder as the source."
        ) from None


def check_architecture(source: str, config: Mapping[str, Any]) -> None:
    """ValueError for models whose positions or chat tokens work otherwise."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"source={source!r} has model_type={model_type!r}; this preparation knows {', '.join(MODEL_TYPES)}. "
            "Another architecture needs its own template and position settings: prepare its folder by hand."
        )
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default"), scaling.get("rope_type", scaling.get("type", "default"))
    if set(kind) != {"default"} or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(
            f"source={source!r} has scaled positions (rope_scaling={scaling or rope}), whose base must not be changed "
            "alone; give the model without rope scaling."
        )


def check_tokenizer(source: str, model: Path, template: str, eos_token: str) -> int:
    """The id of `eos_token`; ValueError when it or ChatML's tokens are missing, or the template does not render."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"source={source!r}: its tokenizer cannot be loaded ({reason}).") from None
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (*CHAT_TOKENS, eos_token) if token not in vocabulary]
    if missing:
        raise ValueError(
            f"source={source!r}: its tokenizer has no token {', '.join(missing)}; choose another eos_token."
        )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # Jinja's errors, of syntax and at run time
        raise ValueError(f"the template cannot be rendered ({type(error).__name__}: {error}); mend it.") from None
    if not all(f"{message['role']}\n{message['content']}" in text for message in messages):
        raise ValueError(f"the template drops a message: a system and a user message became {text!r}.")
    return int(vocabulary[eos_token])


def read_template(name: str) -> str:
    """The text of a template of this repository, or of a file."""
    known = {path.stem: path for path in sorted(TEMPLATES.glob("*.jinja"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"template={name!r} is neither one of {', '.join(known)} nor a file.")
    return path.read_text(encoding="utf-8")


# ---- commands --------------------------------------------------------------------------------------------------------


def make(options: Mapping[str, Any], folder: Path) -> None:
    """What `amft.model.make` calls: `source` and the fields of Settings."""
    options = dict(options)
    if "source" not in options:
        raise ValueError("options.source is missing: a model folder, or a hub id.")
    source = options.pop("source")
    known = [item.name for item in fields(Settings)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown options {', '.join(unknown)}; known: source, {', '.join(known)}.")
    prepare_model(source, folder, Settings(**options))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: see the top of this file. Exit status 2 for a wrong option or model, 1 where writing failed."""
    given = vars(_parser().parse_args(arguments))
    source, out, overwrite = given.pop("source"), given.pop("out"), given.pop("overwrite")
    try:
        changes = write_model(source, out, Settings(**given), overwrite)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: out={str(out)!r} cannot be written ({error}); give another folder.", file=sys.stderr)
        return 1
    print(f"{source} -> {out}")
    for name, (before, after) in changes.items():
        print(f"  {name:<24} {before} -> {after}")
    print(f"  weights: {given['weights']}; use it with actor_rollout_ref.model.path={out}")
    return 0


def write_model(source: str, out: Path, settings: Settings, overwrite: bool = False) -> dict[str, Any]:
    """`prepare_model` beside `out`, which appears when it is whole."""
    out = Path(os.path.abspath(out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / RECORD).is_file():
            raise ValueError(f"out={str(out)!r} exists and was not made by this command; give a new folder.")
        if not overwrite:
            raise ValueError(f"out={str(out)!r} exists; give another folder, or replace it with --overwrite.")
    if Path(source).is_dir() and Path(source).resolve() == out.resolve():
        raise ValueError(f"source and out are the same folder, {str(out)!r}; give another out.")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.new")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.mkdir()
        changes = prepare_model(source, unfinished, settings)
        if out.exists():
            shutil.rmtree(out)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return changes


def _parser() -> Parser:
    defaults = Settings()
    parser = Parser(
        prog="python -m recipe.amft.data.prepare_model", description="Write a model folder for long reasoning."
    )
    parser.add_argument("--source", required=True, metavar="DIR|OWNER/NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--template", default=defaults.template, help="name or Jinja file; default %(default)s")
    parser.add_argument("--rope-theta", type=float, default=defaults.rope_theta, help="default %(default)s")
    parser.add_argument("--max-position-embeddings", type=int, default=defaults.max_position_embeddings)
    parser.add_argument("--eos-token", default=defaults.eos_token, help="default %(default)s")
    parser.add_argument("--weights", default=defaults.weights, help="symlink | copy")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier preparation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
