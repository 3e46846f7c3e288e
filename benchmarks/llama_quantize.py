"""Writes a GGUF anew in Q8_0; runs in the environment of `tests/support/peers.py` with nothing of this project.

python llama_quantize.py FROM.gguf TO.gguf
"""

from __future__ import annotations

import sys

import llama_cpp


def main(source: str, target: str) -> None:
    """See the module's docstring."""
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    asked.allow_requantize = True  # to a wider format
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), asked):
        sys.exit(f"llama.cpp does not quantise {source}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
