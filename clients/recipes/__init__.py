"""Recipes that make the demo's adapters again."""
