"""Limits processes that handle what may be hostile or broken; imports nothing slow."""
