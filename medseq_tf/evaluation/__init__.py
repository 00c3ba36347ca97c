"""Predictions for studies, and what they are worth: metrics, comparisons, explanations."""
