"""mmgen: text-to-image diffusion as a chain of small stages. Public names, loaded when first used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Run from a source tree, Python finds this folder before an installed wheel; the floors stand beside it then.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "pipelines" / "__init__.py").is_file():
    __path__.append(str(_root))

_PUBLIC = {
    "load": "mmgen.pipelines.loading",
    "TextToImage": "mmgen.pipelines.text_to_image",
    "MmgenPipeline": "mmgen.pipelines.diffusers_pipeline",
    "Cascade": "mmgen.pipelines.cascade",
    "Request": "mmgen.types",
    "Result": "mmgen.result",
    "StageSettings": "mmgen.types",
    "MmgenError": "mmgen.errors",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
