"""Transforms: an equal model that is easier to quantize. Arithmetic only; each model kind folds the values in."""
