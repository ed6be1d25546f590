"""Number formats of weights; apart from the rest of the engine, so that a command line need not load it."""

from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
