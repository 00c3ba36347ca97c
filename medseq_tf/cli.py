"""The command line: each command calls the function of its name and prints the result.

TensorFlow is imported when work starts, so `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from medseq_tf import __version__
from medseq_tf.console import DebugGroup, import_tensorflow_quietly, run_and_exit, say

FOLDER = click.Path(path_type=Path)


class FoldCount(click.ParamType):
    """A number of folds, or `site` for one a site."""

    name = "N|site"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return what was typed."""
        if value != "site" and not (str(value).isdecimal() and int(value) > 1):
            self.fail(f"{value!r} is neither a number from 2 up nor site", param, ctx)
        return value if value == "site" else int(value)


@click.group(cls=DebugGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medseq-tf")
def cli() -> None:
    """One diagnosis from the slices of one study."""


# ------------------------------------------------------------------------------------- prepare


@cli.group()
def prepare() -> None:
    """Read a cohort once: decode, resize, audit, and write a prepared data set."""


def _options(*options: Any) -> Any:
    """Return a decorator that gives a command several options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


SOURCE = click.argument("source", type=FOLDER)
LABELS = click.option(
    "--labels",
    type=FOLDER,
    help="CSV, one row a patient: an id, columns of 0, 1 or empty or one of names (--classes), "
    "perhaps split. "
    "Default: labels.csv in SOURCE, where there is one.",
)
COLUMNS = click.option(
    "--column", "columns", multiple=True, metavar="NAME", help="A label column; repeat for more."
)
CLASSES = _options(
    click.option(
        "--classes",
        metavar="COLUMN",
        help="A column of names or numbers that exclude each other, in place of 0/1 columns; of "
        "an image folder without --labels: folder, every folder of it is a class.",
    ),
    click.option(
        "--ordered", metavar="A,B,...", help="The classes, lowest first, where they are grades."
    ),
)
OTHERS = _options(
    click.option(
        "--participants",
        type=FOLDER,
        metavar="CSV",
        help="One row a patient, with the columns below; default: those of the labels.",
    ),
    click.option(
        "--site", "--group", "site", metavar="COLUMN", help="Where a study comes from; no label."
    ),
    click.option(
        "--site-names",
        type=click.Choice(["keep", "hash"]),
        help="keep (default): the data set, runs and reports call sites by their names. hash: by "
        "site-HASH, salted as ids are.",
    ),
    click.option(
        "--date",
        metavar="COLUMN",
        help="When: 2024-01-31, 20240131 or numbers; the order alone is kept.",
    ),
    click.option(
        "--covariates",
        metavar="A,B,...",
        help="Columns of numbers or of a few names, such as age,sex; their values are kept.",
    ),
)
SERIES_AS = click.option(
    "--series-as",
    type=click.Choice(["channels", "sequence", "separate"]),
    help="How a study's series are read: registered ones as channels, one after the other, each "
    "slice with a mark of its series, or each as a study.",
)
AXIS = click.option(
    "--axis", default="axial", show_default=True, help="axial, coronal, sagittal, or 0, 1, 2."
)
SPACING = click.option("--spacing", type=float, metavar="MM", help="Resample to this spacing.")
PREPARED = _options(
    click.option("--out", type=FOLDER, required=True, help="The data set's new folder."),
    click.option("--size", default=64, show_default=True, help="Side of a slice, pixels."),
    click.option(
        "--aspect",
        type=click.Choice(["pad", "stretch"]),
        default="pad",
        show_default=True,
        help="How a slice becomes square.",
    ),
    click.option("--workers", type=int, help="Processes; default: one a core."),
    click.option("--strict", is_flag=True, help="Stop at the first study left out."),
    click.option("--overwrite", is_flag=True, help="Replace a data set in --out."),
)


@prepare.command("image-folder")
@SOURCE
@LABELS
@COLUMNS
@CLASSES
@OTHERS
@click.option(
    "--layout", type=click.Choice(["class", "patient"]), help="Default: patient with labels."
)
@click.option("--positive", metavar="CLASS", help="The folder of the positive class.")
@click.option(
    "--same-numbers",
    type=click.Choice(["same", "different"]),
    help="Whether a number in two class folders is one patient or two.",
)
@SERIES_AS
@click.option("--series", metavar="A,B,...", help="The series, folders in a patient's.")
@PREPARED
def _image_folder(**arguments: Any) -> None:
    """Bare images: CLASS/58 (10).jpg, or a folder a patient and --labels."""
    _prepare("image-folder", **arguments)


@prepare.command("volumes")
@SOURCE
@LABELS
@COLUMNS
@CLASSES
@OTHERS
@AXIS
@click.option("--modality", type=click.Choice(["photograph", "CT", "MR"]), help="Of all files.")
@click.option(
    "--match",
    type=click.Choice(["path", "stem", "folder"]),
    help="What a row's id is of a file; default: the one that fits.",
)
@SPACING
@SERIES_AS
@click.option(
    "--series", metavar="A,B,...", help="The series: endings of files' names, or folders."
)
@PREPARED
def _volumes(**arguments: Any) -> None:
    """NIfTI, NRRD or MetaImage volumes, one file a study."""
    _prepare("volumes", **arguments)


@prepare.command("atlas")
@SOURCE
@click.option("--sequences", default=2, show_default=True, help="A subject.")
@click.option("--length", default=15, show_default=True, help="Slices of a sequence.")
@click.option(
    "--lesion-share", default=1.0, show_default=True, help="Of the slices of a lesion sequence."
)
@click.option("--neighbours", is_flag=True, help="Slices of a sequence stand side by side.")
@click.option("--whole", is_flag=True, help="Whole studies, labelled 'has a lesion'.")
@click.option(
    "--extent", nargs=2, type=float, default=(0.1, 0.7), show_default=True, help="Of the stack."
)
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@AXIS
@SPACING
@PREPARED
def _atlas(**arguments: Any) -> None:
    """ATLAS R1.2 or R2.0: T1 volumes and lesion masks, drawn into sequences."""
    _prepare("atlas", **arguments)


def _list_files(context: click.Context, option: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        from medseq_tf.readers.dicom.index import list_files

        for number, name in list_files(context.params["source"]):
            say(f"{number} {name}")
        context.exit()


@prepare.command("dicom")
@click.argument("source", type=FOLDER, is_eager=True)
@click.option(
    "--list",
    is_flag=True,
    expose_value=False,
    callback=_list_files,
    help="Say which file each number of the audit means, and stop.",
)
@LABELS
@COLUMNS
@CLASSES
@OTHERS
@click.option(
    "--series",
    default="best",
    show_default=True,
    help="best, all, or a description like '*HEAD*'; with --series-as several, with commas.",
)
@SERIES_AS
@click.option("--modality", type=click.Choice(["CT", "MR"]), help="Default: the more frequent.")
@click.option(
    "--match",
    type=click.Choice(["study_instance_uid", "accession_number", "patient_id", "folder"]),
    help="What a row's id is of a study; default: what its column is called.",
)
@click.option("--fewest-slices", default=3, show_default=True, help="Of a series that is used.")
@click.option(
    "--tilt",
    type=click.Choice(["keep", "correct"]),
    default="keep",
    show_default=True,
    help="Slices of a tilted gantry.",
)
@SPACING
@PREPARED
def _dicom(**arguments: Any) -> None:
    """DICOM files in any tree; no name, date or raw id leaves them."""
    _prepare("dicom", **arguments)


@prepare.command("demo")
@click.option("--patients", default=240, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--labels", type=click.IntRange(1, 5), default=1, show_default=True, help="1 or 5.")
@click.option(
    "--kind",
    type=click.Choice(["labels", "classes", "grades"]),
    help="Yes/no labels (default), kinds of lesion that exclude each other, or sizes of one.",
)
@click.option(
    "--sites",
    type=click.IntRange(1),
    help="Hospitals; then patients have a site, a date, an age and a sex. Default: none.",
)
@click.option("--prevalence", type=float, help="Share of positive patients, by label.")
@click.option("--difficulty", default=0.2, show_default=True, help="0: plain lesions, 1: faint.")
@PREPARED
def _demo(**arguments: Any) -> None:
    """A synthetic cohort of head CTs; nothing is downloaded."""
    _prepare("demo", **arguments)


def _prepare(reader: str, **arguments: Any) -> None:
    from medseq_tf.dataset.prepare import prepare as run

    if arguments.get("axis", "").isdecimal():
        arguments["axis"] = int(arguments["axis"])
    given = {name: value for name, value in arguments.items() if value not in (None, ())}
    prepared = run(reader, **given)
    say(prepared.audit_text())
    say(f"data set: {prepared.path}")


# ----------------------------------------------------------------------------- train, evaluate


@cli.command()
@click.argument("experiment", metavar="PRESET|FILE.yaml")
@click.option("--data", type=FOLDER, required=True, help="A prepared data set.")
@click.option("--out", type=FOLDER, help="The run's new folder; default: runs/NAME.")
@click.option("--name", help="The run's name; default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option(
    "--folds",
    type=FoldCount(),
    metavar="N|site",
    help="Cross-validate over this many folds; site: leave each site out in turn.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of the folds, each time divided anew and from other weights.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option(
    "--features",
    type=FOLDER,
    metavar="DIR",
    help="Where features of a frozen network are kept; default: $MEDSEQ_TF_FEATURES, ~/.cache.",
)
@click.option("--track/--no-track", default=True, show_default=True, help="Log to MLflow.")
def train(**arguments: Any) -> None:
    """Train a recipe and evaluate its best epoch; splits are by patient."""
    from medseq_tf import recipe as recipes

    recipes.load(arguments["experiment"], arguments["overrides"])  # its errors come at once
    import_tensorflow_quietly()
    from medseq_tf.evaluation.results_text import (
        covariates_alone_text,
        folds_text,
        metrics_text,
    )
    from medseq_tf.runs.mlflow_store import public_uri
    from medseq_tf.training.train import train as run

    done = run(**arguments)
    say(metrics_text(done.metrics, done.classes))
    if done.folds:
        say(folds_text(done.predictions, done.classes))
    if done.covariates_alone is not None:
        say(covariates_alone_text(done.covariates_alone, done.beyond_covariates))
    say(f"run:    {done.path}")
    say(f"report: {done.path / 'report.html'}")
    for note in done.notes:
        say(f"note:   {note}")
    if arguments["track"] and done.info["mlflow_run_id"]:
        say(f"MLflow: {public_uri()}  (mlflow ui --backend-store-uri {public_uri()})")


@cli.command()
@click.argument("space", type=FOLDER, metavar="SPACE.yaml")
@click.option("--data", type=FOLDER, required=True, help="A prepared data set.")
@click.option("--out", type=FOLDER, help="The search's folder; default: runs/NAME-search.")
@click.option("--trials", type=click.IntRange(1), help="In all; default: 20, or what time allows.")
@click.option("--minutes", type=float, help="No new trial begins after this time.")
@click.option(
    "--tuner",
    type=click.Choice(["bayesian", "random", "hyperband", "grid"]),
    default="bayesian",
    show_default=True,
    help="hyperband sets fit.epochs.",
)
@click.option("--seed", default=0, show_default=True, help="Decides what is tried.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of all trials.")
@click.option("--base/--no-base", default=True, show_default=True, help="Score the recipe itself.")
@click.option(
    "--retrain/--no-retrain",
    default=True,
    show_default=True,
    help="At the end train the best recipe, evaluate it on the test patients, register it.",
)
@click.option(
    "--cluster",
    metavar="N|chief:HOST:PORT|worker:HOST:PORT",
    help="N workers here, or one search over several machines.",
)
@click.option(
    "--nested",
    type=click.IntRange(2),
    metavar="FOLDS",
    help="Also search without each of so many folds, and test what is found on it.",
)
@click.option("--features", type=FOLDER, metavar="DIR", help="As of train.")
@click.option("--track/--no-track", default=True, show_default=True, help="Log to MLflow.")
def tune(**arguments: Any) -> None:
    """Search a space of recipes; the same command again goes on."""
    from medseq_tf.tuning.space import Space

    Space.load(arguments["space"], arguments["overrides"])  # its errors come at once
    import_tensorflow_quietly()
    from medseq_tf.runs.mlflow_store import public_uri
    from medseq_tf.tuning.tune import tune as run

    search = run(**arguments)
    if (arguments["cluster"] or "").startswith("worker:"):
        return
    say(search.text())
    say(f"best recipe: {search.path / 'best.yaml'}")
    if search.champion is not None:
        say(f"its run:     {search.champion.path}")
    if arguments["track"] and search.info["mlflow_run_id"]:
        say(f"MLflow:      {public_uri()}  (mlflow ui --backend-store-uri {public_uri()})")


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="A prepared data set.")
@click.option(
    "--split",
    type=click.Choice(["validation", "test", "all"]),
    default="test",
    show_default=True,
    help="all: a data set that the run has never seen.",
)
@click.option(
    "--resamples",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Of the bootstrap over patients, by which intervals of folds are found.",
)
@click.option(
    "--compare",
    multiple=True,
    type=FOLDER,
    metavar="RUN",
    help="Another run, on the same patients; repeat for more.",
)
@click.option(
    "--subgroups",
    type=FOLDER,
    metavar="CSV",
    help="One row a study or patient: study_id, patient_id or source, and columns of groups.",
)
@click.option(
    "--costs",
    type=FOLDER,
    metavar="CSV",
    help="What a wrong call of a class costs: true,CLASS,CLASS...; calls then cost least.",
)
@click.option("--audit", is_flag=True, help="Look for what the run's splits share.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line a row of every table.")
def evaluate(as_json: bool, **arguments: Any) -> None:
    """Metrics of a run by patient, with intervals; calibration, subgroups, comparison."""
    import_tensorflow_quietly()
    from medseq_tf.evaluation.evaluate import evaluate as run

    found = run(**arguments)
    say(found.json_lines() if as_json else found.text())


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="A prepared data set.")
@click.option("--study", help="A study's id; default: the surest wrong ones, a right one a class.")
@click.option(
    "--label", help="A label or class; default: every label, or the class that a study is called."
)
@click.option("--out", type=FOLDER, help="A folder for figures (with the slices) and tables.")
@click.option(
    "--pixels",
    multiple=True,
    type=click.Choice(["grad_cam", "integrated_gradients", "lesion_map"]),
    default=None,
    help="What marks the place in a slice; default: what fits the encoder.",
)
@click.option(
    "--quality", "with_quality", is_flag=True, help="Measure against the data set's lesion masks."
)
@click.option(
    "--seed", default=0, show_default=True, help="Of the subsets of slices that are drawn."
)
def explain(**arguments: Any) -> None:
    """Which slices mattered for a study's prediction, and where in them."""
    import_tensorflow_quietly()
    from medseq_tf.evaluation.explain.explain import explain as run

    arguments["pixels"] = arguments["pixels"] or None
    say(run(**arguments).text())


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--data", type=FOLDER, help="Its prepared data set: audit, and slices that mattered.")
@click.option("--images", is_flag=True, help="Show slices: images of patients, in a file apart.")
@click.option("--out", type=FOLDER, help="The file; default: in the run's folder.")
@click.option(
    "--costs", type=FOLDER, metavar="CSV", help="Of classes: what a wrong call costs; calls anew."
)
def report(**arguments: Any) -> None:
    """Write a run's report anew, with its data also what the model looked at."""
    import_tensorflow_quietly()
    from medseq_tf.reporting.report import report as run

    say(f"report: {run(**arguments)}")


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The model's folder; versions lie in it.")
@click.option("--version", type=click.IntRange(1), help="Default: the next one.")
@click.option("--batching", is_flag=True, help="Write a batching configuration for TF Serving.")
@click.option("--warmup", is_flag=True, help="Add warm-up requests for TF Serving.")
@click.option("--data", type=FOLDER, help="A prepared data set to check it on; default: made-up.")
@click.option(
    "--most-slices",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Of a study; more are refused.",
)
@click.option("--register", metavar="NAME", help="Register it in MLflow under this name.")
@click.option(
    "--costs", type=FOLDER, help="Of classes: a CSV of what calls cost; it then calls by them."
)
def export(**arguments: Any) -> None:
    """Write a run as a SavedModel, from a study's JPEG or PNG bytes to its probabilities."""
    import_tensorflow_quietly()
    from medseq_tf.serving.export import export as run

    done = run(**arguments)
    say(f"model:  {done.path}")
    say(
        f"check:  {done.studies} studies, at most {done.difference:.1e} from the Keras model; "
        "garbage is refused"
    )
    if arguments["batching"]:
        say(f"config: {done.path.parent / 'batching.config'}")
    if done.uri:
        say(f"MLflow: {done.uri}  (mlflow models serve -m {done.uri} --env-manager local)")


@cli.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True, type=FOLDER, metavar="PATH...")
@click.option("--running", is_flag=True, help="Also give the probability after each slice.")
@click.option("--workers", type=int, help="Processes that read; default: one a core.")
@click.option("--strict", is_flag=True, help="Stop at the first study left out.")
@click.option(
    "--costs",
    type=FOLDER,
    help="Of classes: a CSV of what calls cost; that of least expected cost is called.",
)
@click.option(
    "--participants",
    type=FOLDER,
    help="A CSV of covariates, one row a patient, for a model that reads some.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON line a study and label; of classes, a study."
)
def predict(model: str, paths: tuple[Path, ...], as_json: bool, **arguments: Any) -> None:
    """Probabilities of studies without labels: folders of images, volumes, DICOM, cohorts.

    MODEL is a run, an exported model, models:/NAME/1 of MLflow, or the address of a served one:
    http://host:8501/v1/models/NAME or grpc://host:8500/NAME. Exit status 1: a study was left out.
    """
    import_tensorflow_quietly()
    from medseq_tf.serving.predict import predict as run
    from medseq_tf.serving.predict import table

    progress = sys.stderr.isatty() and not sys.stdout.isatty()
    left_out = []

    def noted(predictions: Any) -> Any:
        for prediction in predictions:
            left_out.extend([prediction] if prediction.error else [])
            yield prediction

    predictions = noted(run(model, *paths, progress=progress, **arguments))
    lines = (p.to_json() for p in predictions) if as_json else table(predictions)
    for line in lines:
        say(line)
    if left_out:
        print(f"medseq-tf: {len(left_out)} studies left out", file=sys.stderr)
        sys.exit(1)


@cli.command()
@click.argument("run", type=FOLDER)
def track(run: Path) -> None:
    """Send to MLflow what could not be sent while RUN, or a search, was at work."""
    from medseq_tf.runs.mlflow_store import public_uri
    from medseq_tf.runs.track import track as send

    done = send(run)
    say(f"sent:   {done.records} records to {public_uri()}")
    if done.ended:
        say(f"ended:  {done.ended} MLflow runs that were left running")


@cli.command()
@click.option("--features", type=FOLDER, metavar="DIR", help="The folder; default: as of train.")
@click.option(
    "--limit", type=float, metavar="GIB", help="Keep at most this much from now on; at first 20."
)
@click.option("--clear", is_flag=True, help="Remove all that no process at work uses.")
def cache(**arguments: Any) -> None:
    """Show, limit or empty the folder where features of frozen networks are kept."""
    from medseq_tf.evaluation.feature_cache import cache as run

    click.echo(run(**arguments).text())


def main(command: str | None = None) -> NoReturn:
    """Run the command line; `command` stands for its first word (`python -m medseq_tf.tune`)."""
    run_and_exit(cli.commands[command] if command else cli, command)
