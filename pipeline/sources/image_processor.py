"""A checkpoint's image processor as steps of the runtime: read from transformers' own and compared with it.

transformers fills in what preprocessor_config.json leaves out, and each class of processors may understand its
settings in its own way. So the ways that are known are tried, and what gives other numbers is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import Filter, Normalization, Preprocessing, Resize

from .files import read_json, read_optional_json
from .image_settings import check_settings

if TYPE_CHECKING:
    from PIL import Image

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
_NESTED = "image_processor"
"""Where newer checkpoints keep the former, in the latter."""

ALONE = f"Remove {PREPROCESSOR} (or {_NESTED} in {PROCESSOR}) to serve pixel_values alone"
"""What to do about a processor that is refused."""

TOLERANCE = 1e-6
"""Largest difference of a pixel value from transformers'. The arithmetic is the same, so it is 0 where it is right."""

_PROBES = ((37, 53), (331, 250), (64, 64), (40, 170))
"""Heights and widths of the pictures that processors are compared on: enlarged, reduced, square, wide."""


class Geometry(NamedTuple):
    """What happens to a picture's shape."""

    resize: Resize | None
    crops: tuple[tuple[int, int], ...]


def has_processor(folder: Path) -> bool:
    """Whether the checkpoint says how its images are prepared. Raises BadInput when the file cannot be read."""
    return (folder / PREPROCESSOR).is_file() or _NESTED in read_optional_json(folder / PROCESSOR)


def load_processor(folder: Path, trust_remote_code: bool) -> Any:
    """transformers' image processor of the checkpoint, the one that computes with Pillow and numpy.

    Raises BadInput when transformers cannot make it, or it has settings that are not known.
    """
    import transformers

    loader: Any = transformers.AutoImageProcessor
    try:
        processor = loader.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a wrong setting is met in many ways
        raise BadInput(
            f"transformers cannot make the image processor of {folder}: {' '.join(str(error).split()):.300}"
        ) from error
    check_settings(processor, _given(folder), f"{folder}: the image processor", ALONE)
    return processor


def preprocessing(processor: Any, channels: int, folder: Path) -> Preprocessing:
    """The steps that give the numbers of `processor` for pictures of 3 channels (RGB) or 1 (grey).

    Raises BadInput when none of the known ways does, or a setting has a value that is not supported.
    """
    if channels not in (1, 3):
        raise BadInput(
            f"{folder / 'config.json'}: num_channels is {channels}; images of 1 (grey) and 3 (RGB) are prepared. "
            f"{ALONE}"
        )
    name = type(processor).__name__
    departures = []
    for way in (_standard, _warped_or_cropped, _enlarged_by_an_eighth):
        geometry = way(processor, f"{folder} ({name})")
        if geometry is None:
            continue
        steps = _with_values(processor, geometry, channels)
        departure = _departure(processor, steps)
        if departure <= TOLERANCE:
            return steps
        departures.append(departure)
    raise BadInput(
        f"{folder}: the image processor {name} gives other pixels than the steps that are known (resize, center "
        f"crop, rescale, normalize, pad), by {min(departures, default=float('inf')):.3g} at least. {ALONE}"
    )


def _given(folder: Path) -> Mapping[str, Any]:
    """The settings as the checkpoint has them."""
    nested = read_optional_json(folder / PROCESSOR).get(_NESTED)
    return nested if isinstance(nested, dict) else read_json(folder / PREPROCESSOR)


def _standard(processor: Any, what: str) -> Geometry | None:
    """Resize, then crop around the centre: what most processors do."""
    resize = _resize(processor, what, 1.0) if processor.do_resize else None
    return Geometry(resize, _crop(processor))


def _warped_or_cropped(processor: Any, what: str) -> Geometry | None:
    """ConvNeXt's: sizes below 384 are cut out of a picture that is larger by 1 / crop_pct, others are warped."""
    edge = _size(processor.size).get("shortest_edge")
    crop_pct = getattr(processor, "crop_pct", None)
    if not processor.do_resize or not edge or not crop_pct:
        return None
    resample = _filter(processor, what)
    if edge < 384:
        resize = Resize(resample, shortest_edge=int(edge / crop_pct))
        return Geometry(resize, ((edge, edge), *_crop(processor)))
    return Geometry(Resize(resample, edge, edge), _crop(processor))


def _enlarged_by_an_eighth(processor: Any, what: str) -> Geometry | None:
    """LeViT's: the shorter side gets 256 / 224 of what the settings say."""
    if not processor.do_resize or "shortest_edge" not in _size(processor.size):
        return None
    return Geometry(_resize(processor, what, 256 / 224), _crop(processor))


def _resize(processor: Any, what: str, factor: float) -> Resize:
    size = _size(processor.size)
    resample = _filter(processor, what)
    if size.keys() == {"height", "width"}:
        return Resize(resample, size["height"], size["width"])
    if "shortest_edge" in size and size.keys() <= {"shortest_edge", "longest_edge"}:
        return Resize(
            resample,
            shortest_edge=int(factor * size["shortest_edge"]),
            longest_edge=size.get("longest_edge", 0),
        )
    raise BadInput(
        f"{what}: the size is {size}; height and width, or shortest_edge (and longest_edge) are supported"
    )


def _filter(processor: Any, what: str) -> Filter:
    """Pillow's name of the setting `resample`; bilinear without one, as transformers has it."""
    from PIL import Image

    numbers = {int(Image.Resampling[name.upper()]): name for name in get_args(Filter)}
    given = numbers.get(2 if processor.resample is None else processor.resample)
    if given is None:
        shown = ", ".join(f"{number} ({name})" for number, name in sorted(numbers.items()))
        raise BadInput(f"{what}: resample is {processor.resample!r}; supported are {shown}")
    name: Filter = given
    return name


def _crop(processor: Any) -> tuple[tuple[int, int], ...]:
    if not processor.do_center_crop:
        return ()
    size = _size(processor.crop_size)
    return ((size["height"], size["width"]),)


def _size(size: Any) -> dict[str, int]:
    """transformers' SizeDict as a plain one, without what is not set."""
    return {name: int(value) for name, value in dict(size or {}).items()}


def _with_values(processor: Any, geometry: Geometry, channels: int) -> Preprocessing:
    """All steps of `processor`, with this geometry."""
    normalizations = []
    if processor.do_normalize:
        normalizations.append(_normalization(processor, processor.image_mean, channels))
    if getattr(processor, "include_top", False):  # EfficientNet's second one
        normalizations.append(_normalization(processor, 0.0, channels))
    pad = _size(processor.pad_size) if processor.do_pad else {}
    return Preprocessing(
        channels=channels,
        over_white=bool(processor.do_convert_rgb) and channels == 3,
        resize=geometry.resize,
        crops=geometry.crops,
        scale=float(processor.rescale_factor) if processor.do_rescale else None,
        normalizations=tuple(normalizations),
        pad=(pad["height"], pad["width"]) if pad else None,
    )


def _normalization(processor: Any, mean: Any, channels: int) -> Normalization:
    """With one number a channel. Raises BadInput when there are more or fewer."""
    each = [
        (float(given),) * channels if isinstance(given, (int, float)) else tuple(map(float, given))
        for given in (mean, processor.image_std)
    ]
    for name, numbers in zip(("image_mean", "image_std"), each, strict=True):
        if len(numbers) != channels:
            raise BadInput(
                f"{name} of {type(processor).__name__} has {len(numbers)} numbers; the model's images have {channels} "
                "channels, and each needs one"
            )
    return Normalization(*each)


def _departure(processor: Any, steps: Preprocessing) -> float:
    """Largest difference from transformers over the probes; infinite where shapes differ.

    Raises BadInput when transformers itself cannot do what the settings say.
    """
    import numpy as np

    from model_repo.runtime.images import Preprocessor

    ours = Preprocessor(steps)
    worst = 0.0
    for picture in _pictures(steps.channels):
        try:
            (expected,) = processor(images=[picture], return_tensors="np")["pixel_values"]
        except Exception as error:  # see load_processor
            raise BadInput(
                f"transformers' {type(processor).__name__} does not work with its own settings: "
                f"{' '.join(str(error).split()):.300}"
            ) from error
        try:
            found = ours.prepare(picture).values
        except (BadInput, ValueError):  # as a way that does not fit may end
            return float("inf")
        if found.shape != expected.shape:
            return float("inf")
        worst = max(worst, float(np.abs(found - expected.astype(np.float32)).max()))
    return worst


def _pictures(channels: int) -> list[Image.Image]:
    """Noise over a gradient, of several sizes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    pictures = []
    for height, width in _PROBES:
        slope = np.linspace(0, 160, width)[np.newaxis, :, np.newaxis]
        pixels = (slope + random.uniform(0, 95, (height, width, channels))).astype(np.uint8)
        pictures.append(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))
    return pictures
