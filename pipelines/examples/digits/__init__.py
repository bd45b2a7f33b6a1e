"""Handwritten digits of 8x8 pixels, bundled with scikit-learn."""
