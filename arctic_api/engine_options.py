"""The options of engines that a manifest may set: an allow-list for the pinned release of each, under its own names.

What a manifest says elsewhere (lengths, batches, parallelism, formats) is no option: an engine is told each thing once.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from arctic_api.common import Resource

EngineName = Literal["tensorrt-llm", "vllm", "native", "nim"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class EngineOptions(Resource):
    """Options of the engine that `engine.name` names; those of the others are refused."""

    # The engines' own names, which are not in camelCase.
    model_config = ConfigDict(alias_generator=None)

    enforce_eager: bool | None = None
    """vllm: run without compiled graphs."""
    block_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """vllm: tokens of a block of the cache."""


OPTIONS_OF: dict[EngineName, tuple[str, ...]] = {
    "vllm": ("enforce_eager", "block_size"),
    "tensorrt-llm": (),
    "native": (),
    "nim": (),
}
"""Names of the options that each engine takes."""
