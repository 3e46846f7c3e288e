"""Where the stand-ins put `transformers`: see `tensorrt_llm`."""

import tensorrt_llm  # noqa: F401  which then is in this module's place
