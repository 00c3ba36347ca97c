"""Which slices, and which pixels, a diagnosis rests on."""
