"""Where one model is trained: on one device, or on copies of it, the replicas, on several.

The batches are those of one device. A replica takes its contiguous share of each; gradients of the
summed loss, numbers of known labels, batch statistics and whatever else looks across the batch are
summed over the replicas, and noise is drawn for the whole batch. So several replicas make the
updates of one device, to rounding, and all of them hold the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from medseq_tf.errors import InputError
from medseq_tf.input.sampling import WHOLE
from medseq_tf.layers import replicas
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import Run

Inputs = Mapping[str, tf.Tensor]
Step = Callable[[Inputs, tf.Tensor], tf.Tensor]


class Distribution:
    """One device, which needs nothing of all this; the base of what has several.

    Attributes:
        devices: how many replicas there are.
        chief: whether this process is the one that validates and writes.
        part: of every batch, what this process reads.
    """

    devices = 1
    chief = True
    part = WHOLE

    def scope(self) -> contextlib.AbstractContextManager:
        """Return the context that the model and the optimizer are made in."""
        return contextlib.nullcontext()

    def adopt(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Make Keras's own layers and optimizer see the whole batch."""

    def note(self, run: Run) -> None:
        """Note in `run.json` how many devices there are, unless it has always been one."""
        if self.devices > 1 or "devices" in run.info:
            run.update_info(devices=self.devices)

    def together(self) -> contextlib.AbstractContextManager:
        """Return the context of what several processes do together: if one dies, all end."""
        return contextlib.nullcontext()

    def from_chief(self, make: Callable[[], bytes]) -> bytes:
        """Return what the chief makes; an InputError of its is raised on all hosts."""
        return make()

    def json_from_chief(self, make: Callable[[], Any]) -> Any:
        """Return what the chief makes, of numbers, texts, lists and dicts."""
        return make()

    def any(self, flag: bool) -> bool:
        """Return whether it is true in any process."""
        return flag

    def alike(self, work: Callable[[], None]) -> None:
        """Do this process's part of some work; if one is stopped meanwhile, all are."""
        work()

    def check_same(self, what: str, value: str) -> None:
        """Raise an InputError in all processes unless all have the value that the chief has."""

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the sums over all replicas, within a step."""
        return tensors

    def on_shares(self, step: Step) -> Step:
        """Return the function of a whole batch of which each replica does its share of a step.

        It returns what `step` does, which is the same on all replicas.
        """
        return step

    def on_all(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that every replica does; it returns nothing."""
        return function


class Replicas(Distribution):
    """Several devices, by a strategy of TensorFlow.

    Args:
        strategy: a `MirroredStrategy`.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.devices = strategy.num_replicas_in_sync
        self.here = len(strategy.extended.worker_devices)  # those of this process

    def scope(self) -> contextlib.AbstractContextManager:
        """Return the context in which every variable is made on each device."""
        return self.strategy.scope()

    def adopt(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Make Keras's own layers and optimizer see the whole batch."""
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer._moments = functools.partial(_moments, layer, layer._moments)
            elif isinstance(layer, keras.layers.Dropout):
                layer.call = functools.partial(_drop, self, layer, layer.call)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not hasattr(inner, "_all_reduce_sum_gradients"):
            raise RuntimeError(f"Keras {keras.__version__} sums gradients in a way not known here")
        inner._all_reduce_sum_gradients = list  # they are sums already, and clipped as such

    def sum(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the sums over all replicas, within a step; gradients flow through them."""
        return list(_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors))

    def on_shares(self, step: Step) -> Step:
        """Return the function of a whole batch of which each replica does its share of a step."""

        def of_replica(inputs: Inputs, targets: tf.Tensor) -> tf.Tensor:
            with tf.device("CPU:0"):
                inputs, targets, counts = self._share(inputs, targets)
            with replicas.among(self.sum, counts):
                return step(inputs, targets)

        return lambda inputs, targets: self._first(of_replica, inputs, targets)

    def _share(self, inputs: Inputs, targets: tf.Tensor) -> tuple[Inputs, tf.Tensor, tf.Tensor]:
        """Return this replica's `share` of what the process has read, within a step."""
        return share(inputs, targets, self.number() % self.here, self.here)

    def on_all(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that every replica does; it returns nothing."""
        return lambda *arguments: self._first(function, *arguments)

    def number(self) -> int:
        """Return which replica this is, within a step."""
        return int(tf.get_static_value(_context().replica_id_in_sync_group))

    def _first(self, function: Callable[..., Any], *arguments: Any) -> Any:
        results = self.strategy.run(function, arguments)
        return None if results is None else self.strategy.experimental_local_results(results)[0]


def _context() -> tf.distribute.ReplicaContext:
    return tf.distribute.get_replica_context()


def share(
    inputs: Inputs, targets: tf.Tensor, number: int, count: int
) -> tuple[Inputs, tf.Tensor, tf.Tensor]:
    """Return one replica's share of a batch.

    The shares of all replicas, one after the other, are the batch. Where it has fewer studies than
    there are replicas, one without any gets a study of another's, without its labels, to go through
    the motions with; it counts in no sum.

    Args:
        inputs: of the whole batch, each `(B, ...)`.
        targets: `(B, ...)`.
        number: of the replica.
        count: how many replicas there are.

    Returns:
        Its inputs, its targets, and whether it has studies of its own.
    """
    studies = tf.shape(targets)[0]
    first, last = studies * number // count, studies * (number + 1) // count
    counts = last > first
    last = tf.maximum(last, first + 1)
    targets = tf.where(counts, targets[first:last], float("nan"))
    return {name: tensor[first:last] for name, tensor in inputs.items()}, targets, counts


def _moments(
    layer: keras.layers.BatchNormalization,
    alone: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    inputs: tf.Tensor,
    mask: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the channels' means and biased variances over the whole batch, for Keras's layer."""
    if replicas.is_alone():
        return alone(inputs, mask)
    axes = layer._reduction_axes
    real = tf.ones_like(inputs[..., :1]) if mask is None else tf.cast(mask, inputs.dtype)[..., None]
    inputs = tf.where(real > 0, inputs, 0.0)
    count, total = replicas.summed([tf.reduce_sum(real, axes), tf.reduce_sum(inputs, axes)])
    mean = tf.math.divide_no_nan(total, count)
    [squares] = replicas.summed([tf.reduce_sum(real * tf.square(inputs - mean), axes)])
    return mean, tf.math.divide_no_nan(squares, count)


def _drop(
    distribution: Replicas,
    layer: keras.layers.Dropout,
    alone: Callable[..., tf.Tensor],
    inputs: tf.Tensor,
    training: bool | None = False,
) -> tf.Tensor:
    """Return what Keras's layer leaves of a share, by its rows of the noise of the whole batch."""
    if replicas.is_alone() or not training or not layer.rate:
        return alone(inputs, training=training)
    number, rows = distribution.number(), tf.shape(inputs)[0]
    mine = tf.one_hot(number, distribution.devices) * tf.cast(rows, tf.float32)
    counts = tf.cast(replicas.summed([mine])[0], tf.int32)
    first = tf.reduce_sum(counts[:number])
    sizes = layer.noise_shape or [None] * len(inputs.shape)
    shape = [tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(sizes)]
    shape[0] = tf.maximum(tf.reduce_sum(counts), first + rows)
    noise = alone(tf.ones(shape, inputs.dtype), training=training)
    return inputs * noise[first : first + rows]


def of_one_device(recipe: Experiment) -> str | None:
    """Return the setting of a recipe, if there is one, that a single device trains."""
    alone = {"fit.solver=lbfgs": recipe.fit.solver == "lbfgs", "fit.jit=true": recipe.fit.jit}
    return next((setting for setting, holds in alone.items() if holds), None)


def distribution_for(devices: int | None, recipe: Experiment) -> Distribution:
    """Return the devices of this machine that a model is trained on.

    Args:
        devices: how many GPUs; None: all that are visible. Without a GPU, into how many devices the
            processor is divided, to try what several devices do; None: one.
        recipe: the recipe, which may be one that a single device trains.

    Raises:
        InputError: there are fewer, TensorFlow has been used already with fewer, or the recipe does
            not go with several.
    """
    if setting := of_one_device(recipe):
        if devices not in (None, 1):
            raise InputError(f"devices = {devices}: {setting} takes one device; leave one out")
        return Distribution()
    gpus = tf.config.list_physical_devices("GPU")
    count = max(len(gpus), 1) if devices is None else devices
    if count < 1 or (gpus and count > len(gpus)):
        expected = f"1 to {len(gpus)}, the visible GPUs" if gpus else "at least 1"
        raise InputError(f"devices = {devices}: expected {expected}")
    if count == 1:
        return Distribution()
    if gpus:
        names = [device.name for device in tf.config.list_logical_devices("GPU")[:count]]
        return Replicas(tf.distribute.MirroredStrategy(names))
    _divide_processor(count)
    names = [device.name for device in tf.config.list_logical_devices("CPU")[:count]]
    sums = tf.distribute.ReductionToOneDevice()
    return Replicas(tf.distribute.MirroredStrategy(names, cross_device_ops=sums))


def _divide_processor(count: int) -> None:
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    except RuntimeError:  # TensorFlow is in use; perhaps divided so already
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise InputError(
                f"devices = {count}: TensorFlow was used in this process before, with the "
                "processor undivided; train in a new process"
            ) from None
