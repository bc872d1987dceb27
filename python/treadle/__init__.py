"""Treadle: an LLM inference engine.

    import treadle

    engine = treadle.Engine.from_pretrained(treadle.demo_model_path())
    generator = engine.create_instance()
    input_ids = engine.tokenizer.encode(engine.model.get_prompt("浙江的省会在哪?"))
    for outputs in generator.stream_infer(session_id=0, input_ids=[input_ids], return_text=True):
        print(outputs[0].new_text, end="", flush=True)

Names are imported when they are first used, so that ``import treadle`` is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle import errors
    from treadle.config import EngineConfig
    from treadle.engine import Engine
    from treadle.engine import Engine as TurboMind
    from treadle.errors import TreadleError
    from treadle.generation_config import GenerationConfig
    from treadle.gpu import build_info
    from treadle.pipelines import Pipeline, Response, pipeline

    __version__: str

__all__ = [
    "Engine",
    "EngineConfig",
    "GenerationConfig",
    "Pipeline",
    "Response",
    "TreadleError",
    "TurboMind",
    "__version__",
    "build_info",
    "demo_model_path",
    "errors",
    "pipeline",
]

_HOME = {
    "Engine": "treadle.engine:Engine",
    "EngineConfig": "treadle.config:EngineConfig",
    "GenerationConfig": "treadle.generation_config:GenerationConfig",
    "Pipeline": "treadle.pipelines:Pipeline",
    "Response": "treadle.pipelines:Response",
    "TreadleError": "treadle.errors:TreadleError",
    "TurboMind": "treadle.engine:Engine",
    "build_info": "treadle.gpu:build_info",
    "pipeline": "treadle.pipelines:pipeline",
}


def demo_model_path() -> str:
    """Directory of the bundled demo model, a chat model of 8 million parameters."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("treadle._engine").version()
    elif name == "errors":
        return importlib.import_module("treadle.errors")
    elif name in _HOME:
        module, attribute = _HOME[name].split(":")
        value = getattr(importlib.import_module(module), attribute)
    else:
        raise AttributeError(f"module 'treadle' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
