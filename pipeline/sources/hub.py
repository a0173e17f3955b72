"""`org/name[@revision]`: a repository of the Hugging Face hub, downloaded into huggingface_hub's own cache.

A revision is a branch, a tag or a commit; without one it is the main branch, whose commit is looked up at each
build. What is in the cache works without a network. Where the hub is and where the cache lies is what
huggingface_hub reads (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .checkpoint import INDEX, PICKLES, SINGLE
from .huggingface import SMALL_FILES, open_folder
from .names import safe

if TYPE_CHECKING:
    from pipeline.recipe import SourceRecipe

    from .base import Source

REFERENCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
"""What such a MODEL looks like: repository and revision."""

_WANTED = (
    *SMALL_FILES,
    SINGLE,
    INDEX,
    "model-*-of-*.safetensors",
    "*_*/config.json",  # modules of sentence-transformers
    "*_*/model.safetensors",
)
_PICKLED = (*PICKLES, "pytorch_model-*-of-*.bin", "*_*/pytorch_model.bin")


def open_hub(model: str, recipe: SourceRecipe) -> Source:
    """The source that `model`, 'org/name' or 'org/name@revision', names, after downloading what it needs.

    Raises BadInput when there is no such repository or revision, when it is gated or private, when the hub cannot be
    reached and the cache does not hold it, and what `open_folder` refuses.
    """
    match = REFERENCE.fullmatch(model)
    if match is None:
        raise BadInput(f"{model!r} is no hub id; it looks like org/name or org/name@revision")
    repository, revision = match[1], match[2]
    patterns = [*_WANTED, *(("*.py",) if recipe.trust_remote_code else ())]
    folder = _snapshot(repository, revision, patterns)
    if recipe.allow_pickle and not any((folder / name).exists() for name in (SINGLE, INDEX)):
        folder = _snapshot(repository, revision, [*patterns, *_PICKLED])
    source = open_folder(folder, recipe, safe(repository.rpartition("/")[2]))
    return dataclasses.replace(source, reference=f"{repository}@{folder.name}")  # the commit


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of the revision's files in the cache, named by its commit. Raises BadInput."""
    from huggingface_hub import errors, snapshot_download

    shown = f"{repository}@{revision}" if revision else repository
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise BadInput(
            f"{repository} is gated on the hub: ask for access on its page, and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"no folder at {repository}, and no such repository on the hub; check the name, or log in with `hf auth "
            "login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(
            f"{repository} has no revision {revision!r} on the hub; give a branch, a tag or a commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise BadInput(
            f"no folder at {repository}; the hub cannot be reached, and the cache does not hold all of {shown}: "
            "connect, or download it where there is a network (`hf download`) and give the folder"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"{shown} cannot be had from the hub: {text:.300}") from error
