"""What README and docs tell a user to type exists: every override composes, every make target is there."""

import re
import shlex
from pathlib import Path

import pytest

from recipe.amft.main import compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def lines_with(pattern: str) -> list[str]:
    found = [match for page in PAGES for match in re.findall(pattern, page.read_text(), re.MULTILINE)]
    assert found, pattern
    return sorted(set(found))


@pytest.mark.parametrize("line", lines_with(r"^ {4}python -m recipe\.amft\.main +([^#\n]+)"))
def test_documented_overrides_compose(line):
    """Hydra accepts every documented override: no key that has gone, no group that was renamed."""
    overrides = [word for word in shlex.split(line) if not word.startswith("--") and word != "job"]
    config = compose(overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "amft.run_dir":
            assert config.amft.run_dir == value


@pytest.mark.parametrize("arguments", lines_with(r"^ {4}make quickstart ARGS=\"([^\"]+)\""))
def test_documented_quickstart_arguments_compose(arguments):
    """The same for the overrides that are passed through make."""
    compose(shlex.split(arguments))


@pytest.mark.parametrize("target", lines_with(r"make (quickstart|test|compare|lint)\b"))
def test_documented_make_targets_exist(target):
    """The Makefile has them."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", lines_with(r"\]\((?!http)([^)#]+)\)"))
def test_links_between_pages_lead_somewhere(link):
    """Relative links are files of the repository."""
    assert any((page.parent / link).exists() for page in PAGES)


def test_every_metric_of_a_step_is_explained():
    """docs/metrics.md names what the trainer and the methods log under our own name spaces."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    recipe = ROOT / "recipe" / "amft"
    sources = [recipe / "trainer.py", *sorted(recipe.glob("step_*.py")), *sorted((recipe / "methods").glob("*.py"))]
    named = {
        name
        for source in sources
        for name in re.findall(r'"((?:controller|meta|data|mixture|actor)/[a-z_]+)"', source.read_text())
    }
    assert named
    missing = sorted(name for name in named if name not in text and name not in ("actor/entropy",))
    assert not missing
