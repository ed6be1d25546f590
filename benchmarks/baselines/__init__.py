"""Strategies as a careful user would write them on transformers' `generate`, to compare the server with."""
