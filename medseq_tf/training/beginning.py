"""How a run begins in its folder, or goes on there."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset import sites
from medseq_tf.dataset.covariate_values import check_covariates, covariate_values
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import (
    SPLITS,
    check_leakage,
    check_training,
    make_folds,
    make_holdout,
    splits_from_json,
    splits_to_json,
)
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import InputError
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.evaluation.feature_workers import FeaturePlace, SpreadFeatureStore
from medseq_tf.execution.work import require_seen
from medseq_tf.files import write_json, write_text
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import SequenceClassifier, losses
from medseq_tf.models.applications import dtype_policy
from medseq_tf.readers.classes import ORDERED
from medseq_tf.recipe import Experiment
from medseq_tf.runs.environment import environment
from medseq_tf.runs.run import Run
from medseq_tf.training.pretraining import healthy

BEGINNING = ("experiment.yaml", "dataset.json", "studies.json", "splits.json")

Splits: TypeAlias = Rows | list[Rows]
"""One split, or one per fold, repeat by repeat."""


@dataclass(frozen=True)
class Request:
    """What is to be trained, and in which folder.

    Attributes:
        folder: the run folder.
        recipe: the recipe.
        prepared: the data set.
        folds: how many folds a repeat has; `site`: one a site; None: a single run.
        repeats: how often the patients are divided into folds.
        splits: in place of the recipe's.
        resume: whether a run that is there goes on.
        site: the one that this run is tested on, as a fold.
    """

    folder: Path
    recipe: Experiment
    prepared: Prepared
    folds: int | Literal["site"] | None = None
    repeats: int = 1
    splits: Splits | None = None
    resume: bool = False
    site: str | None = None

    def earlier(self) -> dict[str, Any]:
        """Return what is known of the run to resume, nothing for a new one.

        Raises:
            InputError: the folder is in use, or the run there is another.
        """
        folder = self.folder
        if not has_begun(folder, self.resume):
            return {}
        run = Run.open(folder)
        self._check_same(run)
        return run.info

    def _check_same(self, run: Run) -> None:
        stored, asked = run.experiment.flat(), self.recipe.flat()
        folds = "site" if run.fold_sites else run.info["folds"]
        stored |= {"data": run.info["fingerprint"], "folds": folds}
        asked |= {"data": self.prepared.fingerprint, "folds": self.folds}
        stored["repeats"], asked["repeats"] = run.repeats, self.repeats
        for key, value in asked.items():
            if stored.get(key) != value and not key.startswith("requires."):
                raise InputError(
                    f"{run.path}: the run to resume has {key} = {stored.get(key)}, asked for "
                    f"{value}; resume with the same recipe, data and folds"
                )
        if self.splits is not None and run.splits != self._study_ids(self.splits):
            raise InputError(
                f"{run.path}: the run to resume has other splits; resume with the same"
            )

    def _study_ids(self, splits: Splits) -> Any:
        """Return splits as a run folder keeps them."""
        return json.loads(splits_to_json(self.prepared.studies, splits))

    def make_splits(self) -> Splits:
        """Return the splits, of which there is one per fold; of a run to resume, its own."""
        if self.splits is not None:
            return self.splits
        studies = self.prepared.studies
        if (self.folder / "run.json").is_file():
            return splits_from_json(studies, (self.folder / "splits.json").read_text("utf-8"))
        if self.folds is None:
            return make_holdout(studies, self.recipe.split, self.prepared.classes)
        return make_folds(
            studies, self.folds, self.recipe.split, self.repeats, self.prepared.classes
        )

    def check(self, splits: Splits) -> None:
        """Refuse what the data, the splits and the model do not agree on, before a run begins.

        Raises:
            InputError: a split cannot be learned from, or the model not built for the data.
        """
        recipe, prepared = self.recipe, self.prepared
        if recipe.segments and prepared.classes:
            raise InputError(
                f"{prepared.path}: has classes ({prepared.classes.column}); a segmenter tells only "
                "whether there is a lesion: choose another model.encoder.name"
            )
        softmax = recipe.model.ordered == "softmax"
        if recipe.fit.solver == "lbfgs" and prepared.outputs == ORDERED and not softmax:
            raise InputError(
                f"{prepared.path}: has ordered classes, which fit.solver=lbfgs tells apart by a "
                "softmax alone: set model.ordered=softmax"
            )
        recipes.check_meaning("fit.monitor", recipe.fit.monitor, prepared.outputs)
        each = splits if isinstance(splits, list) else [splits]
        for split in each:
            if not recipe.segments:  # a segmenter learns from pixels
                check_training(prepared.studies, split, prepared.classes)
        rows = each[0]["train"]
        if recipe.segments and all(prepared.masks(row, [0]) is None for row in rows):
            raise InputError(
                f"{prepared.path}: has no lesion masks, from which a segmenter learns; the readers "
                "atlas and demo store them"
            )
        if recipe.pretraining:
            healthy(prepared, rows)
        losses.build(recipe.loss, prepared.labels[rows], prepared.outputs)
        check_covariates(prepared, recipe.model.covariates)
        covariate_values(prepared, list(prepared.covariates))
        new_model(recipe, prepared)

    def begin(self, splits: Splits, **about: Any) -> None:
        """Write what a run begins with, `run.json` last, with what else is to stand in it."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "experiment.yaml", self.recipe.to_yaml())
        write_json(folder / "dataset.json", self.prepared.info)
        write_json(folder / "studies.json", self.prepared.contents)
        write_json(folder / "splits.json", self._study_ids(splits))
        write_json(
            folder / "run.json",
            {
                "status": "started",
                "fingerprint": self.prepared.fingerprint,
                "folds": len(splits) // self.repeats if isinstance(splits, list) else None,
                "repeats": self.repeats,
                **self._sites(splits),
                **about,
                **environment(),
            },
        )

    def _sites(self, splits: Splits) -> dict[str, Any]:
        """Return which sites are left out, for `run.json`."""
        if self.site is not None:
            return {"site": self.site}
        if self.folds != "site":
            return {}
        studies = self.prepared.studies
        tested = [split["test"] for split in splits if isinstance(split, dict)]
        return {"fold_sites": [sites.named(studies.iloc[rows]) for rows in tested]}


def has_begun(folder: Path, resume: bool, beginning: Sequence[str] = BEGINNING) -> bool:
    """Return whether a run is in a folder, to be resumed; `beginning`: what one begins with.

    Raises:
        InputError: the folder is in use, or there is a run, and none is to be resumed.
    """
    if not (folder / "run.json").is_file():
        # run.json is written last: without it, the others are of a run that never began.
        taken = not folder.is_dir() or any(
            f.name not in beginning and not f.name.startswith(".") for f in folder.iterdir()
        )
        if folder.exists() and taken:
            raise InputError(f"{folder}: is in use and holds no run; choose another --out")
        return False
    if not resume:
        raise InputError(f"{folder}: a run is there already; choose another --out, or --resume")
    return True


def new_model(recipe: Experiment, prepared: Prepared, **arguments: Any) -> SequenceClassifier:
    """Return a recipe's model for a data set; `arguments` are further ones of `models.build`."""
    return models.build(
        recipe.model,
        recipe.input.slice_shape(prepared.channels),
        len(prepared.label_names),
        outputs=prepared.outputs,
        covariates=prepared.covariates,
        series=prepared.marked_series,
        **arguments,
    )


def model_and_features(
    recipe: Experiment,
    store: SliceStore,
    features: str | os.PathLike | None = None,
    verbose: bool = False,
) -> tuple[SequenceClassifier, FeatureStore | None]:
    """Return a recipe's model for a data set and, where the recipe uses them, its features.

    Args:
        recipe: the recipe, whose seed and precision are those of the model.
        store: the prepared data set's slices.
        features: the folder for stored features, or a `FeaturePlace`; None: in memory alone.
        verbose: show progress.
    """
    with dtype_policy(keras.DTypePolicy(recipe.fit.precision)):
        model = new_model(recipe, store.prepared, seed=recipe.seed, skip_padding=not recipe.fit.jit)
    if not recipe.uses_features:
        return model, None
    if isinstance(features, FeaturePlace):
        rebuild = functools.partial(
            features_alone, recipe, store.prepared.path.absolute(), features.folder
        )
        return model, SpreadFeatureStore(model, store, recipe, features, verbose, rebuild)
    folder = None if features is None else Path(features)
    return model, FeatureStore(model, store, recipe, folder, verbose)


def features_alone(recipe: Experiment, data: Path, folder: Path) -> FeatureStore:
    """Return the features of a recipe in a process that opens the data set for nothing else."""
    require_seen(data, "data and features")
    one_by_one = recipes.load(recipe, ["fit.cache=none"])
    store = SliceStore(Prepared.load(data), one_by_one)
    _, features = model_and_features(one_by_one, store, folder)
    if features is None:
        raise InputError(f"the recipe {recipe.name} uses no stored features")
    return features


def count_folds(prepared: Prepared, splits: Splits, repeats: int = 1) -> int | None:
    """Return how many folds a repeat of given splits has; None for a single split.

    Raises:
        InputError: they share patients or slices, or are no repeats of equal folds.
    """
    for split in splits if isinstance(splits, list) else [splits]:
        if set(split) != set(SPLITS) or not len(split["train"]):
            raise InputError(
                f"splits: each needs rows for {', '.join(SPLITS)}, of which train has some"
            )
        check_leakage(prepared.studies, split)
    if not isinstance(splits, list):
        return None
    if len(splits) < 2:
        raise InputError(f"splits: a list of {len(splits)}; cross-validation needs at least 2")
    if repeats < 1 or len(splits) % repeats:
        raise InputError(f"splits: a list of {len(splits)} is not {repeats} repeats of equal folds")
    folds = len(splits) // repeats
    for start in range(0, len(splits), folds):
        tested = np.concatenate([split["test"] for split in splits[start : start + folds]])
        if len(np.unique(tested)) < len(tested):
            raise InputError("splits: two folds of a repeat test the same study")
    return folds
