"""Pages for people: figures, the report, the model card."""
