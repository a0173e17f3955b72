"""How recipe fields are called on the command line; the commands and the repeating commands agree on it."""

from __future__ import annotations

import dataclasses
from typing import Any

from .section import Section

_NAMES = {
    ("target", "name"): "--target",
    ("target", "compute_capabilities"): "--compute-capability",
    ("target", "max_sizes"): "--max-size",
    ("target.builder", "decode_batches"): "--decode-batch",
    ("target.builder", "tactic_sources"): "--tactic-source",
    ("fuse", "disable"): "--disable-rule",
}


def option_name(section: str, field: str) -> str:
    """The option of a recipe field: `--max-length` for export.max_length. A section within another is called
    `target.builder`; its name is no part of its options' names."""
    return _NAMES.get((section, field), "--" + field.replace("_", "-"))


def changed_options(section: str, values: Section) -> list[str]:
    """Options for what differs from the defaults in a section; required fields are left out."""
    options: list[str] = []
    for field in dataclasses.fields(values):  # type: ignore[arg-type]  # every Section is a dataclass
        value: Any = getattr(values, field.name)
        if isinstance(value, Section):
            options += changed_options(f"{section}.{field.name}", value)
            continue
        if field.default is dataclasses.MISSING or value == field.default:
            continue
        name = option_name(section, field.name)
        if value is True:
            options.append(name)
        else:
            for item in value if isinstance(value, tuple) else (value,):
                options += [name, str(item)]
    return options
