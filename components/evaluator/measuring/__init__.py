"""Measuring all candidates in one pass over the eval split."""
