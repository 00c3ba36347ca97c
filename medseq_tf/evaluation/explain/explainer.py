"""What each slice and pixel is worth to a run's models, for studies of a prepared data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain import pixel_maps, slice_values
from medseq_tf.evaluation.explain.covariate_effects import covariate_effects
from medseq_tf.evaluation.explain.explanation import LESION_MAP, PIXEL_METHODS, Explanation, listed
from medseq_tf.evaluation.explain.graphs import ModelGraphs, last_maps_of
from medseq_tf.evaluation.explain.shown_members import ShownMembers
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.evaluation.metrics import call
from medseq_tf.evaluation.unseen_data import with_covariates_of, with_labels_of
from medseq_tf.input.slice_store import SliceStores
from medseq_tf.runs.run import Run


def check_label(label: str | None, prepared: Prepared) -> None:
    """Raise an InputError unless a label, or class, is one of the data set's."""
    if label is not None and label not in prepared.label_names:
        raise InputError(f"label = {label!r}: expected one of {', '.join(prepared.label_names)}")


class Explainer:
    """A run's models and the slices of a data set, for several studies in turn.

    Args:
        run: a finished run.
        prepared: a data set with the run's labels, or classes that it knows.
        studies: ids of the studies to explain.
        seed: of the subsets of a study's slices that are drawn.

    Raises:
        InputError: a study is unknown, or the data do not fit the run.
    """

    def __init__(self, run: Run, prepared: Prepared, studies: Sequence[str], seed: int = 0):
        if seed < 0:
            raise InputError(f"seed = {seed}: expected a whole number from 0 up")
        run.require_finished()
        run.require_members()
        self.prepared = prepared = with_labels_of(run, prepared)
        self.row_of = {name: i for i, name in enumerate(prepared.studies["study_id"])}
        for name in studies:
            if name not in self.row_of:
                raise InputError(
                    f"{prepared.path}: has no study {name!r}; its ids are in studies.parquet, such "
                    f"as {next(iter(self.row_of))}"
                )
        self.run_of = _explaining_runs(run, studies)
        self.seed = seed
        self.experiment = run.heaviest.experiment
        self._stores = SliceStores(with_covariates_of(run, prepared))
        self._stores.of(self.experiment)  # its errors come at once
        self._graphs: dict[Path, ModelGraphs] = {}

    @property
    def segments(self) -> bool:
        """Whether the model that has maps is a segmenter."""
        return self.experiment.segments

    @property
    def pixel_methods(self) -> tuple[str, ...]:
        """What can mark places in the slices."""
        return (LESION_MAP,) if self.segments else PIXEL_METHODS

    def check(self, label: str | None, pixels: Sequence[str] | None) -> None:
        """Raise an InputError for an unknown label or a method that the model does not have."""
        check_label(label, self.prepared)
        for method in pixels or ():
            if method not in self.pixel_methods:
                expected = " or ".join(self.pixel_methods)
                raise InputError(f"pixels = {method!r}: expected {expected}")

    def _graphs_of(self, run: Run) -> ModelGraphs:
        """Return the graphs of a run's model, which is loaded once for all studies."""
        if run.path not in self._graphs:
            self._graphs[run.path] = ModelGraphs(run.model(), run.experiment)
        return self._graphs[run.path]

    def shown(self, study_id: str) -> ShownStudy | ShownMembers:
        """Return the study as its model sees it, or as each of several does."""
        row, members = self.row_of[study_id], self.run_of[study_id].members
        seen = [
            ShownStudy(self._graphs_of(run), self._stores.of(run.experiment), row)
            for run, _ in members
        ]
        if len(seen) == 1:
            return seen[0]
        runs, weights = zip(*members, strict=True)
        heaviest = self.run_of[study_id].heaviest
        return ShownMembers(seen, weights, runs.index(heaviest))

    def readable(self, study_id: str) -> bool:
        """Return whether the study's slices can be read; a model that cannot be is an error."""
        for run, _ in self.run_of[study_id].members:
            self._graphs_of(run)
        try:
            self.shown(study_id)
        except InputError:
            return False
        return True

    def base_values(self, run: Run) -> tuple[dict[str, float], str | None]:
        """Return what the subset of no slice is worth by label, and a note on it, if any.

        A run without validation studies has the mean over its other predictions; one without any
        has even odds.
        """
        known = run.predictions
        known = known[known["probability"].notna()]
        chosen, note = known[known["split"] == "validation"], None
        if not len(chosen):
            chosen = known
            note = (
                "the run has no validation studies: the base is the mean prediction of its other "
                "studies"
            )
        means = chosen.groupby("label")["probability"].mean()
        names = self.prepared.label_names
        even = 1 / len(names) if self.prepared.classes else 0.5
        if not set(names) <= set(means.index):
            note = f"the run has no predictions of some label: its base is {even:.3g}"
        return {name: float(means.get(name, even)) for name in names}, note

    def explain(
        self, study_id: str, label: str | None = None, pixels: Sequence[str] | None = None
    ) -> Explanation:
        """Explain one study of those given; the arguments are those of `explain.explain_study`.

        Raises:
            InputError: see `check`; or the study cannot be read.
        """
        self.check(label, pixels)
        names, classes = self.prepared.label_names, self.prepared.classes
        study, run = self.shown(study_id), self.run_of[study_id]
        probabilities = study.probabilities()
        if label is not None:
            explained = [label]
        else:
            explained = [names[call(probabilities[None])[0]]] if classes else names
        # Of classes all are told of, beside those that are explained.
        others = [name for name in names if name not in explained] if classes else []
        numbers = {name: names.index(name) for name in (*explained, *others)}
        table = study.slice_table()
        base_values, base_note = self.base_values(run)
        bases = np.array([base_values[name] for name in numbers])
        importance = study.importance(bases, list(numbers.values()), self.seed, len(explained))
        ties, notes = _add_importance(table, importance, numbers, study.distinct, explained)
        marked = {name: numbers[name] for name in explained}
        heat, completeness, pixel_notes = self._pixel_maps(study.heaviest, table, marked, pixels)
        notes += [*pixel_notes, *_notes_on_slices(study), *_notes_on_members(run, study_id)]
        if (series := self.prepared.series) and series.channels > 1:
            first, whole = series.names[0], ", ".join(series.names)
            notes.append(f"pictures show {first}; the model sees {whole}, and maps are of them all")
        if base_note:
            notes.append(base_note)
        table = table[table["label"].isin(numbers.values())]
        truth = self.prepared.labels[self.row_of[study_id]]
        told = [name for name in names if name in numbers]
        return Explanation(
            study_id,
            explained,
            {name: float(probabilities[numbers[name]]) for name in told},
            {} if classes else {name: run.thresholds[name] for name in told},
            {name: float(truth[numbers[name]]) for name in told},
            self._with_names(table, self.row_of[study_id]),
            study.images(),
            heat,
            completeness,
            notes,
            {name: base_values[name] for name in told},
            ties,
            importance.subsets,
            classes,
            covariate_effects(study, marked),
        )

    def _with_names(self, table: pd.DataFrame, row: int) -> pd.DataFrame:
        """Return a table of a study's slices with the names of labels, and of series where told."""
        names = np.array(self.prepared.label_names, object)
        table = table.assign(label=names[table["label"]]).reset_index(drop=True)
        if series := self.prepared.marked_series:
            of_slice = np.array(series, object)[self.prepared.series_of(row)]
            table.insert(table.columns.get_loc("slice") + 1, "series", of_slice[table["slice"]])
        return table

    def _pixel_maps(
        self,
        study: ShownStudy,
        table: pd.DataFrame,
        labels: dict[str, int],
        methods: Sequence[str] | None,
    ) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, float], list[str]]:
        """Return maps by (method, label), what gradients miss by label, and notes.

        Integrated gradients are added to `table`, summed over each slice.
        """
        if methods is None:
            network = getattr(study.model.encoder, "network", None)
            is_fit = self.segments or (network is not None and last_maps_of(network) is not None)
            methods = self.pixel_methods[:1] if is_fit else ["integrated_gradients"]
        heat, completeness, notes = {}, {}, []
        for name, number in labels.items():
            if LESION_MAP in methods:
                heat[LESION_MAP, name] = pixel_maps.lesion_map(study)
            if "grad_cam" in methods:
                heat["grad_cam", name] = pixel_maps.grad_cam(study, number)
            if "integrated_gradients" in methods:
                gradients, missed = pixel_maps.integrated_gradients(study, number)
                heat["integrated_gradients", name] = gradients
                completeness[name] = missed
                table.loc[table["label"] == number, "gradients"] = gradients.sum(axis=(1, 2))
                if missed > 0.05:
                    notes.append(
                        f"{name}: integrated gradients miss {missed:.0%} of what they add up to"
                    )
        return heat, completeness, notes


def _explaining_runs(run: Run, studies: Sequence[str]) -> dict[str, Run]:
    """Return the run that explains each study: the fold that tested it, if there are any."""
    if not run.folds:
        return dict.fromkeys(studies, run)
    tested_by: dict[str, Run] = {}
    for fold in run.folds:
        for name in fold.splits["test"]:
            tested_by.setdefault(name, fold)  # of repeats, in the first
    for name in studies:
        if name not in tested_by:
            raise InputError(
                f"{run.path}: no fold tested the study {name}; give one of its folds, such as "
                f"{run.folds[0].path}"
            )
    return {name: tested_by[name] for name in studies}


def _add_importance(
    table: pd.DataFrame,
    importance: slice_values.SliceValues,
    labels: dict[str, int],
    distinct: np.ndarray,
    explained: Sequence[str],
) -> tuple[dict[str, list[int]], list[str]]:
    """Add importance and its interval to a table of slices.

    Returns:
        By label explained, the slices that cannot be told apart from the most important one; and
        notes on them.
    """
    table[["importance", "importance_low", "importance_high"]] = np.nan
    ties, notes = {}, []
    for place, (name, number) in enumerate(labels.items()):
        values, covariance = importance.values[:, place], importance.covariance[place]
        half = 1.96 * np.sqrt(np.diag(covariance))
        of_label = table["label"] == number
        table.loc[of_label, "importance"] = values
        table.loc[of_label, "importance_low"] = values - half
        table.loc[of_label, "importance_high"] = values + half
        if name not in explained:
            continue
        near = slice_values.not_told_apart(values[distinct], covariance[np.ix_(distinct, distinct)])
        ties[name] = distinct[near].tolist()
        if ties[name]:
            first = distinct[np.argmax(values[distinct])]
            notes.append(
                f"{name}: slice {first}, the most important, cannot be told apart from "
                f"{listed(ties[name])}"
            )
    return ties, notes


def _notes_on_members(run: Run, study_id: str) -> list[str]:
    """Return what is to be said of the members of a run that explain a study."""
    notes, members, heaviest = [], run.members, run.heaviest
    if len(members) > 1:
        place = heaviest.path.relative_to(run.path).as_posix()
        notes.append(
            f"probabilities and importance are of the mean of {len(members)} models by their "
            f"weights; maps and gradients are of one of them, {place}"
        )
    if run.automatic is not None and study_id in run.contents:
        notes.append(
            "the models were trained on this study, so that its probability here is not the "
            "out-of-fold one of the report"
        )
    return notes


def _notes_on_slices(study: ShownStudy | ShownMembers) -> list[str]:
    """Return what is to be said of which slices the model was shown."""
    shown, notes = len(study.distinct), []
    if study.mirrored:
        notes.append(
            "probabilities and importance are of the mean over the slices as they are and mirrored "
            "left-right; maps and gradients are of the slices as they are"
        )
    if shown < study.length:
        notes.append(f"{shown} of {study.length} slices are shown to the model")
    if shown == 1:
        notes.append(
            "the model was shown one slice: its importance is the prediction less the base"
        )
    return notes
