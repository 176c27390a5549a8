"""GGUF files: a model's configuration, tokenizer and weights in one file, as llama.cpp writes them.

`header` reads and checks a file, `config` and `tensors` say in Hugging Face's words what it holds, `blocks` decodes its weights.
"""
