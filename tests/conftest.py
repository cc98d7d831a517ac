"""verl picks its platform when it is first imported: every test process is prepared as a run's processes are."""

import pytest

from recipe.amft.process import prepare_process

prepare_process()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole jobs first: two processes share the files out, and the small ones fill what is left at the end."""
    items.sort(key=lambda item: (item.get_closest_marker("cluster") is None, item.get_closest_marker("e2e") is None))
