"""Takes a finished run; gives a model card: what software can know, and what its author has to say.

Items are numbered as in CLAIM (Mongan, Moy and Kahn 2020) and TRIPOD+AI (Collins et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from medseq_tf.dataset import leakage, selection
from medseq_tf.evaluation import evaluate
from medseq_tf.files import atomic
from medseq_tf.reporting.report import NOT_FOR
from medseq_tf.runs.run import Run

ASK = "**For the author:** "


class Item(NamedTuple):
    """One item: its place in both lists, its name and what is said."""

    claim: str
    tripod: str
    name: str
    text: str


CARD_OF_FOLDS = (
    "Models, one a fold; the figures are each model's on its own test patients, what is "
    "exported or evaluated on new data is the mean of their probabilities"
)


def write(run: Run, audit: leakage.Audit | None = None) -> None:
    """Write `model_card.md` into the run's folder.

    Args:
        run: a finished run.
        audit: what its splits share.
    """
    with atomic(run.path / "model_card.md") as temporary:
        temporary.write_text(card(run, audit), "utf-8")


def card(run: Run, audit: leakage.Audit | None = None) -> str:
    """Return the model card of a finished run as Markdown."""
    sections = {
        "Title and purpose": _purpose(run),
        "Data": _data(run, audit),
        "Model and training": _model(run),
        "Results": _results(run),
        "Use": _use(run),
    }
    lines = [f"# Model card: {_plain(run.name)}", "", f"> {NOT_FOR}", ""]
    lines.append(
        f"What is marked {ASK.strip()} only the author can say. Numbers are those of CLAIM (2020) "
        "and TRIPOD+AI (2024)."
    )
    for title, items in sections.items():
        lines += ["", f"## {title}", "", "| CLAIM | TRIPOD+AI | item | |", "|---|---|---|---|"]
        lines += [f"| {i.claim} | {i.tripod} | {i.name} | {_plain(i.text)} |" for i in items]
        if title == "Results":
            lines += ["", *_table(run)]
    return "\n".join(lines) + "\n"


def _purpose(run: Run) -> list[Item]:
    labels = ", ".join(run.dataset["label_names"])
    return [
        Item("1", "1", "Title", f"Deep learning on sequences of slices; predicts {labels}"),
        Item("3", "3a-c", "Background", f"{ASK}clinical setting, intended role, inequalities"),
        Item("4", "4", "Objective", f"Development and internal evaluation. {ASK}the hypothesis"),
        Item("5-6", "5", "Study design", f"{ASK}prospective or retrospective, its goal"),
        Item("40-42", "17-19", "Openness",
             f"{ASK}ethics, registration, protocol, funding, data and code, patients' part"),
    ]  # fmt: skip


def _data(run: Run, audit: leakage.Audit | None) -> list[Item]:
    dataset, recipe = run.dataset, run.experiment
    counts, preparation = dataset["counts"], dataset["preparation"]
    labels = "; ".join(
        f"{name}: {of['positive']} positive, {of['negative']} negative, {of['unknown']} unknown"
        for name, of in counts["labels"].items()
    )
    if run.folds:
        count = len(run.folds) // run.repeats
        parts = f"{count} folds over all patients, each tested once"
        if run.repeats > 1:
            parts += f" in each of {run.repeats} repeats"
    else:
        parts = ", ".join(f"{split} {len(ids)}" for split, ids in run.splits.items()) + " studies"
    if audit is None:
        checked = "patients and slices of the same content are in one split only"
    else:
        checked = (
            f"{len(audit.shared_patients)} shared patients, {len(audit.pairs)} shared or nearly "
            f"equal pairs of slices ({audit.compared} compared by perceptual hash)"
        )
    return [
        Item("7", "5a-b", "Source", f"{ASK}hospitals, scanners, dates, how representative"),
        Item("8", "6a-c", "Eligibility", f"{ASK}who was included and left out, treatments"),
        Item("9-10", "7", "Preparation",
             f"{dataset['modality']}, {dataset['unit']}, {dataset['size']} pixels; reader "
             f"{preparation.get('reader', '')}; sequences: {recipe.sequence.evaluation.policy}, at "
             f"most {recipe.sequence.evaluation.length or recipe.sequence.length} slices"),
        Item("11", "9", "Inputs", f"The slices alone. {ASK}acquisition"),
        Item("12", "", "De-identification",
             f"Ids are salted hashes; no name, date or raw id is kept. {ASK}burned-in text"),
        Item("13", "11", "Missing data", "Unknown labels count in no loss and no figure"),
        Item("14-18", "8a-c", "Reference standard",
             f"{labels}. {ASK}who decided it, how, blinded to what, how well they agreed"),
        Item("19", "10", "Sample size",
             f"{counts['studies']} studies of {counts['patients']} patients, {counts['slices']} "
             f"slices. {ASK}why that is enough"),
        Item("20-21", "12a", "Partitions", f"By patient: {parts}; {checked}"),
        Item("33-34", "20a-c", "Participants", f"{ASK}flow, age, sex, severity, by partition"),
    ]  # fmt: skip


def _model(run: Run) -> list[Item]:
    recipe, versions = run.experiment, run.info["versions"]
    encoder, aggregator = recipe.model.encoder, recipe.model.aggregator
    loss, fit = recipe.loss, recipe.fit
    varied = [name for name, value in recipe.augment if value is not None]
    weights = encoder.weights if encoder.name == "keras_application" else "random"
    if recipe.pretraining:
        weights += f"; the encoder taught {recipe.pretraining.steps} steps on painted lesions"
    return [
        Item("22", "12c, 22", "Model",
             f"{encoder.name} encoder for each slice, {aggregator.name} over the slices, "
             f"{recipe.input.size} pixels, {recipe.input.channels} channels; all of it in "
             "experiment.yaml and model.keras"),
        Item("23", "", "Software", ", ".join(f"{k} {v}" for k, v in versions.items())),
        Item("24", "", "Initial weights", f"{weights}; seed {recipe.seed}"),
        Item("25", "12c", "Training",
             f"{recipe.optimizer.name}, rate {recipe.optimizer.learning_rate:g}, batches of "
             f"{fit.batch_size}, at most {fit.epochs} epochs; loss {loss.name}; varied by "
             f"{', '.join(varied) or 'nothing'}"),
        Item("26", "12c", "Choice of the model",
             f"Best epoch by {fit.monitor} on validation. {_origins(run)}. "
             f"{ASK}what else was tried"),
        Item("27", "", "Ensemble", "None" if not run.folds else CARD_OF_FOLDS),
        Item("", "13", "Class imbalance", f"Loss weights: {loss.weights}"),
        Item("", "15", "Output", _output(run)),
    ]  # fmt: skip


def _origins(run: Run) -> str:
    """Return how the recipe was chosen, as far as it says."""
    said = "; ".join(selection.origins(run.experiment))
    return said[:1].upper() + said[1:] if said else "The recipe names no search that chose it"


def _output(run: Run) -> str:
    said = [
        f"{label}: positive from {threshold:.3f}, temperature {run.temperatures.get(label, 1):.2f}"
        for label, threshold in run.thresholds.items()
    ]
    how = "chosen on held-out predictions" if run.folds else "chosen on validation"
    return f"A probability for each label, before scaling; {'; '.join(said)} ({how})"


def _results(run: Run) -> list[Item]:
    return [
        Item("28-29", "12e", "Measures",
             f"{_intervals(run)}; of folds, see `question` in metrics.json; calibration slope, "
             "intercept and O/E; decision curve (report.html)"),
        Item("", "", "Test reads", _reads(run)),
        Item("30", "12d, 23b", "Robustness",
             f"Thirds by number of slices (report.html). {ASK}scanners, sites"),
        Item("", "3c, 14", "Fairness",
             f"{ASK}subgroups by age, sex and ethnicity: `medseq-tf evaluate --subgroups CSV`"),
        Item("31", "", "Explanations", "`medseq-tf explain`, `medseq-tf report --data DIR`"),
        Item("32", "16", "External data",
             f"None seen by software. {ASK}`medseq-tf evaluate RUN --data OTHER --split all`"),
        Item("35-36", "21, 23a", "Performance", "The table below"),
        Item("37", "", "Failures", f"The patient table in report.html. {ASK}why they failed"),
    ]  # fmt: skip


def _intervals(run: Run) -> str:
    """Return which figures of the table have an interval, and of which kind."""
    table = run.metrics
    table = table[table["metric"].isin(evaluate.SHOWN)]
    bare = table["low"].isna()
    kinds = table[~bare].groupby("interval", sort=False)["metric"].unique()
    said = [f"95% intervals ({kind}): {', '.join(names)}" for kind, names in kinds.items()]
    without = [name for name in table["metric"].unique() if bare[table["metric"] == name].all()]
    if without:
        said.append(f"without interval: {', '.join(without)}")
    if (table["split"] == "validation").any():
        said.append(f"validation's figures have none, being {selection.LABEL}")
    return "; ".join(said)


def _reads(run: Run) -> str:
    """Return how often the test patients have answered for figures."""
    if run.reads is not None:
        return f"As far as this data set knows, {run.reads.text()}"
    tested = (run.metrics["split"] == "test").any()
    return "Not counted" if tested else "No test patients"


def _use(run: Run) -> list[Item]:
    known = "; ".join(run.notes) or "nothing was noted in training"
    return [
        Item("38", "26", "Limits", f"{NOT_FOR} Noted: {known}. {ASK}biases, generality"),
        Item("39", "25, 27a-c", "Use in practice",
             f"{ASK}who would act on it, how poor images are met, what has to be done first"),
        Item("", "24", "Updating", f"{ASK}whether and when it is trained anew"),
    ]  # fmt: skip


def _table(run: Run) -> Sequence[str]:
    table = run.metrics
    shown = table[table["metric"].isin(evaluate.SHOWN)]
    lines = ["| split | label | metric | value | 95% interval | studies (positive) |"]
    lines.append("|---|---|---|---|---|---|")
    notes = list(dict.fromkeys(note for note in shown["note"] if note))
    for row in shown.itertuples():
        split = f"{row.split}, {selection.LABEL}" if row.split == "validation" else row.split
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        value = "-" if pd.isna(row.value) else f"{row.value:.3f}"
        interval = "-" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        lines.append(
            f"| {split} | {_plain(row.label)} | {row.metric} | {value} | {interval} | "
            f"{row.n} ({row.positives}){mark} |"
        )
    for number, note in enumerate(notes, start=1):
        lines += ["", f"[{number}] {_plain(note)}"]
    return lines


def _plain(text: str) -> str:
    """Text for a cell of a table: no bar, no line break, no markup."""
    text = " ".join(str(text).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
