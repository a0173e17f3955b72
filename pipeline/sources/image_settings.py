"""The settings of transformers' image processors: those that become steps, and those that change no pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_repo.runtime.errors import BadInput

READ = frozenset(
    {
        "do_convert_rgb",
        "do_resize",
        "size",
        "default_to_square",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_pad",
        "pad_size",
    }
)
"""Settings that become steps."""

READ_BY_SOME = frozenset({"crop_pct", "include_top"})
"""Settings of some processors only (ConvNeXt's, EfficientNet's)."""

OF_FILES = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "auto_map",
        "_valid_processor_keys",
        "model_input_names",
        "use_fast",
        "backend",
    }
)
"""Who reads the settings, and how."""

OF_CALLERS = frozenset(
    {"return_tensors", "device", "disable_grouping", "image_seq_length", "input_data_format"}
)
OF_TRAINING = frozenset(
    {
        "format",
        "annotations",
        "masks_path",
        "return_segmentation_masks",
        "do_convert_annotations",
        "do_reduce_labels",
        "reduce_labels",
    }
)
OLD_NAMES = frozenset({"max_size", "pad_and_return_pixel_mask", "use_square_size"})
"""Settings that transformers turns into others when it reads them."""

KNOWN = READ | READ_BY_SOME | OF_FILES | OF_CALLERS | OF_TRAINING | OLD_NAMES


def check_settings(processor: Any, given: Mapping[str, Any], what: str, advice: str) -> None:
    """Raises BadInput for a setting that is on and that nobody here reads: of the processor, or `given` in its file.

    `what` and `advice` begin and end the message.
    """
    of_class = {name: getattr(processor, name, None) for name in processor._valid_kwargs_names}
    settings = {**given, **of_class}
    strange = sorted(name for name, value in settings.items() if name not in KNOWN and _is_on(name, value))
    if strange:
        raise BadInput(
            f"{what} {type(processor).__name__} has the setting {strange[0]!r} ({settings[strange[0]]!r:.80}), which "
            f"is not supported; known are {', '.join(sorted(READ))}. {advice}"
        )


def _is_on(name: str, value: Any) -> bool:
    if name == "data_format":
        return value is not None and getattr(value, "value", value) != "channels_first"
    return bool(value)
