"""How tests are spread over processes, where pytest-xdist is there to do it."""

from __future__ import annotations

from typing import Any

import pytest

ONE_PROCESS = ("tests/e2e/",)
"""Folders of tests whose tests share what is dear to start: they stay together in one process."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`: a file's tests share its fixtures, so it is not spread; nor a folder of ONE_PROCESS.

    (`--dist loadgroup` would say the same by marks, but xdist 3.8 cannot group with pytest 9.2.)
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in ONE_PROCESS if file.startswith(folder)), file)

    return ByFile(config, log)
