"""Images on their way into a prompt: where they may come from, safe decoding, the tower's input, placeholders. No torch.

Pillow, which takes a while to import, is loaded by `decode`, `processor` and `reader` only.
"""
