"""Reports of classes: what stands in them is what was measured, whatever the classes are called."""

from __future__ import annotations

import html
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from class_predictions import class_predictions
from small_run import run_small
from test_report import check

from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.metrics.interval_text import interval, number
from medseq_tf.evaluation.scoring import score
from medseq_tf.readers.classes import Classes
from medseq_tf.reporting import class_figures, class_tables, model_card, report
from medseq_tf.runs.run import Run

TUMOURS = Classes("diagnosis", ("meningioma", "glioma", "pituitary"))
GRADES = Classes("grade", ("0", "1", "2", "3"), ordered=True)
ODD = Classes(
    "diagnosis",
    (
        "Hemangioblastoma of the cerebellum, WHO grade 1, with cyst",
        "脳腫瘍（グリア細胞由来）",
        "ورم سحائي",
        "<script>alert('1')</script> & \"{{ 7 * 7 }}\"",
    ),
)

FORBIDDEN = re.compile(r"thresholds?\b(?!: youden)|operating point|called positive|cuts?\b", re.I)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "classes"
    arguments = {"patients": 36, "size": 32, "workers": 1, "progress": False}
    prepare("demo", out=out, kind="classes", difficulty=0.0, **arguments)
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return run_small(data, tmp_path_factory.mktemp("runs") / "first", "fit.epochs=1")


@pytest.fixture
def made_up(run, tmp_path):
    """Make a run's folder of other classes and predictions."""

    def make(classes, predictions, name="made_up"):
        folder = tmp_path / name
        shutil.copytree(run.path, folder)
        dataset = json.loads((folder / "dataset.json").read_text("utf-8"))
        dataset |= {"label_names": list(classes.names), "classes": classes.to_json()}
        counts = predictions.drop_duplicates(["study", "label"]).groupby("label")["truth"]
        dataset["counts"]["labels"] = {
            name: {
                "positive": int((truth == 1).sum()),
                "negative": int((truth == 0).sum()),
                "unknown": int(truth.isna().sum()),
            }
            for name, truth in counts
        }
        (folder / "dataset.json").write_text(json.dumps(dataset), "utf-8")
        predictions.to_parquet(folder / "predictions.parquet")
        table = score(predictions, classes.names, 50, classes)
        results = json.loads((folder / "metrics.json").read_text("utf-8"))
        results |= {"table": json.loads(table.to_json(orient="records"))}
        (folder / "metrics.json").write_text(json.dumps(results), "utf-8")
        if "fold" in predictions:
            info = json.loads((folder / "run.json").read_text("utf-8"))
            repeats = int(predictions["repeat"].max())
            info |= {"folds": predictions["fold"].nunique() // repeats, "repeats": repeats}
            (folder / "run.json").write_text(json.dumps(info), "utf-8")
            for fold in predictions["fold"].unique():
                shutil.copytree(run.path, folder / f"fold_{fold}")
        return Run.open(folder)

    return make


def text_of(page):
    """What a reader sees of a page, without markup and style."""
    body = re.sub(r"<(style|script|pre)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\xa0", " ").split())


def rows_of(page, heading):
    """The cells of the first table below a heading, as text."""
    table = page[page.index(heading) :].partition("<table")[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, flags=re.DOTALL)
    return [
        [text_of(cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", r, re.DOTALL)] for r in rows
    ]


def test_a_training_leaves_a_report_and_a_card(run):
    page = (run.path / "report.html").read_text("utf-8")
    found = check(page)
    assert len(found.images) == 5
    text = text_of(page)
    assert "not a medical device" in text
    assert "Every study is called one of these classes, also one that has none of them" in text
    assert "exclude each other and have no order" in text
    assert not FORBIDDEN.search(text), FORBIDDEN.search(text)
    assert report.page(run) == report.page(run)


def test_its_figures_are_those_of_metrics_json(run):
    page = report.page(run)
    content = json.loads((run.path / "metrics.json").read_text("utf-8"))
    table = pd.DataFrame(content["table"])
    table = table[table["split"] == "test"].set_index(["label", "metric"])
    shown = {row[0]: row for row in rows_of(page, "<h2 id='metrics'>")[1:]}
    of_all = table.loc["lesion"]
    assert len(shown) == len(of_all)
    for metric, row in of_all.iterrows():
        cells = shown[class_tables.metric_name(metric)]
        assert cells[1] == number(row["value"], missing="–")
        assert cells[2] == interval(row["low"], row["high"], missing="–")
    by_class = rows_of(page, "By class, each against the rest")
    for cells in by_class[1:]:
        own = table.loc[cells[0]]
        assert cells[1] == str(own["positives"].iloc[0])
        for metric, cell in zip(class_tables.BY_CLASS, cells[2:], strict=True):
            row = own.loc[metric]
            assert cell.startswith(number(row["value"], missing="–"))
            assert cell.endswith(interval(row["low"], row["high"], missing="–"))


def test_the_confusion_matrix_counts_every_study(made_up):
    predictions = class_predictions(TUMOURS, 61, unknown=4)
    page = report.page(made_up(TUMOURS, predictions))
    rows = rows_of(page, "<h2 id='calls'>")
    assert rows[1] == ["true", *TUMOURS.names]
    tested = ClassTable.of(predictions, TUMOURS).known
    for number_of, cells in enumerate(rows[2:]):
        own = tested.truth[:, number_of] == 1
        assert cells[0] == f"{TUMOURS.names[number_of]} {own.sum()} studies"
        for called, cell in enumerate(cells[1:]):
            count = (own & (tested.called == called)).sum()
            assert cell.split()[:2] == [str(count), f"{count / own.sum():.0%}"]


def test_colours_of_the_matrix_leave_the_text_legible():
    """WCAG 2.1's contrast of the text, 4.5 at least, in the deepest cells."""
    right, wrong = (class_predictions(TUMOURS, sharpness=sharpness) for sharpness in (9, -9))
    rows = [r for table in (right, wrong) for r in class_tables.confusion(table, TUMOURS, "").rows]

    def luminance(color):
        channels = np.array(color) / 255
        linear = np.where(
            channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    ink = luminance([0x1C, 0x27, 0x33])
    for _, _, cells in rows:
        for cell in cells:
            behind = luminance([int(part) for part in re.findall(r"\d+", cell.color)])
            assert (behind + 0.05) / (ink + 0.05) > 4.5


@pytest.mark.parametrize("classes", [ODD, TUMOURS, GRADES], ids=["odd", "tumours", "grades"])
def test_every_name_is_text_and_breaks_nothing(made_up, classes):
    run = made_up(classes, class_predictions(classes, 80))
    page = report.page(run)
    found = check(page)
    cells = [data for tag, data in found.words if tag in ("td", "th", "bdi", "h3", "b")]
    for name in classes.names:
        assert cells.count(name) >= 3
    text = text_of(page)
    assert not FORBIDDEN.search(text), FORBIDDEN.search(text)
    card = model_card.card(run)
    assert "<script>" not in card
    assert "add up to 1" in card
    assert "The most probable class is called" in card
    assert {row.count("|") - row.count("\\|") for row in card.splitlines() if row[:1] == "|"} == {
        5,
        7,
    }
    assert not FORBIDDEN.search(card), FORBIDDEN.search(card)
    order = " < ".join(classes.names)
    assert (f"are ordered: {order}" in html.unescape(page)) == classes.ordered


def test_grades_have_their_own_figures(made_up):
    page = report.page(made_up(GRADES, class_predictions(GRADES, 80, sharpness=0.5)))
    text = text_of(page)
    assert "quadratically weighted kappa" in text
    assert "grades off on average" in text
    worst = rows_of(page, "<h3>The worst mistakes")
    assert worst[0][3] == "grades off"
    off = [int(cells[3]) for cells in worst[1:]]
    assert off == sorted(off, reverse=True)
    assert off == [abs(int(cells[1]) - int(cells[2])) for cells in worst[1:]]
    plain = report.page(made_up(TUMOURS, class_predictions(TUMOURS), "plain"))
    assert "grades off" not in plain
    assert "quadratically" not in plain


def test_wrong_calls_come_first_the_surest_on_top(made_up):
    predictions = class_predictions(TUMOURS, 61, unknown=3, sharpness=1.0)
    page = report.page(made_up(TUMOURS, predictions))
    patients = page[page.index("<h2 id='patients'>") :]
    rows = re.findall(r"<tr( class='wrong')?>(.*?)</tr>", patients, flags=re.DOTALL)[1:]
    is_wrong = [bool(wrong) for wrong, _ in rows]
    assert is_wrong == sorted(is_wrong, reverse=True)
    assert len(rows) == 61
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for _, row in rows]
    sure = [float(row[4]) for row, wrong in zip(cells, is_wrong, strict=True) if wrong]
    assert sure == sorted(sure, reverse=True)
    assert all((row[2] != row[3]) == wrong for row, wrong in zip(cells, is_wrong, strict=True)
               if row[2])  # fmt: skip
    assert sum(not row[2] for row in cells) == 3
    assert f"{sum(is_wrong)} wrong calls of 58 come first" in patients


@pytest.mark.parametrize("repeats", [1, 2])
def test_folds_have_a_report(made_up, repeats):
    predictions = class_predictions(TUMOURS, 60, folds=3, repeats=repeats)
    page = report.page(made_up(TUMOURS, predictions))
    check(page)
    kind = "fold" if repeats == 1 else "repeat"
    rows = rows_of(page, "<h3>Folds</h3>")
    numbers = range(1, 4 if repeats == 1 else 3)
    assert rows[0] == ["metric", *(f"{kind} {i}" for i in numbers), "mean", "sd"]
    accuracy = next(row for row in rows if row[0] == "accuracy")
    means = [float(cell) for cell in accuracy[1:-2]]
    assert float(accuracy[-2]) == pytest.approx(np.mean(means), abs=1.1e-3)
    matrix = rows_of(page, "<h2 id='calls'>")[2:]
    counts = [float(cell.split()[0]) for row in matrix for cell in row[1:]]
    assert sum(counts) == pytest.approx(60, abs=0.5)
    calls = page.partition("<h2 id='calls'>")[2].partition("<h2 ")[0]
    assert "what training varies by is counted" in calls
    assert "by the model that had not seen it" in " ".join(page.split())


def test_a_class_without_test_patient_is_said(made_up):
    page = report.page(made_up(TUMOURS, class_predictions(TUMOURS, 60, absent="glioma")))
    check(page)
    text = text_of(page)
    assert "No study of the class glioma was tested" in text
    matrix = rows_of(page, "<h2 id='calls'>")
    assert matrix[3] == ["glioma 0 studies", "0 –", "0 –", "0 –"]


def test_one_class_has_no_curves_but_a_report(made_up):
    classes = Classes("diagnosis", ("meningioma", "glioma"))
    page = report.page(made_up(classes, class_predictions(classes, 20, absent="glioma")))
    check(page)
    text = text_of(page)
    assert "No curves" in text
    assert "The AUROC cannot be said" in text


def test_few_patients_are_described_and_no_more(made_up):
    text = text_of(report.page(made_up(TUMOURS, class_predictions(TUMOURS, 16))))
    assert "Fewer than 10 patients of the rarest class" in text
    assert "nothing is concluded" in text


def test_chance_is_no_success(made_up):
    predictions = class_predictions(TUMOURS, 120, sharpness=0.0)
    text = text_of(report.page(made_up(TUMOURS, predictions)))
    assert "not shown to be better than chance" in text
    assert "Always calling the most frequent class, meningioma , would be right in 0.333" in text


def test_without_a_test_split_validation_is_marked(data, tmp_path):
    run = run_small(data, tmp_path / "run", "fit.epochs=1", "split.test=0")
    page = (run.path / "report.html").read_text("utf-8")
    check(page)
    text = text_of(page)
    assert "No study was held out" in text
    assert "the epoch and the temperature were chosen on the validation studies" in text
    assert not FORBIDDEN.search(text), FORBIDDEN.search(text)
    assert not FORBIDDEN.search((run.path / "model_card.md").read_text("utf-8"))


def test_up_to_18_classes_have_lines_of_their_own():
    lines = class_figures.lines(Classes("kind", tuple(map(str, range(18)))))
    assert len({(line.color, line.dashes) for line in lines}) == 18


def test_curves_of_folds_are_the_mean_of_the_folds():
    """Of folds that rank perfectly, each at its own level, no pair across folds counts."""
    classes = Classes("kind", ("a", "b"))
    table = class_predictions(classes, 40, sharpness=30.0, folds=2)
    is_second = (table["fold"] == 2).to_numpy()
    squeezed = 0.5 + (table["probability"] - 0.5) * np.where(is_second, 0.01, 1.0)
    drawing = class_figures.roc(ClassTable.of(table.assign(probability=squeezed), classes))
    curve = drawing.figure.axes[0].get_lines()[1].get_xydata()
    assert curve[1:, 1].min() == 1.0
    assert "mean of the folds' curves" in drawing.words


def test_what_covariates_alone_reach_stands_beside_all_classes(made_up):
    run = made_up(TUMOURS, class_predictions(TUMOURS))
    content = json.loads((run.path / "metrics.json").read_text("utf-8"))
    content["covariates_alone"] = [{**row, "value": 0.25} for row in content["table"]]
    (run.path / "metrics.json").write_text(json.dumps(content), "utf-8")
    rows = rows_of(report.page(run), "What covariates alone reach")
    assert rows[0][:4] == ["label", "metric", "this model", "covariates alone"]
    table = run.metrics.set_index(["label", "metric"])
    accuracy = table.loc[("diagnosis", "accuracy"), "value"]
    assert rows[1][:2] == ["diagnosis", "accuracy"]
    assert rows[1][2].startswith(f"{accuracy:.3f}")
    assert rows[1][3].startswith("0.250")
    assert {row[0] for row in rows[1:]} == {"diagnosis"}


def test_slices_and_all_classes_after_each_of_them_are_shown(run, data, tmp_path):
    plain = report.report(run, data, out=tmp_path / "plain.html").read_text("utf-8")
    assert "data:image/png" not in plain
    page = report.report(run, data, images=True, out=tmp_path / "images.html").read_text("utf-8")
    found = check(page)
    assert any(image["src"].startswith("data:image/png") for image in found.images)
    running = [i for i in found.images if "of each class after each slice" in i["alt"]]
    studies = re.findall(r"<h3>Study ([0-9a-f]{16}): called <bdi>(\w+)</bdi> at", page)
    assert len(running) == len(studies) > 0
    calls = run.predictions[run.predictions["positive"]].set_index("study")["label"]
    assert all(calls[study] == called for study, called in studies)
    assert page.count("</b>, called</li>") == len(studies)


def test_costs_change_the_calls_and_all_that_follows(made_up, tmp_path):
    predictions = class_predictions(TUMOURS, 60, sharpness=0.5)
    run = made_up(TUMOURS, predictions)
    costs = tmp_path / "costs.csv"
    names = ",".join(TUMOURS.names)
    costs.write_text(f"true,{names}\nmeningioma,0,1,1\nglioma,9,0,9\npituitary,1,1,0\n", "utf-8")
    path = report.report(run, out=tmp_path / "costs.html", costs=costs)
    page = path.read_text("utf-8")
    check(page)
    table = ClassTable.of(predictions, TUMOURS)
    matrix = np.array([[0, 1, 1], [9, 0, 9], [1, 1, 0]])
    called = (table.probabilities @ matrix).argmin(axis=1)
    assert (called != table.called).any()
    true = table.truth.argmax(axis=1)
    cells = rows_of(page, "<h2 id='calls'>")[2:]
    for i, row in enumerate(cells):
        counts = [int(cell.split()[0]) for cell in row[1:]]
        assert counts == [((true == i) & (called == j)).sum() for j in range(3)]
    text = text_of(page)
    assert "The class of least expected cost is called" in text
    assert f"A call costs {matrix[true, called].mean():.3f} (" in text
    assert rows_of(page, "<h3>What calls cost")[2] == ["glioma", "9", "0", "9"]
    assert "The most probable class is called" in text_of(report.page(run))


def test_costs_are_of_classes(demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    with pytest.raises(InputError, match="costs are of calls of classes"):
        report.report(run, costs=tmp_path / "costs.csv")
