"""TensorRT-LLM behind the engine protocol: Arctic for its PyTorch backend, and what a manifest means to it.

TensorRT-LLM has no Arctic any more, so the model is brought to it from outside. `arguments` and `checkpoint`
import no TensorRT-LLM and run anywhere. `config`, `weights` and `modeling_arctic` are what it loads: they
import it, and `register` is to be called in every process that builds the model, before it does.

Written against the published source of the releases around 1.2.1, and never run on a GPU by its authors.
"""


def register() -> None:
    """Make TensorRT-LLM know Arctic, in this process: its configuration, its model, its weight mapper.

    Every rank unpickles its task from names and imports only what TensorRT-LLM names, so every rank's process has to
    call this first. Raises ImportError where TensorRT-LLM is not installed.
    """
    from arctic_workers.inference.engines.tensorrt_llm import config, modeling_arctic, weights  # noqa: F401

    config.register()
