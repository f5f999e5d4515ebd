"""Fewer bits: quantized and float16 models, what they lose, and which layers lose it."""
