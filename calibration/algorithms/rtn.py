"""Round to nearest: each weight becomes the nearest value of its grid.

    code = round(w / s),  s = max|w| / largest code     over the weights that share s

The baseline of all papers on weight quantization; Jacob et al. 2018, arXiv:1712.05877, section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.schemes import Quantized, Scheme, quantize


def round_to_nearest(weight: npt.NDArray[np.floating[Any]], scheme: Scheme) -> Quantized:
    """`weight` [out, in] with scales from its own range. Raises BadInput when it is not finite."""
    return quantize(weight, scheme)
