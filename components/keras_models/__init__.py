"""Keras models in memory: their layers, promises and forms."""
