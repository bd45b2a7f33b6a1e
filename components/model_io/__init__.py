"""Models in files: Keras, SavedModel, and graphs without layers."""
