"""Decides how a model is quantized, and fine-tunes it for that where asked."""
