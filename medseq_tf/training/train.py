"""The command `train`: a recipe and a prepared data set become a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq_tf import __version__
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.errors import InputError, note
from medseq_tf.evaluation.feature_workers import feature_place
from medseq_tf.execution.executor import refuse_without_ray
from medseq_tf.execution.hosts import host_of_environment
from medseq_tf.execution.ray_cluster import RayExecutor
from medseq_tf.files import destination
from medseq_tf.input.sampling import WHOLE
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import Run, locked
from medseq_tf.runs.tracking import AnyTracker
from medseq_tf.training.beginning import Request, Splits, count_folds
from medseq_tf.training.distribution import Distribution, distribution_for
from medseq_tf.training.folds import cross_validate
from medseq_tf.training.hosts import Hosts
from medseq_tf.training.on_ray import on_ray
from medseq_tf.training.one_run import Options, follow, train_one


def train(
    experiment: str | os.PathLike | Experiment,
    data: str | os.PathLike | Prepared,
    out: str | os.PathLike | None = None,
    name: str | None = None,
    overrides: Iterable[str] = (),
    folds: int | Literal["site"] | None = None,
    repeats: int = 1,
    splits: Splits | None = None,
    resume: bool = False,
    features: str | os.PathLike | None = None,
    devices: int | None = None,
    track: bool | AnyTracker = True,
    verbose: bool = True,
    stop: Callable[[], bool] = lambda: False,
    ray: str | None = None,
    hosts: int | None = None,
    cpus_per_host: float = 1.0,
    gpus_per_host: int = 0,
    cpus_per_task: float = 1.0,
    gpus_per_task: float = 0.0,
) -> Run:
    """Train a recipe on a prepared data set.

    Splits are by patient. After every epoch the model is scored on the validation studies; the best
    epoch by `fit.monitor` is kept, thresholds are chosen on validation, and the test studies are
    read at the end, which is counted in the data set (`holdout_reuse`). One seed gives one result,
    bit for bit on a CPU.

    Args:
        experiment: a preset's name, a YAML file, or an `Experiment`.
        data: the folder of a prepared data set.
        out: the run folder; default `runs/<name>`.
        name: the run's name; default the recipe's.
        overrides: `dotted.key=value`, as with `--set`.
        folds: cross-validate over this many patient-level folds: one run per fold, pooled at the
          end. All folds of a repeat start from the same weights. `site`: each fold is one site,
          tested by a model that was trained without it.
        repeats: divide the patients into folds anew this many times, each time from other weights,
          so that the figures are means over the luck of the folds and of the start.
        splits: rows of the data set's studies by split, in place of the recipe's; a list of them is
          cross-validated, with `repeats` those of one repeat after the other (as many as there are
          where each divides the patients at random). Studies that are in none are left alone.
        resume: go on with an interrupted run in `out`, to bitwise the same weights.
        features: the folder where features of a network that is frozen whole are kept, for this run
          and others; default: `MEDSEQ_TF_FEATURES`, or else the user's cache.
        devices: how many GPUs of this machine train the model together; default: all that are
          visible. The losses are those of one to rounding, and the same each time for the same
          number. Without a GPU, into how many devices the processor is divided, to try it.
        track: log to MLflow; a tracker: into its run, which is not ended.
        verbose: show progress.
        stop: asked after every update; once true, training stops as after Ctrl-C.
        ray: the address of a Ray cluster, see `execution.ray_cluster.connected`. Without `hosts`
            its workers compute the features of a network that is frozen whole, and train folds, a
            fold each; the data set, `features` and, with folds, `out` lie on storage that all nodes
            see.
        hosts: train on so many nodes of the Ray cluster together. The data set and `out` lie on
            storage that all see.
        cpus_per_host: CPUs of a node that a host takes, with `hosts`.
        gpus_per_host: the same of GPUs.
        cpus_per_task: of a node that such a worker takes, with `ray`.
        gpus_per_task: the same; a fraction shares one.

    Where `TF_CONFIG` names several hosts, the same call on all of them trains one model; the first,
    the chief, writes the run.

    Returns:
        The finished run.

    Raises:
        InputError: the recipe or the data cannot be used, or `out` is taken.
        Diverged: the loss became NaN or infinite.
        Stopped: interrupted with Ctrl-C, or by `stop`; `resume` goes on.
    """
    recipe = recipes.load(experiment, overrides)
    refuse_without_ray(ray, cpus_per_task, gpus_per_task)
    if hosts is not None:
        if ray is None or isinstance(splits, list) or folds is not None or repeats != 1:
            raise InputError(
                f"hosts = {hosts}: goes with ray, whose nodes they are, and without folds"
            )
        arguments = {
            "experiment": recipe,
            "data": Prepared.open(data).path.absolute(),
            "out": destination(out or Path("runs") / (name or recipe.name)).absolute(),
            "name": name,
            "splits": splits,
            "resume": resume,
            "features": None if features is None else Path(features).absolute(),
            "devices": devices,
            "track": track,
            "verbose": False,
        }
        return on_ray(_as_host, arguments, ray, hosts, cpus_per_host, gpus_per_host, stop, verbose)
    host = host_of_environment()
    distribution = Hosts(host, devices, recipe) if host else distribution_for(devices, recipe)
    with distribution.together():
        prepared = Prepared.open(data)
        folder = destination(out if out is not None else Path("runs") / (name or recipe.name))
        folds = _checked_folds(prepared, folds, repeats, splits)
        if host and folds is not None:
            raise InputError("TF_CONFIG: several hosts train one model; leave folds out")
        if host and recipe.fit.seeds > 1:
            raise InputError("TF_CONFIG: several hosts train one model; set fit.seeds=1")
        request = Request(folder, recipe, prepared, folds, repeats, splits, resume)
        options = Options(
            name or folder.name, track, verbose, None, stop=stop, distribution=distribution
        )
        share = {"cpus": cpus_per_task, "gpus": gpus_per_task}
        place = feature_place(features, ray, **share)
        if ray is None:
            return _train(request, options, place)
        if folds is None and not isinstance(splits, list):
            if not recipe.uses_features:
                note("ray has nothing to do: no folds, and a recipe without stored features")
            return _train(request, options, place)
        if devices is not None:
            raise InputError(
                f"devices = {devices}: folds on Ray have the GPUs of gpus_per_task; leave it out"
            )
        with RayExecutor(ray, None, **share) as executor:
            return _train(request, dataclasses.replace(options, executor=executor), place)


def _as_host(arguments: dict[str, Any], stop: Callable[[], bool]) -> None:
    """Train as one of several hosts."""
    train(**arguments, stop=stop)


def _train(request: Request, options: Options, place: AbstractContextManager[os.PathLike]) -> Run:
    folder, recipe, prepared = request.folder, request.recipe, request.prepared
    distribution = options.distribution
    for what, value in {
        "version of medseq_tf": __version__,
        "data set": prepared.fingerprint,
        "recipe": recipe.to_yaml(),
    }.items():
        distribution.check_same(what, value)
    earlier = distribution.json_from_chief(request.earlier)
    if earlier.get("status") == "finished":
        return Run(folder)
    prepared.verify()
    if not earlier:
        _check_requirements(request, options)
    store = SliceStore(prepared, recipe)
    run_splits = _splits(request, distribution)
    with contextlib.ExitStack() as held:
        if recipe.uses_features:
            options = dataclasses.replace(options, features=held.enter_context(place))

        def begin() -> bool:
            return _begin(request, run_splits, distribution, held, resumed=bool(earlier))

        if not distribution.json_from_chief(begin):
            return Run(folder)
        if isinstance(run_splits, list):
            cross_validate(request, store, run_splits, options)
        elif distribution.chief:
            train_one(request, store, run_splits, options)
        else:
            follow(request, store, run_splits, options)
    return Run(folder)


def _begin(
    request: Request,
    splits: Splits,
    distribution: Distribution,
    held: contextlib.ExitStack,
    resumed: bool,
) -> bool:
    """Begin in the folder, which is then held, or go on there; return whether there is a need."""
    if not resumed:
        request.check(splits)
        gc.collect()  # a model is a cycle, and a pretrained one is large
    held.enter_context(locked(request.folder))
    now = request.earlier()
    if now.get("status") == "finished":
        return False
    if now and not resumed:
        raise InputError(f"{request.folder}: a run came there meanwhile; choose another --out")
    if not now:
        request.begin(splits)
    distribution.note(Run(request.folder))
    return True


def _check_requirements(request: Request, options: Options) -> None:
    """Check what the recipe needs, and say what is to be known of it."""
    notes = check_requirements(request.recipe, request.prepared)
    devices, size = options.distribution.devices, request.recipe.fit.batch_size
    if devices > size and not request.recipe.uses_features:
        notes = [*notes, f"of {devices} devices a batch of fit.batch_size={size} fills only {size}"]
    for words in notes if options.verbose and options.distribution.chief else ():
        note(words)


def _splits(request: Request, distribution: Distribution) -> Splits:
    """Return the splits, which are the chief's where there are several hosts."""
    if distribution.part == WHOLE:
        return request.make_splits()

    def lists() -> dict[str, list[int]]:
        made = request.make_splits()
        return {n: rows.tolist() for n, rows in made.items()} if isinstance(made, dict) else {}

    told = distribution.json_from_chief(lists)
    return {name: np.array(rows, np.int64) for name, rows in told.items()}


def _checked_folds(
    prepared: Prepared, folds: int | Literal["site"] | None, repeats: int, splits: Splits | None
) -> int | Literal["site"] | None:
    """Return the folds that are asked for, or those of given splits; refuse what means nothing."""
    if splits is not None:
        if folds is not None:
            raise InputError("folds and splits: give one of them")
        folds = count_folds(prepared, splits, repeats)
    if repeats < 1 or (repeats > 1 and folds is None):
        raise InputError(
            f"repeats = {repeats}: "
            + ("expected at least 1" if repeats < 1 else "goes with folds, which it repeats")
        )
    if isinstance(folds, str) and folds != "site":
        raise InputError(f"folds = {folds!r}: expected a number, or `site` to leave each site out")
    if repeats > 1 and folds == "site":
        raise InputError(f"repeats = {repeats}: sites are left out in one way; leave repeats out")
    return folds
