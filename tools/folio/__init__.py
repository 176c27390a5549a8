"""Everything that makes the built-in model `folio`: its text, its tokenizer, its training, its evaluation."""
