"""Captions of images by a vision-language model, once per distinct image."""
