"""`python -m recipe.amft.main [overrides]`: compose, check, run.

Without overrides this is the quickstart. `--cfg job` prints the composed configuration, `dry_run=true` the plan.
"""

import sys
from pathlib import Path

from recipe.amft.process import prepare_process

CONFIGS = Path(__file__).parents[2] / "configs"


def compose(overrides: list[str] | None = None):
    """The composed configuration for `overrides`, as the command line would give it (for tests and tools)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    prepare_process()
    register()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base=None):
        return hydra_compose("amft", overrides=overrides or [])


def register() -> None:
    """Make the defaults of recipe/amft/config.py and our resolvers known to Hydra."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from recipe.amft.config import defaults

    ConfigStore.instance().store(name="amft_defaults", node={"amft": defaults()})
    OmegaConf.register_new_resolver("amft_config_path", lambda name: str(CONFIGS / name), replace=True)


def run(config) -> None:
    """Check everything, then train; errors of the user are printed as one paragraph and exit with status 2."""
    from recipe.amft.preflight import preflight

    try:
        settings, folder, plan = preflight(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if config.dry_run:
        print(plan.report())
        return
    from recipe.amft.launch import train

    train(config, settings, folder)


def main() -> None:
    import hydra

    prepare_process()
    register()
    hydra.main(config_path=str(CONFIGS), config_name="amft", version_base=None)(run)()


if __name__ == "__main__":
    main()
