"""`python -m recipe.amft.main [overrides]`: compose, check, run.

Without overrides this is the quickstart. `--cfg job` prints the composed configuration, `dry_run=true` the plan.
"""

import difflib
import sys
from pathlib import Path

from recipe.amft.process import prepare_process

CONFIGS = Path(__file__).parents[2] / "configs"
# `sft_loss` is not one of them: it sets keys in whatever method, as an override does.
PRESET_GROUPS = ("hardware", "model", "task", "scale", "method", "experiment")


def compose(overrides: list[str] | None = None):
    """The composed configuration for `overrides`, as the command line would give it (for tests and tools)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    prepare_process()
    register()
    around = GlobalHydra.instance().hydra  # there is one within `main`
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base=None):
            config = hydra_compose("amft", overrides=overrides or [], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = around
    with open_dict(config):
        config.presets = presets(config.pop("hydra").runtime)
    return config


def presets(runtime) -> list[str]:
    """The chosen file of each group, as overrides that compose them again; `runtime` is Hydra's record of this run."""
    chosen = [f"{group}={runtime.choices[group]}" for group in PRESET_GROUPS if runtime.choices.get(group)]
    sources = [source for source in runtime.config_sources if source.provider not in ("hydra", "main", "schema")]
    places = [f"{source.schema}://{source.path}" for source in sources]
    return [*chosen, f"hydra.searchpath=[{','.join(places)}]"]


def register() -> None:
    """Make the defaults of recipe/amft/config.py and our resolvers known to Hydra."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from recipe.amft.config import defaults

    ConfigStore.instance().store(name="amft_defaults", node={"amft": defaults()})
    OmegaConf.register_new_resolver("amft_config_path", lambda name: str(CONFIGS / name), replace=True)


def run(config) -> None:
    """Check everything, then train; errors of the user are printed as one paragraph and exit with status 1."""
    from hydra.core.hydra_config import HydraConfig

    from recipe.amft.preflight import preflight

    config.presets = presets(HydraConfig.get().runtime)
    try:
        settings, folder, plan = preflight(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if config.dry_run:
        print(plan.report())
        return
    from recipe.amft.launch import train

    train(config, settings, folder)


def check_names(arguments: list[str]) -> None:
    """Exits with the nearest names for a `method=NAME`, or another group's, that is not there."""
    if any(argument.startswith(("--config-dir", "-cd", "hydra.searchpath")) for argument in arguments):
        return  # files of the user's own
    for argument in arguments:
        group, _, name = argument.lstrip("+").partition("=")
        if group not in (*PRESET_GROUPS, "sft_loss") or name in ("", "null"):
            continue
        files = (CONFIGS / group).rglob("*.yaml")
        known = [str(path.relative_to(CONFIGS / group).with_suffix("")) for path in files]
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=len(known), cutoff=0.0)
            sys.exit(f"error: {group}={name} is unknown; choose one of {', '.join(near)}.")


def main() -> None:
    import hydra

    prepare_process()
    register()
    check_names(sys.argv[1:])
    hydra.main(config_path=str(CONFIGS), config_name="amft", version_base=None)(run)()


if __name__ == "__main__":
    main()
