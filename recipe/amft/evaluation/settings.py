"""What an evaluation is: its benchmarks, how they are sampled, and the engine; checked when it is built.

Values come from three places, later ones win: `suite.common`, the benchmark's own entry under `suite.benchmarks`, and
the keys at the top of the configuration that override every benchmark (`samples=4`, `max_tokens=1024`).
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OVERRIDES = ("samples", "pass_at", "temperature", "top_p", "max_tokens", "limit")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Benchmark:
    """One line of the summary: rows, and how they are sampled and judged."""

    name: str
    files: tuple[str, ...] = ()  # parquet files, relative to data_dir, or to the folder that `make` fills
    make: str | None = None  # import path of make(options, folder), for data that are made on demand and cached
    options: Mapping[str, Any] = field(default_factory=dict)  # of `make`
    prepare: str = ""  # the command that writes `files`, for the error when they are missing
    data_source: str | None = None  # only rows of this source
    limit: int | None = None  # only the first rows
    samples: int = 1  # k of avg@k: episodes per row
    pass_at: tuple[int, ...] = ()  # k of pass@k, each at most `samples`
    temperature: float = 0.6
    top_p: float = 1.0
    max_tokens: int = 8192  # of a conversation behind its first prompt, the environment's messages included
    max_turns: int = 200  # answers in one episode
    env_id: str | None = None  # for rows that name no environment
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # over the row's own
    judge_again: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> env_kwargs of another verdict
    metrics: Mapping[str, str | None] = field(default_factory=dict)  # key of info -> key of info that weights it

    def __post_init__(self) -> None:
        where = f"suite.benchmarks.{self.name}"
        for name, least in (("samples", 1), ("max_tokens", 1), ("max_turns", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None or name != "limit":
                require_integer(f"{where}.{name}", value, least)
        require_number(f"{where}.temperature", self.temperature, 0, None)
        require_number(f"{where}.top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError(f"{where}.top_p=0 leaves no token; give a share above 0 (1.0: all), or temperature=0.")
        for name in ("files", "pass_at"):
            require_list(f"{where}.{name}", getattr(self, name))
        for name in ("options", "env_kwargs", "judge_again", "metrics"):
            require_mapping(f"{where}.{name}", getattr(self, name))
        if not self.files:
            raise ValueError(f"{where}.files={list(self.files)} names no file; give one or more parquet files.")
        for k in self.pass_at:
            require_integer(f"{where}.pass_at", k, 1)
            if k > self.samples:
                raise ValueError(
                    f"{where}.pass_at has {k}, but pass@{k} needs {k} samples per prompt and samples={self.samples}; "
                    f"give samples={k} or more, or another pass_at (pass_at=[] for none)."
                )
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"{where}: temperature=0 gives the same answer {self.samples} times; give samples=1, or a temperature."
            )


@dataclass(frozen=True)
class EngineSettings:
    """How vLLM runs. None is the choice for the machine: with a GPU bfloat16 and CUDA graphs, without one float32."""

    dtype: str | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.85
    max_model_len: int | None = None  # None: the model's max_position_embeddings
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    enforce_eager: bool | None = None
    kv_cache_gib: float | None = None  # None: what the GPU has left; on a CPU 0.25
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of vLLM's AsyncEngineArgs

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens"):
            require_integer(f"engine.{name}", getattr(self, name), 1)
        require_mapping("engine.extra", self.extra)
        if self.max_model_len is not None:
            require_integer("engine.max_model_len", self.max_model_len, 2)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"engine.dtype={self.dtype!r} is unknown; choose {', '.join(DTYPES)}, or null.")
        require_number("engine.gpu_memory_utilization", self.gpu_memory_utilization, 0, 1)
        if self.kv_cache_gib is not None:
            require_number("engine.kv_cache_gib", self.kv_cache_gib, 0, None)


@dataclass(frozen=True)
class EvaluationSettings:
    """The whole configuration; `benchmarks` in the order of the suite."""

    model_path: str
    suite: str
    benchmarks: tuple[Benchmark, ...]
    average: bool = False  # whether the mean over the benchmarks is a number of the suite
    data_dir: str = "data"
    cache_dir: str = "runs/cache"
    out: str | None = None  # None: runs/evaluation/MODEL/SUITE
    overwrite: bool = False
    merged_dir: str | None = None  # where the shards of a checkpoint are merged; None: in the checkpoint
    seed: int | None = 0  # of every request; None: the engine's own randomness
    concurrency: int = 512  # episodes at a time
    bootstrap: int = 10_000  # resamples
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        require_integer("concurrency", self.concurrency, 1)
        require_integer("bootstrap", self.bootstrap, 100)
        require_mapping("chat_template_kwargs", self.chat_template_kwargs)
        if not isinstance(self.overwrite, bool):
            raise ValueError(f"overwrite={self.overwrite!r} must be true or false.")
        if self.seed is not None:
            require_integer("seed", self.seed, 0)


def settings_from(values: Mapping[str, Any]) -> EvaluationSettings:
    """The checked settings of a composed configuration (plain containers); ValueError says what is wrong."""
    values = dict(values)
    values.pop("dry_run", None)
    only = values.pop("only", None)
    overrides = {name: values.pop(name, None) for name in OVERRIDES}
    suite = values.pop("suite", None)
    if not values.get("model_path"):
        raise ValueError(
            "model is not given; add model=PATH: a Hugging Face folder, a run folder, or a checkpoint "
            "(.../checkpoints/global_step_N)."
        )
    if not isinstance(suite, Mapping) or "benchmarks" not in suite:
        raise ValueError("suite is not given; add suite=NAME, a file of configs/suite (math_id, quickstart, ...).")
    _check_keys(suite, ("name", "average", "common", "benchmarks", "training"), "suite")
    benchmarks = _benchmarks(suite, {name: value for name, value in overrides.items() if value is not None}, only)
    engine = build(EngineSettings, values.pop("engine", None) or {}, "engine")
    given = {name: value for name, value in values.items() if value is not None or name == "seed"}
    name, average = suite.get("name") or "suite", bool(suite.get("average"))
    fixed = {"suite": name, "average": average, "benchmarks": benchmarks, "engine": engine}
    settings: EvaluationSettings = build(EvaluationSettings, given, "", **fixed)
    return settings


def _benchmarks(suite: Mapping[str, Any], overrides: Mapping[str, Any], only: Any) -> tuple[Benchmark, ...]:
    common = suite.get("common") or {}
    entries = {name: entry for name, entry in (suite["benchmarks"] or {}).items() if entry is not None}
    wanted = [only] if isinstance(only, str) else list(entries if only is None else only)
    for name in wanted:
        if name not in entries:
            raise ValueError(f"only={name}: the suite has no such benchmark; it has {nearest(name, entries)}.")
    chosen = []
    for name in entries:
        if name in wanted:
            path = f"suite.benchmarks.{name}"
            if not isinstance(entries[name], Mapping):
                raise ValueError(f"{path}={entries[name]!r} is no mapping; it holds files, samples, ...")
            chosen.append(build(Benchmark, {**common, **entries[name], **overrides}, path, name=name))
    if not chosen:
        raise ValueError("the suite has no benchmark left; give at least one under suite.benchmarks.")
    return tuple(chosen)


def build(cls: type, values: Mapping[str, Any], path: str, **fixed: Any) -> Any:
    """`cls(**values, **fixed)` with lists as tuples; ValueError names an unknown key and the nearest known ones."""
    known = [item.name for item in dataclasses.fields(cls) if item.name not in fixed]
    _check_keys(values, known, path)
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**tuples, **fixed)


def _check_keys(values: Mapping[str, Any], known: Any, path: str) -> None:
    for key in values:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise ValueError(f"{where} is not a known key; known: {nearest(str(key), known)}.")


def nearest(name: str, known: Any) -> str:
    """The known names, those most like `name` first."""
    return ", ".join(sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))


def require_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")


def require_number(name: str, value: Any, least: float, most: float | None) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= (most if most is not None else float("inf")):
        raise ValueError(f"{name}={value!r} must be a number of at least {least}{f', at most {most}' if most else ''}.")


def require_list(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"{name}={value!r} must be a list: {name.rpartition('.')[2]}=[{value}].")


def require_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r} must be a mapping, such as {{key: value}}.")
