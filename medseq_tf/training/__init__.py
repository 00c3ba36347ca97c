"""The training loop, pretraining, and the command `train`."""
