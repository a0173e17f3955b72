"""Files of the export that an engine takes along."""

from __future__ import annotations

from pathlib import Path

from model_repo.runtime.engine_files import EXAMPLE

from .context import CHAT_TEMPLATE, EXAMPLES, TOKENIZER, BuildContext

_NAMES = {TOKENIZER: "tokenizer.json", CHAT_TEMPLATE: "chat_template.jinja", EXAMPLES: EXAMPLE}
"""What the runtime calls them."""


def files_beside(context: BuildContext) -> dict[str, Path]:
    """By their names beside the engine."""
    return {_NAMES[path.name]: path for path in context.artifact_files("export") if path.name in _NAMES}
