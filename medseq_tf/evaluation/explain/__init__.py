"""Which slices, and which pixels, a prediction rests on."""
