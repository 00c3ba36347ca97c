"""Takes a finished run; gives one self-contained HTML file: data, metrics, curves, patients."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medseq_tf import metrics
from medseq_tf.evaluate import SHOWN, fold_summary, fold_table
from medseq_tf.runs import Run, atomic

STYLE = """
:root { --ink: #1c2733; --soft: #5c6b7a; --line: #d9e0e6; --accent: #0b6e99; --warn: #8a4b08; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.sub { color: var(--soft); margin-top: .2rem; }
.notice { border-left: 4px solid var(--warn); padding: .5rem 1rem; background: #fdf6ec; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; } td.text, th.text { text-align: left; }
tr.wrong td { color: var(--warn); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
.figures img { width: 100%; } details { margin: .6rem 0; } pre { overflow-x: auto; }
@media print { body { max-width: none; margin: 0; } details { display: none; } }
"""


def write(run: Run) -> None:
    """Write `report.html` into the run's folder; it needs no network to be read."""
    with atomic(run.path / "report.html") as temporary:
        temporary.write_text(page(run), "utf-8")


def page(run: Run) -> str:
    """Return the report of a finished run as HTML."""
    recipe, dataset, predictions = run.experiment, run.dataset, run.predictions
    table = run.metrics
    split = "test" if (table["split"] == "test").any() else "validation"
    sections = [
        f"<h1>{html.escape(run.name)}</h1>",
        f"<p class='sub'>{html.escape(recipe.description)}</p>",
        "<p class='notice'>A research result. It is not a medical device: no diagnosis or "
        "treatment may rest on it, and it says nothing about patients unlike those below.</p>",
        "<h2>Data and splits</h2>",
        _table(_counts(run)),
        f"<p class='sub'>Data set fingerprint {dataset['fingerprint'][:16]}; splits are by patient."
        "</p>",
        f"<h2>Metrics ({split} studies)</h2>",
        "<p class='sub'>Thresholds were chosen on validation; 95% intervals by bootstrap over "
        "patients.</p>",
        *(f"<p class='notice'>{html.escape(note)}</p>" for note in run.notes),
        _table(_metric_rows(table[table["split"] == split])),
    ]
    if run.folds:
        sections += ["<h2>Folds</h2>", _table(_fold_rows(predictions))]
    figures = [
        curves(run.folds or [run]),
        discrimination(predictions[predictions["split"] == split], dataset["label_names"]),
    ]
    sections += [
        "<h2>Training and discrimination</h2>",
        "<div class='figures'>",
        *(_image(figure, alternative) for figure, alternative in figures),
        "</div>",
        "<h2>Patients</h2>",
        "<p class='sub'>The wrong calls first, the surest of them on top.</p>",
        _patients(predictions[predictions["split"] == split]),
        "<h2>Recipe</h2>",
        f"<details><summary>every value, as used</summary><pre>{html.escape(recipe.to_yaml())}"
        "</pre></details>",
        f"<details><summary>versions</summary><pre>{html.escape(json.dumps(run.info, indent=1))}"
        "</pre></details>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(run.name)} · medseq_tf</title><style>{STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>"
    )


def curves(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Return losses and monitored metric by epoch, a line a run, and their alternative text."""
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    monitor = f"val_{runs[0].experiment.fit.monitor}"
    for i, run in enumerate(runs):
        history, first = run.history, i == 0
        epochs = history["epoch"]
        left.plot(epochs, history["loss"], color="#5c6b7a", label="training" if first else None)
        if "val_loss" in history:
            label = "validation" if first else None
            left.plot(epochs, history["val_loss"], color="#c4622d", linestyle="--", label=label)
        if monitor in history:
            right.plot(epochs, history[monitor], color="#0b6e99", marker=".")
    left.set(xlabel="epoch", title="Loss", ylim=(0, None))
    left.legend(frameon=False)
    right.set(xlabel="epoch", title=monitor.replace("val_", "Validation ").replace("_", " "))
    ends = ", ".join(f"{run.history['loss'].iloc[-1]:.3f}" for run in runs)
    return figure, f"Loss and validation metric by epoch; training loss ends at {ends}"


def discrimination(predictions: pd.DataFrame, labels: Sequence[str]) -> tuple[Figure, str]:
    """Return ROC and precision-recall curves by label, and their alternative text."""
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label in labels:
        part = predictions[(predictions["label"] == label) & predictions["truth"].notna()]
        if part["truth"].nunique() < 2:
            continue
        truth, probability = part["truth"].to_numpy(float), part["probability"].to_numpy(float)
        roc = metrics.roc_points(truth, probability)
        left.plot(roc["false_positive_rate"], roc["sensitivity"], label=label)
        points = metrics.precision_recall_points(truth, probability)
        right.step(points["recall"], points["precision"], where="pre", label=label)
    left.plot([0, 1], [0, 1], color="#d9e0e6", zorder=0)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", aspect="equal")
    right.set(xlabel="recall", ylabel="precision", title="Precision and recall", ylim=(0, 1.05))
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, loc="lower right")
    return figure, f"ROC and precision-recall curves for {', '.join(labels)}"


def _image(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'>"


def _counts(run: Run) -> pd.DataFrame:
    counts = run.dataset["counts"]
    if run.folds:
        splits = {f"fold {i} test": len(f.splits["test"]) for i, f in enumerate(run.folds, 1)}
    else:
        splits = {split: len(studies) for split, studies in run.splits.items()}
    return pd.DataFrame(
        [{"part": "data set", "studies": counts["studies"]}]
        + [{"part": split, "studies": count} for split, count in splits.items()]
    )


def _metric_rows(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[table["metric"].isin(SHOWN)]
    low_high = zip(shown["low"].astype(float), shown["high"].astype(float), strict=True)
    rows = pd.DataFrame(
        {
            "label": shown["label"],
            "metric": shown["metric"].str.replace("_", " "),
            "value": shown["value"].astype(float).map("{:.3f}".format),
            "95% interval": ["-" if np.isnan(a) else f"{a:.3f} to {b:.3f}" for a, b in low_high],
            "note": shown["note"].fillna(""),
        }
    )
    return rows if rows["note"].any() else rows.drop(columns="note")


def _fold_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a label and metric, one column a fold, then mean and standard deviation."""
    tested = predictions[predictions["split"] == "test"]
    folds = fold_table(tested).melt(["fold", "label"], list(SHOWN), var_name="metric")
    wide = folds.pivot_table("value", ["label", "metric"], "fold", sort=False, dropna=False)
    summary = fold_summary(tested).set_index(["label", "metric"])
    wide.columns = [f"fold {fold}" for fold in wide.columns]
    wide = wide.assign(mean=summary["mean"], sd=summary["sd"]).map("{:.3f}".format).reset_index()
    return wide.assign(metric=wide["metric"].str.replace("_", " "))


def _patients(predictions: pd.DataFrame) -> str:
    table = predictions.assign(
        wrong=(predictions["positive"] != (predictions["truth"] == 1))
        & predictions["truth"].notna(),
        distance=(predictions["probability"] - predictions["threshold"]).abs(),
    ).sort_values(["wrong", "distance"], ascending=False)
    rows = [
        f"<tr{' class=wrong' if row.wrong else ''}><td class='text'>{row.study}</td>"
        f"<td class='text'>{html.escape(row.label)}</td><td>{row.slices}</td>"
        f"<td>{'' if np.isnan(row.truth) else int(row.truth)}</td><td>{row.probability:.3f}</td>"
        f"<td>{'positive' if row.positive else 'negative'}</td></tr>"
        for row in table.itertuples()
    ]
    head = "".join(
        f"<th{' class=text' if name in ('study', 'label') else ''}>{name}</th>"
        for name in ("study", "label", "slices", "truth", "probability", "call")
    )
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _table(frame: pd.DataFrame) -> str:
    """Return a table as HTML, words to the left and numbers to the right."""
    words = [not frame[name].astype(str).str.fullmatch(r"[-\d. to]*").all() for name in frame]

    def row(tag: str, values: Iterable[object]) -> str:
        cells = (
            f"<{tag}{' class=text' if word else ''}>{html.escape(str(value))}</{tag}>"
            for value, word in zip(values, words, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(row("td", values) for values in frame.itertuples(index=False))
    return f"<div class='wide'><table>{row('th', frame.columns)}{body}</table></div>"
