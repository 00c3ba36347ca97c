"""The prepared data set: written by `prepare`, read by everything else; its splits and leaks."""
