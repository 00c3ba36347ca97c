"""The training of a linear head alone, `fit.solver` = `lbfgs`: no epochs, one solution."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from medseq_tf import recipe as recipes
from medseq_tf.dataset.stratification import owners
from medseq_tf.evaluation.inference import model_vectors
from medseq_tf.models import Head, losses
from medseq_tf.training.fitting import Fitting, epoch_metrics, interrupts
from medseq_tf.training.linear_head import LinearFit, fit_linear


class LinearFitting(Fitting):
    """The training of one run whose head is a logistic regression on one vector of each study.

    The vectors are those that the model's head takes, of the training studies as they are
    evaluated, but never mirrored; `linear_head.fit_linear` solves the head. What is noted of the
    one epoch is the training loss, the validation metrics and the strength. A run that was stopped
    finds the features that it stored, and computes the rest.

    Arguments and attributes are those of `Fitting`.
    """

    def run(self) -> None:
        """Solve the head and write the model.

        Raises:
            InputError: a study cannot be read.
            Stopped: interrupted with Ctrl-C, or by `stop`; `resume` goes on.
        """
        started, prepared, rows = time.monotonic(), self.store.prepared, self.split["train"]
        labels, outputs = prepared.labels[rows], prepared.outputs
        with interrupts(self.stop) as interrupted, self.going_on():
            vectors = self._vectors(interrupted)
        fit = fit_linear(
            vectors,
            labels,
            outputs,
            owners(prepared.studies.iloc[rows], self.recipe.split.by),
            self.recipe.fit.strength,
            self.recipe.loss.weights,
            self.recipe.seed,
        )
        set_head(self.model.head, fit, vectors)
        self.loss = losses.build(self.recipe.loss, labels, outputs)
        loss = epoch_metrics(labels, fit.probabilities(vectors), self.loss, outputs)["loss"]
        row = {"epoch": 1, "loss": loss, **self._validate(), **self._strengths(fit)}
        row["seconds"] = round(time.monotonic() - started, 3)
        if self.verbose:
            shown = ("loss", "val_loss", f"val_{self.recipe.fit.monitor}", *self._strengths(fit))
            print(
                "Solved: " + ", ".join(f"{name} {row[name]:.4g}" for name in shown if name in row)
            )
        self.note_epoch(row)
        self.save_model()

    def _vectors(self, stopped: Callable[[], bool]) -> np.ndarray:
        """Return the vectors of the training studies, the features of validation's prepared."""
        rows = self.split["train"]
        plain = recipes.load(self.recipe, ["sequence.evaluation.mirrored=false"])
        if self.features is not None:
            views = self.features.views
            shown = views.of_evaluation(self.split["validation"])
            self.features.prepare([*views.of_evaluation(rows, plain), *shown], stopped)
        return model_vectors(self.model, self.store, rows, plain, self.features, stopped)[0]

    def _strengths(self, fit: LinearFit) -> dict[str, float]:
        """Return C by the name that it is noted under: of each label, where there are several."""
        if len(fit.strength) == 1:
            return {"strength": fit.strength[0]}
        names = self.store.prepared.label_names
        return {f"strength_{name}": c for name, c in zip(names, fit.strength, strict=True)}


def set_head(head: Head, fit: LinearFit, vectors: np.ndarray) -> None:
    """Give a head of one layer the fit's kernel and bias, rounded to float32.

    The bias makes up for the kernel's rounding at the mean of `vectors`, from which features whose
    mean is large beside their deviation are never far.
    """
    kernel = fit.kernel.astype(np.float32)
    rounded = vectors.mean(axis=0, dtype=np.float64) @ (fit.kernel - kernel)
    head.logits.kernel.assign(kernel)
    head.logits.bias.assign(fit.bias + rounded)
