"""The report: one file that needs no network, safe against what names hold, without patients."""

from __future__ import annotations

import html.parser
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from small_run import run_small

from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import choose_studies
from medseq_tf.evaluation.metrics import TRADE_OFFS
from medseq_tf.evaluation.predictions import choose_cuts, stored_cuts
from medseq_tf.evaluation.scoring import score
from medseq_tf.reporting import figures, model_card, rendering, report
from medseq_tf.runs.run import Run


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "first", "fit.epochs=1")


@pytest.fixture(scope="module")
def with_images(run, demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "images.html"
    return report.report(run, demo_data, images=True, out=out).read_text("utf-8")


class Checker(html.parser.HTMLParser):
    """Tags that close what they open, ids that are there once, images with a text."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.images, self.links, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else "", data))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def check(text):
    found = Checker(text)
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert all(len(image["alt"]) >= 20 for image in found.images)
    assert all(image["src"].startswith("data:image/") for image in found.images)
    assert not re.search(r"(src|href|url)\s*[=(]\s*['\"]?(https?:)?//", text)
    assert text.count("<script>") == 1
    return found


def test_it_is_self_contained_and_whole(run):
    text = (run.path / "report.html").read_text("utf-8")
    found = check(text)
    assert len(found.images) == 6
    assert "not a medical device" in text
    assert text.index("not a medical device") < text.index("AUROC")
    assert "width=device-width" in text
    assert "@media print" in text


def test_it_shows_every_test_study_wrong_calls_first(run):
    text = (run.path / "report.html").read_text("utf-8")
    table = run.predictions
    for study in table[table["split"] == "test"]["study"]:
        assert text.count(f">{study}<") == 1
    rows = re.findall(r"<tr( class='wrong')?><td class='text'>[0-9a-f]{16}<", text)
    assert len(rows) == (table["split"] == "test").sum()
    assert rows == sorted(rows, reverse=True)


def test_the_same_run_gives_the_same_report(run):
    assert report.page(run) == report.page(run)


HOSTILE = "<script>alert('1')</script> \"&amp; {{ 7 * 7 }} {% raw %} | x"


def test_what_a_name_holds_is_text_not_markup(run, tmp_path, monkeypatch):
    copy = tmp_path / "<script>alert(1)<"
    shutil.copytree(run.path, copy)
    table = predictions(60).assign(label=HOSTILE)
    dataset = {**run.dataset, "label_names": [HOSTILE], "modality": HOSTILE}
    dataset["counts"]["labels"] = {HOSTILE: dataset["counts"]["labels"]["lesion"]}
    for name, value in {
        "predictions": table,
        "metrics": score(table, [HOSTILE]),
        "dataset": dataset,
        "notes": [HOSTILE],
        "thresholds": {HOSTILE: 0.5},
    }.items():
        monkeypatch.setattr(Run, name, value)
    groups = pd.DataFrame({HOSTILE: [HOSTILE, "other"] * 30}, index=table["study"])
    text = report.page(Run.open(copy), groups=groups)
    assert "&lt;script&gt;alert(1)&lt;" in text
    words = check(text).words
    for place in ("h3", "td", "p"):
        assert any(HOSTILE in data for tag, data in words if tag == place), place
    card = model_card.card(Run.open(copy))
    assert "<script>" not in card
    assert r"{{ 7 \* 7 }}" in card
    assert {row.count("|") - row.count("\\|") for row in card.splitlines() if row[:1] == "|"} == {
        5,
        7,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[x](http://a) ![y](b)", r"\[x\](http://a) !\[y\](b)"),
        ("`a` *b* ~~c~~ __d__", r"\`a\` \*b\* \~\~c\~\~ \_\_d\_\_"),
        (r"a | b \| c", r"a \| b \\\| c"),
        ("<b>\n\n# auroc_pooled", "&lt;b> # auroc_pooled"),
    ],
)
def test_a_value_of_the_model_card_is_no_markup(value, text):
    assert rendering.plain(value) == text


def test_no_image_of_a_patient_is_in_it_unless_asked_for(run, demo_data, with_images, tmp_path):
    plain = report.report(run, demo_data, out=tmp_path / "plain.html").read_text("utf-8")
    assert "data:image/png" not in plain
    assert "near duplicate" in plain
    assert "spoke most for lesion" in plain
    found = check(with_images)
    pictures = [i for i in found.images if i["src"].startswith("data:image/png")]
    assert len(pictures) == len(choose_studies(run.predictions)) > 0
    assert all("heat overlays" in image["alt"] for image in pictures)
    assert "shows images of patients" in with_images
    assert "data:image/png" not in (run.path / "report.html").read_text("utf-8")


def test_images_need_the_data(run):
    with pytest.raises(InputError, match="images need the prepared data set"):
        report.report(run, images=True)


def predictions(count, folds=None, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count).astype(float)
    probability = np.clip(rng.normal(0.35 + 0.3 * truth, 0.2), 0, 1)
    table = pd.DataFrame(
        {
            "study": [f"{i:016x}" for i in range(count)],
            "patient": [f"{i:016x}" for i in range(count)],
            "slices": rng.integers(10, 40, count),
            "split": "test",
            "label": "lesion",
            "truth": truth,
            "probability": probability,
            "calibrated": probability,
            "threshold": 0.5,
            "positive": probability >= 0.5,
        }
    )
    return table if folds is None else table.assign(fold=np.arange(count) % folds + 1)


def test_figures_say_in_words_what_they_show():
    drawings = figures.evaluation(predictions(80, folds=4), ["lesion"], resamples=50)
    assert [drawing.title.split()[0] for drawing in drawings] == [
        "ROC",
        "Precision",
        "Calibration",
        "Decision",
    ]
    called = predictions(80)["positive"]
    truth = predictions(80)["truth"] == 1
    assert f"finds {called[truth].mean():.0%} of the positive" in drawings[0].words
    lines = drawings[0].figure.axes[0].get_lines()
    assert len(lines) == 1 + 4 + 1 + 1  # chance, folds, all together, the operating point


def test_one_class_gives_no_curves_but_a_report(run, monkeypatch):
    table = run.predictions.assign(truth=0.0)
    assert figures.evaluation(table, ["lesion"]) == []
    monkeypatch.setattr(Run, "predictions", table)
    metrics = run.metrics.assign(value=np.nan, low=np.nan, high=np.nan, note="no positive patient")
    monkeypatch.setattr(Run, "metrics", metrics)
    text = report.page(run)
    check(text)
    assert "The AUROC cannot be said: no positive patient." in text
    assert "No curves: both classes are needed." in text


def test_the_run_keeps_the_cuts_of_other_operating_points(run, tmp_path):
    """A run of an earlier version, without them, gets them from its validation predictions."""
    cuts = choose_cuts(run.predictions)
    assert run.cuts == cuts
    assert set(cuts["lesion"]) == set(TRADE_OFFS)
    row = run.metrics.set_index(["split", "metric"]).loc[("test", "sensitivity_at_90_specificity")]
    assert row["threshold"] == cuts["lesion"]["sensitivity_at_90_specificity"]
    assert "chosen on validation; specificity here" in row["note"]
    old = Run(shutil.copytree(run.path, tmp_path / "old"))
    results = json.loads((old.path / "metrics.json").read_text("utf-8"))
    del results["cuts"]
    (old.path / "metrics.json").write_text(json.dumps(results), "utf-8")
    assert old.cuts == {}
    assert stored_cuts(old) == cuts


def described(run, monkeypatch, count, shift=0.3, seed=0):
    """The report of other predictions than the run's own, scored anew."""
    table = predictions(count, seed=seed)
    rng = np.random.default_rng(seed)
    table["probability"] = np.clip(rng.normal(0.35 + shift * table["truth"], 0.2), 0, 1)
    table["calibrated"] = table["probability"]
    table["positive"] = table["probability"] >= 0.5
    monkeypatch.setattr(Run, "predictions", table)
    monkeypatch.setattr(Run, "metrics", score(table, ["lesion"]))
    text = report.page(run)
    check(text)
    return text


def test_few_patients_are_described_and_no_more(run, monkeypatch):
    text = described(run, monkeypatch, 12)
    assert "Fewer than 10 patients of the rarer class: the figures describe these" in text
    assert "better than chance" not in text
    assert "nothing is concluded" in text


@pytest.mark.parametrize(
    ("shift", "words"),
    [(0.0, "not shown to be better than chance"), (-0.4, "the wrong way round"), (0.4, "")],
)
def test_many_patients_are_held_against_chance(run, monkeypatch, shift, words):
    text = described(run, monkeypatch, 60, shift, seed=1)
    assert "Fewer than 10 patients" not in text
    for sentence in ("better than chance", "the wrong way round"):
        assert (sentence in text) == (bool(words) and sentence in words)


def test_it_says_what_its_figures_are(run, monkeypatch):
    text = described(run, monkeypatch, 80)
    for words in (
        "a patient is positive if one of the studies is, and is called positive if one of them is",
        "calibration slope",
        "calibration intercept",
        "O/E",
        "(if they were right 0.",
        ">DeLong<",
        ">Wilson<",
        "cut chosen on these studies",
    ):
        assert words in text, words


def test_a_thousand_patients_make_a_file_of_moderate_size(run, monkeypatch):
    monkeypatch.setattr(Run, "predictions", predictions(1000))
    text = report.page(run)
    assert check(text)
    assert len(text) < 1_500_000


def test_what_covariates_alone_reach_stands_beside_it(run, monkeypatch):
    assert "What covariates alone reach" not in report.page(run)
    alone = run.metrics.assign(value=run.metrics["value"] / 2, low=np.nan, high=np.nan)
    monkeypatch.setattr(Run, "covariates_alone", alone)
    text = report.page(run)
    check(text)
    value = run.metrics.set_index(["split", "metric"]).loc[("test", "brier"), "value"]
    beside = text[text.index("What covariates alone reach") :]
    row = re.search(r"Brier score</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>", beside)
    assert row[1].startswith(f"{value:.3f}")
    assert row[2] == f"{value / 2:.3f}"


def test_the_model_card_says_what_is_known_and_marks_the_rest(run):
    text = (run.path / "model_card.md").read_text("utf-8")
    assert text.startswith("# Model card: first")
    assert text.count("**For the author:**") > 15
    assert "Splits" not in text
    assert "nan" not in text
    for number in ("| 20-21 | 12a |", "| 35-36 | 21, 23a |"):
        assert number in text
    value = run.metrics.set_index(["split", "metric"]).loc[("test", "accuracy"), "value"]
    assert f"| test | lesion | accuracy | {value:.3f} |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} <= {5, 7}


# -------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            window = driver.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu"]
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield window
        window.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_without_complaint_and_sorts(browser, run, with_images, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(with_images, "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    heading = page.locator("table.sortable th", has_text="probability")
    for order in (-1, 1):
        heading.locator("button").click()
        cells = page.locator("table.sortable tbody tr td:nth-child(5)").all_inner_texts()
        values = [float(text) for text in cells]
        assert values == sorted(values)[::order]
    assert heading.get_attribute("aria-sort") == "ascending"
    assert not complaints
    page.close()


def test_only_a_report_is_replaced(run, tmp_path):
    mine = tmp_path / "labels.csv"
    mine.write_text("patient,stroke")
    with pytest.raises(InputError, match="is there already and is no report"):
        report.report(run, out=mine)
    assert mine.read_text("utf-8") == "patient,stroke"
    path = report.report(run, out=tmp_path / "report.html")
    assert report.report(run, out=path) == path
