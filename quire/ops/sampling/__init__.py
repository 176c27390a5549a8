"""The sampler's mathematics on rows of logits, in numpy: the definition that the kernels follow, and what serves without them."""
