"""Training data: the user's folder, Examples artifacts, spans and the calibration set."""
