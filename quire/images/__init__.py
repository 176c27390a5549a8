"""Images on their way into a prompt: where they may come from, safe decoding, the tower's input, placeholders. No torch."""

from quire.images.placeholders import place_images
from quire.images.processor import Picture
from quire.images.reader import ImageReader

__all__ = ["ImageReader", "Picture", "place_images"]
