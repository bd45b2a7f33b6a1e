"""Trains the model module's Keras model."""
