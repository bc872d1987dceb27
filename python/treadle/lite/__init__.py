"""Tools that make quantised models: ``treadle lite`` on the command line.

They need torch, transformers and safetensors (``pip install "treadle[quantize]"``), which are
imported when one of these names is first used.

A model goes through one decoder layer at a time (``walk``): a layer is read from the checkpoint
(``checkpoint``), run by transformers on the samples (``decoder_layer``), measured (``statistics``),
and, by AWQ, scaled and clipped (``awq_search``), rounded (``int4``) and written (``writer``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.lite.awq_model import auto_awq
    from treadle.lite.calibration import calibrate
    from treadle.lite.gptq_model import gptq
    from treadle.lite.kv_ranges import kv_qparams

__all__ = ["auto_awq", "calibrate", "gptq", "kv_qparams"]

_HOME = {
    "auto_awq": "awq_model",
    "calibrate": "calibration",
    "gptq": "gptq_model",
    "kv_qparams": "kv_ranges",
}
_NEEDED = ("torch", "transformers", "safetensors")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'treadle.lite' has no attribute {name!r}")
    for package in _NEEDED:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'treadle.lite needs {package}: pip install "treadle[quantize]" ({error})'
            ) from error
    value = getattr(importlib.import_module(f"treadle.lite.{_HOME[name]}"), name)
    globals()[name] = value
    return value
