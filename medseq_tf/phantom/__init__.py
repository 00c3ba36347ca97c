"""The phantom: a synthetic head with lesions, drawn from a seed, and its writers."""
