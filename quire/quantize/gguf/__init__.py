"""A checkpoint written as a GGUF file, as llama.cpp's converter and quantizer would: the counterpart of `quire.loader.gguf`.

`metadata` says in llama.cpp's words what config.json says, `tokenizer` what the tokenizer's files say, `tensors` gives tensors
their names and rows their order, `mixtures` chooses each tensor's type, `blocks` and `super_blocks` round, `file` lays it out,
and `write` puts it together and reads the result again.
"""
