"""How tests are spread over processes, where pytest-xdist is there to do it."""

from __future__ import annotations

from pathlib import Path

import pytest

ONE_PROCESS = ("e2e",)
"""Folders of tests whose tests share what is dear to start: they stay together in one process."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of one file share its fixtures, so a file is not spread; a folder of ONE_PROCESS neither."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here)
        group = place.parts[0] if place.parts[0] in ONE_PROCESS else str(place)
        item.add_marker(pytest.mark.xdist_group(group))
