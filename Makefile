# From a fresh clone: `make quickstart` or `make test`. Each builds .venv first (minutes, once) and skips that when it stands.
#   PYTHON=python3.12   the Python to build from (3.11 or 3.12)
#   STACK=auto|cpu|gpu  auto: gpu where nvidia-smi lists one
#   ARGS='...'          Hydra overrides for quickstart, pytest's arguments for test
#   JOBS=2              processes that share the test files out; each may run a whole job of 6 GiB
PYTHON ?= python3
STACK ?= auto
ARGS ?=
JOBS ?= 2
RUN := .venv/bin/python
PYTEST := $(RUN) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Without cached bytecode every process of a run compiles its imports again, which doubles the start.
unexport PYTHONDONTWRITEBYTECODE
# Many processes share the machine; more threads in each only fight.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help env quickstart test test-fast lint compare lock clean
help:
	@sed -n 's/^## //p' Makefile

## make env         build .venv, or find it standing
env:
	@$(PYTHON) tools/setup_env.py --stack $(STACK)

## make quickstart  one whole AMFT training job
quickstart: env
	$(RUN) -m recipe.amft.main $(ARGS)

## make test        every test
test: env
	$(PYTEST) $(ARGS)

## make test-fast   the tests without whole training jobs
test-fast: env
	$(PYTEST) -m 'not e2e' $(ARGS)

## make lint        ruff, mypy, import-linter
lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

## make compare     the benchmark against the alternatives
compare: env
	$(RUN) -m benchmarks.compare $(ARGS)

## make lock        resolve requirements/cpu.txt from pyproject.toml again
lock:
	@$(PYTHON) tools/setup_env.py --lock

## make clean       remove caches and the environment; runs/ and outputs/ stay
clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
