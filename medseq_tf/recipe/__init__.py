"""Recipes: a whole experiment in one YAML file, checked before anything runs."""
