"""Files of llama.cpp (GGUF): a Llama is read from one, an Arctic is written to one, each with its tokenizer."""
