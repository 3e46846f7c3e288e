"""Makes TensorRT-LLM know Arctic in the processes that do its ranks' work, before they take any.

Python imports it at its start, in every process of a group; in all others it does nothing. Their tasks name nothing of
ours that would bring the model along, and `trtllm-llmapi-launch` starts them by module names of its own.
"""

import sys

_RANKS = ("tensorrt_llm.llmapi.mgmn_leader_node", "tensorrt_llm.llmapi.mgmn_worker_node")

if any(name in sys.orig_argv for name in _RANKS):
    try:
        from arctic_workers.inference.engines.tensorrt_llm import register

        register()
    except Exception as error:
        # Of other exceptions the interpreter only prints that there was one, and goes on.
        raise SystemExit(f"TensorRT-LLM can't be made to know Arctic in this rank: {error!r}") from error
