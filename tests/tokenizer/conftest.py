"""Property tests here load tokenizers on first use, so single examples have no deadline."""

from hypothesis import settings

settings.register_profile("tokenizer", deadline=None)
settings.load_profile("tokenizer")
