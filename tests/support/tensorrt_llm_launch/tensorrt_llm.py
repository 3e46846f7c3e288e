"""TensorRT-LLM at its boundaries, for tests without a GPU: the LLM API, and the ranks behind `trtllm-llmapi-launch`.

It has the published names, signatures and ways to say no, and computes nothing: what `LLM` answers is arithmetic on the
prompt. Where it was launched, each pass really goes through all ranks, over MPI, and what each rank tells of itself is
printed as a line that begins with RANKS. What models are made of is in `tensorrt_llm_stand_ins`, which is put in place.

Source: `tensorrt_llm/llmapi/llm.py`, `tensorrt_llm/executor/result.py`, `tensorrt_llm/sampling_params.py`,
`tensorrt_llm/llmapi/{trtllm-llmapi-launch,mgmn_leader_node.py,mgmn_worker_node.py}`.
"""

import sys
from pathlib import Path

import tensorrt_llm_stand_ins

__version__ = "1.2.1"
__path__ = [str(Path(__file__).with_name("parts"))]  # tests hold no packages

_own = sys.modules[__name__]
_for_good = tensorrt_llm_stand_ins.installed()
_for_good.__enter__()
sys.modules[__name__] = _own
for _name in ("functional", "_torch"):
    setattr(_own, _name, sys.modules[f"{__name__}.{_name}"])

from tensorrt_llm.llmapi.llm import LLM, SamplingParams  # noqa: E402

__all__ = ["LLM", "SamplingParams"]
