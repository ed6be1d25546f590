"""Fitting guides: rewards, values, autoregressive rewards, experts, control vectors, preference weights."""
