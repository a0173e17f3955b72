"""transformers' loading of a checkpoint, and what it only warns of: weights missing, misshapen, or no numbers."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

UNREAD = ("pooler.",)
"""Parameters that the exported graph of a text model does not read, so a checkpoint may lack them."""

_SHOWN = 3


def load_pretrained(
    loader: Any,
    folder: Path,
    *,
    pickled: bool,
    trust_remote_code: bool,
    unread: tuple[str, ...] = UNREAD,
    mapped: Callable[[], Mapping[str, Tensor] | None] = lambda: None,
) -> PreTrainedModel:
    """The checkpoint in `folder` by transformers' auto class `loader`: float32, evaluation mode, no gradients.

    `unread`: beginnings of the names of weights that may be missing. `mapped` gives the checkpoint's tensors in float32
    from elsewhere, for models that take them as they are; parameters then share their memory. Of a checkpoint that is
    quantized they are the float model's, and the config's word of quantization is left out.

    Raises BadInput when transformers cannot load it, when tensors are missing, have another shape than the model's,
    or hold NaN or infinity. Tensors that the model does not read are told on stderr.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are named below
    }
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        tensors = mapped()
        if tensors is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
        if tensors is None:
            model, report = loader.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=not pickled,
                weights_only=True,
                **options,
            )
        else:
            with torch.device("meta"):
                made = type(loader.from_config(config, trust_remote_code=trust_remote_code))
            model, report = made.from_pretrained(None, config=config, state_dict=dict(tensors), **options)
    except (pickle.UnpicklingError, EOFError) as error:
        raise BadInput(
            f"the pickled weights in {folder} hold more than tensors, or are not whole; only tensors "
            "are unpickled, so convert the checkpoint to safetensors where it comes from"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"transformers cannot load {folder}: {error}") from error
    _check_report(report, type(model).__name__, folder, unread)
    _check_finite(model, folder)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def _check_report(report: Mapping[str, Any], model: str, folder: Path, may_lack: tuple[str, ...]) -> None:
    """transformers fills what a checkpoint lacks with random numbers, and only warns. Raises BadInput."""
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise BadInput(
            f"{folder} has {len(wrong)} weights of {model} in another shape ({_names(key for key, *_ in wrong)}): "
            f"{name} is {list(found)}, the config asks for {list(wanted)}; checkpoint and config.json do not belong "
            "together"
        )
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(may_lack))
    if lacking:
        raise BadInput(
            f"{folder} lacks {len(lacking)} weights of {model} ({_names(lacking)}); checkpoint and config.json do not "
            "belong together"
        )
    unread = sorted(report["unexpected_keys"])
    if unread:
        _note(f"note: {folder} holds {len(unread)} tensors that {model} does not read ({_names(unread)})")


@functools.cache
def _note(text: str) -> None:
    """Says it once in a process: a model is loaded for its export, and as its own reference."""
    print(text, file=sys.stderr, flush=True)


def _check_finite(model: PreTrainedModel, folder: Path) -> None:
    """Raises BadInput naming the weights that hold NaN or infinity. Extremes take no memory of a weight's size."""
    bad = []
    for name, parameter in model.named_parameters():
        least, most = parameter.detach().aminmax() if parameter.numel() else (parameter.sum(),) * 2
        if not (bool(least.isfinite()) and bool(most.isfinite())):  # NaN is passed on by aminmax
            bad.append(name)
    if bad:
        raise BadInput(
            f"{folder} has {len(bad)} weights that hold NaN or infinity ({_names(bad)}); get the checkpoint again, or "
            "from an earlier step of its training"
        )


def _names(keys: Iterable[str]) -> str:
    """The first few, and that there are more."""
    names = list(keys)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
