"""Continuous batching: which rows run in the next step, where their keys and values lie, which token comes out."""
