"""SavedModels: exported, opened, served, asked."""
