"""The run folder, and what MLflow is told of it."""
