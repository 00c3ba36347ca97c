"""Takes a finished run, and perhaps its data; gives one self-contained HTML file.

`report.html` holds no image of a patient: figures, tables, and study ids, which are salted hashes.
So it can be mailed. Contact sheets of slices are made only when they are asked for, into a file of
its own, `report_with_images.html`, which says so on top and is never logged to MLflow.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medseq_tf.dataset import leakage, selection, subgroups
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import cross_validation, evaluate, metrics
from medseq_tf.evaluation.explain import explain
from medseq_tf.files import atomic, destination
from medseq_tf.reporting import figures
from medseq_tf.reporting.figures import Drawing
from medseq_tf.runs.run import Run, RunOrPath

STYLE = """
:root { --ink: #1c2733; --soft: #52606d; --line: #d9e0e6; --accent: #0b6e99; --warn: #8a4b08;
  --paper: #f6f8fa; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { max-width: 46rem; margin: .4rem 0; }
.sub { color: var(--soft); }
.notice { border-left: 4px solid var(--warn); padding: .5rem 1rem; background: #fdf6ec;
  max-width: none; }
.key { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.key div { background: var(--paper); border-radius: .5rem; padding: .6rem 1rem; flex: 1 1 9rem; }
.key b { display: block; font-size: 1.5rem; line-height: 1.3; } .key span { color: var(--soft);
  font-size: .85rem; display: block; }
nav { margin: 1rem 0; } nav a { margin-right: .9rem; color: var(--accent); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; } td { white-space: nowrap; } td.text { white-space: normal; }
th { color: var(--soft); font-weight: 600; } td.text, th.text { text-align: left; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tr.wrong td { color: var(--warn); font-weight: 600; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; } figcaption { color: var(--soft); font-size: .85rem; }
.sheet img { min-width: 40rem; }
figure img { width: 100%; height: auto; } figure b { display: block; margin-bottom: .2rem; }
.study { break-inside: avoid; border-top: 1px solid var(--line); padding-top: .4rem; }
details { margin: .6rem 0; } pre { overflow-x: auto; font-size: .85rem; }
@media (max-width: 40rem) { body { margin: 1rem auto; font-size: 15px; }
  th, td { padding: .25rem .45rem; } }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } nav, details { display: none; }
  .wide { overflow: visible; } .sheet img { min-width: 0; } table { font-size: 8pt; }
  th, td { padding: .15rem .4rem; } td.text { overflow-wrap: anywhere; }
  tr { break-inside: avoid; } thead { display: table-header-group; }
  .figures { grid-template-columns: 1fr 1fr; } .notice, .key div { print-color-adjust: exact; } }
"""

SORT = """
document.querySelectorAll('table.sortable').forEach(table => {
  const body = table.tBodies[0];
  table.querySelectorAll('th').forEach((head, column) => {
    head.querySelector('button').addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') !== 'descending';
      table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const rows = [...body.rows].map(row => [key(row), row]);
      const numbers = rows.every(([value]) => value === '' || !isNaN(value));
      rows.sort(([a], [b]) => numbers ? a - b : a.localeCompare(b));
      if (down) rows.reverse();
      body.append(...rows.map(([, row]) => row));
    });
  });
});
"""

NOT_FOR = (
    "A research result, not a medical device. No diagnosis, treatment or triage may rest on it. It "
    "says nothing about patients, scanners or hospitals unlike those below, nothing about findings "
    "other than those it was trained on, and a negative call rules nothing out."
)

NAMES = {
    "auroc": "AUROC",
    "auroc_pooled": "AUROC, all folds ranked together",
    "average_precision": "average precision",
    "average_precision_pooled": "average precision, all folds together",
    "sensitivity_at_90_specificity": "sensitivity at 90% specificity",
    "specificity_at_90_sensitivity": "specificity at 90% sensitivity",
    "recall": "sensitivity (recall)",
    "precision": "precision (positive predictive value)",
    "f1": "F1",
    "f1_macro": "F1, mean of both classes",
    "brier": "Brier score",
    "expected_calibration_error": "expected calibration error",
    "observed_expected": "O/E, observed over expected",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
}

_OF_REPORTS = " · medseq_tf</title>"
"""What a report is known by, which a new one may replace."""


def report(
    run: RunOrPath,
    data: str | os.PathLike | Prepared | None = None,
    images: bool = False,
    out: str | os.PathLike | None = None,
) -> Path:
    """Write a run's report anew, with its data also what the model looked at.

    Args:
        run: a finished run.
        data: the prepared data set of the run: for the audit, sources, and chosen studies (the
          surest wrong ones, a right one of each class) with the importance of their slices.
        images: also show those studies' slices with heat overlays. They are images of patients.
        out: the file; default `report.html` in the run's folder, with images
          `report_with_images.html`.

    Returns:
        The file.

    Raises:
        InputError: the run is not finished, or the data do not fit it.
    """
    run = Run.open(run)
    run.require_finished()
    if images and data is None:
        raise InputError("images need the prepared data set: give --data too")
    prepared = Prepared.load(data) if isinstance(data, str | os.PathLike) else data
    name = "report_with_images.html" if images else "report.html"
    path = run.path / name if out is None else destination(out)
    if path.exists() and not _is_report(path):
        raise InputError(f"{path}: is there already and is no report; choose another --out")
    audit = evaluate.audit_splits(run, prepared) if prepared is not None else None
    shown = _chosen(run, prepared) if prepared is not None else []
    groups = subgroups.sources(prepared) if prepared is not None else None
    with atomic(path) as temporary:
        temporary.write_text(page(run, audit, shown, images, groups), "utf-8")
    return path


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return _OF_REPORTS.encode() in file.read(4096)


def _chosen(run: Run, prepared: Prepared) -> list[explain.Explanation]:
    """Explain three surest wrong calls and a right one of each class; of many labels, one each."""
    labels = prepared.label_names
    wrong = 3 if len(labels) == 1 else 1
    pairs = [
        (study, label)
        for label in labels
        for study in explain.choose(run.predictions, label, wrong)
    ]
    return explain.studies(run, prepared, pairs)


def write(run: Run, audit: leakage.Audit | None = None) -> None:
    """Write `report.html` into the run's folder, without images, as at the end of a training."""
    with atomic(run.path / "report.html") as temporary:
        temporary.write_text(page(run, audit), "utf-8")


def page(
    run: Run,
    audit: leakage.Audit | None = None,
    shown: Sequence[explain.Explanation] = (),
    images: bool = False,
    groups: pd.DataFrame | None = None,
) -> str:
    """Return the report of a finished run as HTML.

    Args:
        run: the run.
        audit: what its splits share.
        shown: explanations of chosen studies.
        images: whether to show their slices.
        groups: subgroups by study id, as for `evaluate.evaluate_predictions`.
    """
    predictions, table = run.predictions, run.metrics
    labels = run.dataset["label_names"]
    split = "test" if (table["split"] == "test").any() else "validation"
    table = table[table["split"] == split]
    why = selection.said(table)
    judged = predictions[predictions["split"] == split].assign(selected=bool(why))
    parts = {"Data": _data(run, audit)}
    if judged.empty:
        nothing = "<p class='notice'>No study was held out, so nothing can be said of it.</p>"
        parts |= {"Figures of merit": nothing, "Curves": _figures(_training(run))}
    else:
        parts |= {
            "Figures of merit": _merit(run, table, split),
            "Curves": _curves(run, judged, labels),
            "Calls by patient": _confusion(judged),
            "Calibration": _calibration(run, judged, why),
            "Subgroups": _subgroups(judged, labels, groups, why),
            "What the model looked at": _explained(shown, images),
            "Patients": _patients(judged),
        }
    parts["Recipe"] = _recipe(run)
    links = "".join(f"<a href='#{_anchor(name)}'>{name}</a>" for name in parts)
    sections = [
        f"<h1>{html.escape(run.name)}</h1>",
        f"<p class='sub'>{html.escape(run.experiment.description)}</p>",
        f"<p class='notice'><strong>What this is not for.</strong> {NOT_FOR}</p>",
        "<p class='notice'><strong>This file shows images of patients.</strong> Keep it where they "
        "are kept.</p>"
        if images
        else "",
        "" if judged.empty else _summary(table, split, bool(run.folds)),
        f"<nav aria-label='Sections'>{links}</nav>",
        *(
            f"<section><h2 id='{_anchor(name)}'>{name}</h2>{part}</section>"
            for name, part in parts.items()
        ),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='robots' content='noindex'>"
        f"<title>{html.escape(run.name)}{_OF_REPORTS}<style>{STYLE}</style></head><body>"
        + "\n".join(sections)
        + f"<script>{SORT}</script></body></html>"
    )


# ------------------------------------------------------------------------------- the sections


def _summary(table: pd.DataFrame, split: str, folds: bool) -> str:
    """Return the key figures, and in words what they allow to say of chance."""
    label = "macro" if (table["label"] == "macro").any() else table["label"].iloc[0]
    rows = table[table["label"] == label].set_index("metric")
    boxes = []
    for metric in ("auroc", "average_precision", "recall", "specificity", "brier"):
        row = rows.loc[metric]
        interval = "no interval" if pd.isna(row["low"]) else _between(row["low"], row["high"])
        boxes.append(
            f"<div><b>{_number(row['value'])}</b>{_name(metric)}<span>{interval}</span></div>"
        )
    row = rows.loc["auroc"]
    known = table.loc[table["label"] != "macro", "n"].max()
    how = "each tested by the model that had not seen it" if folds else f"of the {split} split"
    words = f"{known:.0f} studies, {how}."
    if pd.isna(row["value"]):
        words += f" The AUROC cannot be said: {html.escape(str(row['note']))}."
    elif pd.isna(row["low"]):
        words += f" The AUROC has no interval: {html.escape(str(row['note']))}."
    elif _few(table):
        words += (
            f" <strong>Fewer than {metrics.FEW_PATIENTS} patients of the rarer class: the figures "
            "describe these patients, and nothing is concluded from them.</strong>"
        )
    elif row["low"] <= 0.5 <= row["high"]:
        words += (
            " <strong>The interval of the AUROC holds 0.5: on these patients the model is not shown"
            " to be better than chance.</strong>"
        )
    elif row["high"] < 0.5:
        words += (
            " <strong>The interval of the AUROC lies below 0.5: the model ranks these patients the "
            "wrong way round.</strong>"
        )
    of = f"mean of {table['label'].nunique() - 1} labels; " if label == "macro" else ""
    return f"<div class='key'>{''.join(boxes)}</div><p class='sub'>{of}{words}</p>"


def _few(table: pd.DataFrame) -> bool:
    """Whether some label has too few patients to conclude from."""
    said = table["note"].fillna("").str.contains(metrics.DESCRIBED, regex=False)
    of_labels = table[table["label"] != "macro"]
    rarer = np.minimum(of_labels["positives"], of_labels["n"] - of_labels["positives"])
    return bool(said.any() or ((rarer > 0) & (rarer < metrics.FEW_PATIENTS)).any())


def _data(run: Run, audit: leakage.Audit | None) -> str:
    counts = run.dataset["counts"]
    labels = pd.DataFrame(
        [{"label": name, **of} for name, of in counts["labels"].items()]
    )  # positive, negative, unknown
    parts = [
        f"<p>{counts['studies']} studies of {counts['patients']} patients, {counts['slices']} "
        f"slices ({html.escape(str(run.dataset['modality']))}, {run.dataset['size']} pixels). "
        "Splits are by patient. Fingerprint "
        f"<code>{run.dataset['fingerprint'][:16]}</code>.</p>",
        _table(labels),
        "<h3>Splits</h3>",
        _table(audit.parts if audit is not None else _counts(run)),
    ]
    if audit is None:
        parts.append(
            "<p class='sub'>The splits were checked for shared patients and slices of the same "
            "content. With the data, <code>medseq-tf report RUN --data DIR</code> also looks for "
            "near duplicates.</p>"
        )
    elif audit.is_clean:
        parts.append(
            "<p>Audit: no patient, no slice and no near duplicate of a slice is in two parts "
            f"({audit.compared} slices compared by perceptual hash; {audit.blank} say too little to"
            " be compared).</p>"
        )
    else:
        parts.append(
            f"<p class='notice'><strong>The parts share something.</strong> "
            f"{len(audit.shared_patients)} patients and {len(audit.pairs)} pairs of slices are in "
            "two parts: the figures below may be too good.</p>" + _table(audit.pairs.head(20))
        )
    return "".join(parts)


def _counts(run: Run) -> pd.DataFrame:
    if run.folds:
        rows = [(f"fold {i}", len(f.splits["test"])) for i, f in enumerate(run.folds, 1)]
    else:
        rows = [(split, len(studies)) for split, studies in run.splits.items()]
    return pd.DataFrame(rows, columns=["part", "studies"])


def _merit(run: Run, table: pd.DataFrame, split: str) -> str:
    words = (
        f"{split.capitalize()} studies. The operating point was chosen on validation. 95% score "
        "intervals over patients: of the AUROC by DeLong's variance, of shares Wilson's, of "
        "averages by the jackknife; with several studies a patient, of as many independent ones as "
        f"give the same variance. They say what to expect of {cross_validation.FITTED}."
    )
    if run.folds:
        words = (
            f"{split.capitalize()} studies, each called at its own fold's threshold. The 95% "
            f"intervals say what to expect of {cross_validation.RECIPE}: they count the spread of "
            "training beside that of the patients."
            " AUROC, average precision and the trade-offs are means over the folds, which is the "
            "figure to quote: each fold has a model of its own, and probabilities of two models do "
            "not rank each other's patients; all folds are ranked together only where their "
            "probabilities are alike."
        )
    parts = [f"<p class='sub'>{words}</p>"]
    if split == "validation":
        parts = [f"<p class='notice'>No study was held out. {selection.VALIDATION}.</p>"]
    if reads := run.reads:
        parts.append(f"<p class='sub'>Test reads: {reads.text()}.</p>")
    parts += [f"<p class='notice'>{html.escape(note)}</p>" for note in run.notes]
    parts.append(_table_with_notes(_metric_rows(table)))
    if several := metrics.multiplicity(int(table["low"].notna().sum())):
        parts.append(f"<p class='sub'>{several}</p>")
    if run.folds:
        parts += ["<h3>Folds</h3>", _table(_fold_rows(run.predictions))]
    return "".join(parts)


def _metric_rows(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[table["metric"].isin(evaluate.SHOWN)]
    rows = pd.DataFrame(
        {
            "label": shown["label"],
            "metric": shown["metric"].map(_name),
            "value": shown["value"].map(_number),
            "95% interval": _intervals(shown),
            "method": shown["interval"].fillna(""),
            "note": shown["note"].fillna(""),
        }
    )
    return rows


def _fold_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a label and metric, one column a fold, then mean and standard deviation.

    Of repeated folds there is one column a repeat, the mean of its folds.
    """
    tested = predictions[predictions["split"] == "test"]
    shown = [name for name in evaluate.SHOWN if name in metrics.METRICS]
    folds = evaluate.fold_table(tested).melt(["fold", "label"], shown, var_name="metric")
    wide = folds.pivot_table("value", ["label", "metric"], "fold", sort=False, dropna=False)
    summary = evaluate.fold_summary(tested).set_index(["label", "metric"])
    repeat_of = tested.groupby("fold")["repeat"].first() if "repeat" in tested else None
    if repeat_of is not None and repeat_of.nunique() > 1:
        wide = wide.T.groupby(repeat_of).mean().T
        wide.columns = [f"repeat {repeat}" for repeat in wide.columns]
    else:
        wide.columns = [f"fold {fold}" for fold in wide.columns]
    wide = wide.assign(mean=summary["mean"], sd=summary["sd"]).map(_number).reset_index()
    return wide.assign(metric=wide["metric"].map(_name))


def _curves(run: Run, judged: pd.DataFrame, labels: Sequence[str]) -> str:
    drawings = figures.evaluation(judged, labels)
    note = "" if drawings else "<p class='sub'>No curves: both classes are needed.</p>"
    return note + _figures([*drawings, *_training(run)])


def _training(run: Run) -> list[Drawing]:
    return figures.training(run.folds or [run])


def _confusion(judged: pd.DataFrame) -> str:
    parts = [f"<p class='sub'>{evaluate.ANY_POSITIVE}</p>"]
    for row in evaluate.confusion_table(judged).itertuples():
        parts.append(
            f"<h3>{html.escape(row.label)}: {row.patients} patients</h3><div class='wide'><table>"
            "<thead><tr><th class='text'>truth</th><th>called positive</th><th>called negative</th>"
            "</tr></thead><tbody><tr><td class='text'>positive</td>"
            f"<td>{row.true_positives}</td><td>{row.false_negatives}</td></tr>"
            f"<tr><td class='text'>negative</td><td>{row.false_positives}</td>"
            f"<td>{row.true_negatives}</td></tr></tbody></table></div>"
        )
    return "".join(parts)


def _calibration(run: Run, judged: pd.DataFrame, why: str = "") -> str:
    table = evaluate.calibration_table(judged)
    table = selection.without_intervals(table, np.full(len(table), bool(why)), why)
    temperatures = [part.temperatures for part in run.folds or [run]]
    said = "; ".join(
        f"{html.escape(label)}: {', '.join(f'{of.get(label, 1.0):.2f}' for of in temperatures)}"
        for label in table["label"].unique()
    )
    rows = pd.DataFrame({"label": table["label"], "metric": table["metric"].map(_name)})
    for when, name in (("before", "as predicted"), ("after", "scaled")):
        rows[name] = table[when].map(_number)
        ranges = (evaluate.calibration_range(row, when) for row in table.to_dict("records"))
        rows["95% interval" + " " * (when == "after")] = [words.strip(" ()") for words in ranges]
    rows["note"] = table["note"].fillna("")
    return (
        f"<p class='sub'>Temperature scaling, fitted on validation ({said}). It changes no call: "
        "the threshold is scaled with the probability. O/E is the share of positives over the mean "
        "probability; the intercept is what the logits lack (0 is right), the slope what they are "
        "to be multiplied by (below 1: the probabilities are too extreme). Right probabilities have"
        " a calibration error too, the greater the fewer the studies: beside it stand the median "
        "and the 95th percentile of what they would have.</p>" + _table_with_notes(rows)
    )


def _subgroups(
    judged: pd.DataFrame, labels: Sequence[str], groups: pd.DataFrame | None, why: str = ""
) -> str:
    table = evaluate.subgroup_table(judged, labels, groups)
    if table.empty:
        return "<p class='sub'>None.</p>"
    table = selection.without_intervals(table, np.full(len(table), bool(why)), why)
    rows = []
    for (subgroup, group, label), part in table.groupby(["subgroup", "group", "label"], sort=False):
        first = part.iloc[0]
        count = f"{first['n']} ({first['positives']})"
        row = {"subgroup": subgroup, "group": group, "label": label, "studies (positive)": count}
        for found, interval in zip(part.to_dict(orient="records"), _intervals(part), strict=True):
            row[_name(found["metric"])] = f"{_number(found['value'])} ({interval})"
        notes = dict.fromkeys(note for note in part["note"] if note)
        rows.append({**row, "note": "; ".join(notes)})
    return (
        "<p class='sub'>Thirds by the number of slices, and the sources where there are several. "
        "Other columns: <code>medseq-tf evaluate --subgroups CSV</code>. "
        f"{metrics.multiplicity(int(table['low'].notna().sum()))}</p>"
        + _table_with_notes(pd.DataFrame(rows))
    )


def _explained(shown: Sequence[explain.Explanation], images: bool) -> str:
    if not shown:
        return (
            "<p class='sub'><code>medseq-tf report RUN --data DIR</code> adds which slices mattered"
            " for chosen studies, and with <code>--images</code> the slices themselves.</p>"
        )
    parts = [
        "<p class='sub'>The surest wrong calls first, then the surest right one of each class. The "
        "importance of a slice is how much it adds to the probability beside a random part of the "
        "others. Importance and heat say what moved this model; they prove no finding.</p>"
    ]
    for found in shown:
        for label in found.labels:
            truth, probability = found.truth[label], found.probabilities[label]
            called = "positive" if probability >= found.thresholds[label] else "negative"
            known = "unknown" if np.isnan(truth) else ("positive" if truth else "negative")
            parts.append(
                f"<div class='study'><h3>Study {found.study}, {html.escape(label)}: called "
                f"{called} at {probability:.2f}, truth {known}</h3>"
            )
            best = ", ".join(map(str, found.top(3, label)["slice"]))
            words = (
                f"Importance of each slice (bars) and the probability after each slice (line); "
                f"slices {best} spoke most for {label}"
            )
            if images:
                sheet = _image(found.sheet(label), found.alternative(label), "", "png")
                parts.append(f"<div class='wide sheet'>{sheet}</div>")
            parts.append(_image(found.curves(label), words, words + "."))
            parts.append("</div>")
        parts += [f"<p class='sub'>{html.escape(note)}</p>" for note in found.notes]
    return "".join(parts)


def _patients(judged: pd.DataFrame) -> str:
    """Return the table of all studies: the wrong calls first, the surest of them on top."""
    table = judged.assign(
        wrong=(judged["positive"] != (judged["truth"] == 1)) & judged["truth"].notna(),
        distance=(judged["probability"] - judged["threshold"]).abs(),
    ).sort_values(["wrong", "distance", "study"], ascending=[False, False, True])
    folds = "fold" in table
    rows = [
        f"<tr{' class=wrong' if row.wrong else ''}><td class='text'>{row.study}</td>"
        f"<td class='text'>{html.escape(row.label)}</td>"
        + (f"<td>{row.fold}</td>" if folds else "")
        + f"<td>{row.slices}</td><td>{'' if np.isnan(row.truth) else int(row.truth)}</td>"
        f"<td>{row.probability:.3f}</td><td>{row.calibrated:.3f}</td><td>{row.threshold:.3f}</td>"
        f"<td>{'positive' if row.positive else 'negative'}{', wrong' * row.wrong}</td></tr>"
        for row in table.itertuples()
    ]
    names = ["study", "label", *(["fold"] if folds else []), "slices", "truth", "probability"]
    names += ["scaled", "threshold", "call"]
    head = "".join(
        f"<th scope='col'{' class=text' if name in ('study', 'label') else ''}>"
        f"<button type='button'>{name}</button></th>"
        for name in names
    )
    return (
        f"<p class='sub'>{int(table['wrong'].sum())} wrong calls of "
        f"{int(table['truth'].notna().sum())} come first, the surest of them on top. A click on a "
        "heading sorts by it. Ids are salted hashes.</p><div class='wide'>"
        f"<table class='sortable'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _recipe(run: Run) -> str:
    values = html.escape(run.experiment.to_yaml())
    info = html.escape(json.dumps(run.info, indent=1))
    return (
        f"<details><summary>every value, as used</summary><pre>{values}</pre></details>"
        f"<details><summary>versions</summary><pre>{info}</pre></details>"
    )


# ------------------------------------------------------------------------------------ groundwork


def _figures(drawings: Sequence[Drawing]) -> str:
    items = (_image(figure, words, words, title=title) for figure, title, words in drawings)
    return f"<div class='figures'>{''.join(items)}</div>"


def _image(
    figure: Figure, alternative: str, caption: str, kind: str = "svg", title: str = ""
) -> str:
    """Return a figure with its caption; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "medseq_tf", "font.size": 10}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    width, height = (round(side * 100) for side in figure.get_size_inches())
    head = f"<b>{html.escape(title)}</b>" if title else ""
    foot = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f"<figure>{head}<img alt='{html.escape(alternative)}' width='{width}' height='{height}' "
        f"src='data:{mime};base64,{data}'>{foot}</figure>"
    )


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _number(value: float | None) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _between(low: float, high: float) -> str:
    return f"{low:.3f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high:.3f}"


def _intervals(table: pd.DataFrame, low: str = "low", high: str = "high") -> list[str]:
    pairs = zip(table[low].astype(float), table[high].astype(float), strict=True)
    return ["–" if np.isnan(a) else _between(a, b) for a, b in pairs]


def _table_with_notes(frame: pd.DataFrame) -> str:
    """Return a table as HTML, what stands in its column `note` numbered and below it."""
    notes = list(dict.fromkeys(note for note in frame["note"] if note))
    if not notes:
        return _table(frame.drop(columns="note"))
    marks = ["" if not note else f"[{notes.index(note) + 1}]" for note in frame["note"]]
    lines = (f"[{i}] {html.escape(note)}" for i, note in enumerate(notes, start=1))
    return _table(frame.assign(note=marks)) + f"<p class='sub'>{'<br>'.join(lines)}</p>"


def _table(frame: pd.DataFrame) -> str:
    """Return a table as HTML, words to the left and numbers to the right."""
    words = [not frame[name].astype(str).str.fullmatch(r"[-–\d.\s to()]*").all() for name in frame]

    def row(tag: str, values: Iterable[object]) -> str:
        cells = (
            f"<{tag}{' class=text' if word else ''}>{html.escape(str(value))}</{tag}>"
            for value, word in zip(values, words, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(row("td", values) for values in frame.itertuples(index=False))
    head = f"<thead>{row('th', frame.columns)}</thead>"
    return f"<div class='wide'><table>{head}<tbody>{body}</tbody></table></div>"
