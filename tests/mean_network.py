"""Settings of a network that trains in moments: one convolution, and a mean over the slices."""

TINY = {
    "input.size": 16,
    "model.encoder.filters": [4],
    "model.encoder.kernels": [3],
    "model.encoder.strides": [2],
    "model.encoder.paddings": [0],
    "model.encoder.fsm": None,
    "model.aggregator.name": "mean",
    "model.head.units": [],
    "augment": {},
    "sequence.policy": "even",
    "sequence.length": 4,
    "sequence.per_study": 1,
    "sequence.evaluation.length": 4,
    "fit.epochs": 1,
}
