"""vLLM: the engine around it, and the Arctic model that it no longer ships, as a plugin of its own kind.

vLLM has an environment of its own, as it pins another torch. What imports vLLM is therefore imported late, and the
plugin (`plugin`, `config`, `model`, `experts`) by vLLM itself, in each of its processes, through an entry point.
"""
