"""What a model is shown: which slices, in what order, augmented, in batches."""
