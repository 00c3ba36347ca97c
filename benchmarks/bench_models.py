"""Takes nothing; prints how long a training step of paper 1's network takes here and elsewhere.

In alternating rounds of one process, TensorFlow and PyTorch with as many threads each, on batches
of 16 studies of 15 slices of 64 x 64: the recipe `fsm_bilstm` (weights shared by the slices) and
the same with weights per position, beside PyTorch built as the paper's code is (a Python loop over
studies and positions) and PyTorch without a loop, in both memory layouts. Then this package's
`TimeDistributed` beside `keras.layers.TimeDistributed` in the same model, 40 slices, half of
them padding: the step, and the time from building the model to the end of its first step. Last, the
encoder's convolutions, forward and backward, as a share of the machine's own matrix product.

A ratio is the peer's time by ours: median of the rounds and its quartiles.

    python benchmarks/bench_models.py [--rounds 30] [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import torch._dynamo  # ahead of TensorFlow: the LLVM that comes with it does not load behind

# isort: split
import keras
import numpy as np
import tensorflow as tf
import torch_peers
from side_by_side import Ratio, Time, aim, alternate, machine, median, ratio, table

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.models import losses
from medseq_tf.models.aggregators import build_aggregator
from medseq_tf.training.updates import build_optimizer, learning_rate

BATCH, STEPS, SIDE = 16, 15, 64
LONG = 40
PER_POSITION = ("model.encoder.weights=per_position", f"model.encoder.positions={STEPS}")
TARGETS = {
    "loop": 10.0,
    "folded": 1.2,
    "per position, loop": 8.0,
    "keras step": 2.0,
    "keras first": 5.0,
}


# ------------------------------------------------------------------------------------- the models


class KerasTimeDistributed(keras.layers.TimeDistributed):
    """Keras's own layer in the place of this package's, which also takes lengths."""

    def call(self, inputs, training=None, lengths=None):
        return super().call(inputs, training=training)


def preset(*settings: str) -> recipes.Experiment:
    """The recipe, read out by the last states, as PyTorch's networks are."""
    return recipes.load("fsm_bilstm", ["model.aggregator.readout=concat", *settings])


def build(*settings: str) -> models.SequenceClassifier:
    """The recipe's model for one label."""
    recipe = preset(*settings)
    return models.build(recipe.model, (SIDE, SIDE, 1), labels=1, seed=0)


def build_with_keras_layer() -> models.SequenceClassifier:
    """The same with Keras's `TimeDistributed`, which needs to know the number of steps."""
    recipe = preset().model
    slice_shape = (SIDE, SIDE, 1)
    stack = models.ENCODERS["conv_fsm"](recipe.encoder, 0, True).slices_to_features.layer
    layer = KerasTimeDistributed(stack)
    layer.build((None, LONG, *slice_shape))
    model = models.SequenceClassifier(
        models.Encoder(layer, recipe.encoder.dropout),
        build_aggregator(recipe.aggregator, slice_shape, seed=0),
        models.Head(1, **recipe.head.model_dump()),
        slice_shape,
    )
    model.build()
    return model


def training_step(model, steps: int | None = None) -> Callable[..., tf.Tensor]:
    """The update of `medseq_tf.training.updates`, in one graph for all batches."""
    recipe = preset()
    loss = losses.build(recipe.loss, np.array([[0.0], [1.0]], np.float32))
    rate = learning_rate(recipe.optimizer, updates=10_000)
    optimizer = build_optimizer(recipe.optimizer)
    optimizer.build(model.trainable_variables)
    signature = [
        tf.TensorSpec((None, steps, SIDE, SIDE, 1), tf.float32),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 1), tf.float32),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def step(slices, lengths, labels):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            logits = model({"slices": slices, "lengths": lengths}, training=True)
            elements, known = loss.elementwise(labels, logits)
            total = tf.reduce_sum(elements)
        gradients = tape.gradient(total, [v.value for v in variables])
        known = tf.maximum(tf.reduce_sum(known), 1.0)
        optimizer.learning_rate.assign(rate(optimizer.iterations))
        optimizer.apply([g / known for g in gradients], variables)
        return total

    return step


def batch(steps: int, lengths) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A batch of noise."""
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(BATCH, steps, SIDE, SIDE, 1)).astype(np.float32)
    labels = rng.integers(0, 2, (BATCH, 1)).astype(np.float32)
    return tf.constant(slices), tf.constant(np.int32(lengths)), tf.constant(labels)


# -------------------------------------------------------------------------------------- the rounds


def steps_beside_pytorch(rounds: int) -> None:
    """Prints the rows of a training step."""
    slices, lengths, labels = batch(STEPS, np.full(BATCH, STEPS))
    torch_slices = torch.from_numpy(slices.numpy().transpose(0, 1, 4, 2, 3).copy())
    torch_labels = torch.from_numpy(labels.numpy())
    with torch.no_grad():
        torch_peers.check(1)
        torch_peers.check(torch_peers.POSITIONS)

    def ours(*settings: str) -> Callable[[], np.ndarray]:
        step = training_step(build(*settings))
        return lambda: step(slices, lengths, labels).numpy()

    def theirs(network) -> Callable[[], float]:
        return torch_peers.training_step(network, torch_slices, torch_labels)

    shared, loop, separate = "ours, shared weights", "PyTorch, loop", "ours, per position"
    works = {
        shared: ours(),
        separate: ours(*PER_POSITION),
        loop: theirs(torch_peers.Looped()),
        "PyTorch, folded": theirs(torch_peers.Folded()),
        "PyTorch, folded, channels last": theirs(
            torch_peers.Folded().to(memory_format=torch.channels_last)
        ),
        "PyTorch, grouped": theirs(torch_peers.Folded(torch_peers.POSITIONS)),
        "PyTorch, grouped, channels last": theirs(
            torch_peers.Folded(torch_peers.POSITIONS).to(memory_format=torch.channels_last)
        ),
    }
    times = alternate(works, rounds)
    print(f"\ntraining step, {BATCH} x {STEPS} x {SIDE} x {SIDE}, {rounds} rounds")
    row = table({"model": 32, "ms": 7, "by processor": 12})
    for name, took in times.items():
        row(name, *(f"{1e3 * seconds:.1f}" for seconds in median(took)))
    folded = min(list(works)[3:5], key=lambda name: median(times[name]).clock)
    grouped = min(list(works)[5:7], key=lambda name: median(times[name]).clock)
    print()
    row = ratio_table()
    row(f"{shared} / {loop}", times[loop], times[shared], TARGETS["loop"])
    row(f"{shared} / {folded}", times[folded], times[shared], TARGETS["folded"])
    row(f"{separate} / {loop}", times[loop], times[separate], TARGETS["per position, loop"])
    row(f"{separate} / {grouped}", times[grouped], times[separate], None)


def ratio_table() -> Callable[[str, list[Time], list[Time], float | None], None]:
    """Prints the head of a table of ratios; gives what prints a row."""
    row = table({"ours / peer": 52, "times as fast": 20, "by processor": 12, "target": 6})

    def compared(name: str, peer: list[Time], ours: list[Time], target: float | None) -> None:
        found: Ratio = ratio(peer, ours)
        row(name, found, f"{found.processor:.2f}", target or "")
        if target:
            aim(name, found, target)

    return compared


def beside_keras_layer(rounds: int, first_rounds: int) -> None:
    """Prints the rows of `TimeDistributed`, and how often a step is traced."""
    lengths = np.full(BATCH, LONG // 2) + np.tile([-4, 4], BATCH // 2)
    given = batch(LONG, lengths)

    def first(make: Callable, steps: int | None) -> float:
        tf.keras.backend.clear_session()
        return float(training_step(make(), steps)(*given))

    first_steps = alternate(
        {"ours": lambda: first(build, None), "Keras": lambda: first(build_with_keras_layer, LONG)},
        first_rounds,
        warm=0,
    )
    step = training_step(build())
    keras_step = training_step(build_with_keras_layer(), LONG)
    times = alternate(
        {"ours": lambda: step(*given).numpy(), "Keras": lambda: keras_step(*given).numpy()}, rounds
    )
    print(f"\nTimeDistributed, {BATCH} x {LONG} x {SIDE} x {SIDE}, half of it padding")
    row = table({"": 20, "ours": 8, "Keras": 8})
    row("step, ms", *(f"{1e3 * median(t).clock:.0f}" for t in times.values()))
    row("first step, s", *(f"{median(t).clock:.1f}" for t in first_steps.values()))
    print()
    row = ratio_table()
    row("TimeDistributed / Keras's, a step", times["Keras"], times["ours"], TARGETS["keras step"])
    name = "TimeDistributed / Keras's, model to first step"
    row(name, first_steps["Keras"], first_steps["ours"], TARGETS["keras first"])
    for steps in (1, 2, 7, 15, 41, 60):
        few = batch(steps, np.full(BATCH, steps))
        step(*(tensor[: 1 + steps % BATCH] for tensor in few))
    traces = step.experimental_get_tracing_count()
    print(f"\ntraces of ours after batches of 7 lengths and sizes: {traces}")


# ---------------------------------------------------------------------------------------- the limit


def share_of_the_machine(rounds: int) -> None:
    """Prints how near the encoder comes to the machine's own float32 matrix product."""
    model = build()
    slices, lengths, _ = batch(STEPS, np.full(BATCH, STEPS))
    variables = [v.value for v in model.encoder.trainable_variables]

    @tf.function(autograph=False)
    def encode():
        return tf.reduce_sum(model.encode(slices, lengths, training=True))

    @tf.function(autograph=False)
    def encode_and_back():
        with tf.GradientTape() as tape:
            features = tf.reduce_sum(model.encode(slices, lengths, training=True) ** 2)
        gradients = tape.gradient(features, variables)
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])

    square = tf.random.stateless_normal((1024, 1024), (0, 0))

    @tf.function(autograph=False)
    def product():
        return tf.reduce_sum(square @ square)

    names = {"forward": encode, "forward and backward": encode_and_back, "product": product}
    times = alternate({name: lambda f=f: f().numpy() for name, f in names.items()}, rounds)
    forward, first = multiplications(model)
    # Backward: by the kernel and, but for the first convolution, by the input.
    work = {"forward": forward, "forward and backward": 3 * forward - first, "product": 1024**3}
    rate = {
        name: Time(*(2e-9 * work[name] / seconds for seconds in median(times[name])))
        for name in names
    }
    print(f"\nthe encoder's convolutions, {2e-9 * forward:.2f} GFLOP forward")
    row = table({"": 24, "ms": 8, "GFLOP/s": 8, "share of a product's": 21, "by processor": 12})
    for name, took in times.items():
        shares = [f"{a / b:.2f}" for a, b in zip(rate[name], rate["product"], strict=True)]
        row(name, f"{1e3 * median(took).clock:.1f}", f"{rate[name].clock:.0f}", *shares)


def multiplications(model) -> tuple[int, int]:
    """Multiplications of all convolutions of a batch forward, and of the first one."""
    stack = model.encoder.slices_to_features.layer
    shape, counts = (None, SIDE, SIDE, 1), []
    fsm = stack.fsm
    for block in (*stack.stages, fsm.reduce, fsm.project, fsm.restore, fsm.expand):
        if block is not fsm.restore:
            out = block.compute_output_shape(shape)
        else:
            out = (*shape[:3], block.filters)
        places = BATCH * STEPS * out[1] * out[2]
        counts.append(places * int(np.prod(block.convolution.kernel.shape)))
        if block not in (fsm.project,):
            shape = out
    return sum(counts), counts[0]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--first-rounds", type=int, default=3, help="of the first step")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.first_rounds = 5, 1
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(machine(TensorFlow=tf.__version__, Keras=keras.__version__, PyTorch=torch.__version__))
    print(f"{options.threads} threads each")
    started = time.perf_counter()
    steps_beside_pytorch(options.rounds)
    beside_keras_layer(max(options.rounds // 2, 3), options.first_rounds)
    share_of_the_machine(options.rounds)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
