"""Adapters from adapters, and what can be said of one: pure functions of canonical forms. Knows of no store."""
