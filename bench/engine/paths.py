"""Where a benchmark model lies in each engine's format. Imports nothing heavy: worker processes,
whose memory is measured, use this too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_MODEL = REPOSITORY / "python" / "treadle" / "demo"


@dataclass(frozen=True)
class ModelPaths:
    """One model in the formats of all engines."""

    name: str
    hf: Path
    gguf: Path
    ct2_float32: Path
    ct2_int8: Path

    def config(self) -> dict[str, object]:
        """The model's ``config.json``."""
        loaded: dict[str, object] = json.loads((self.hf / "config.json").read_text())
        return loaded

    def weight_bytes(self) -> int:
        """Bytes of the safetensors files, which is what an fp16 engine has to hold once."""
        return sum(f.stat().st_size for f in self.hf.glob("*.safetensors"))
