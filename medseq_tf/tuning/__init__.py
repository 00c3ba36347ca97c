"""The search for a recipe: space, trials, oracles, and the command `tune`."""
