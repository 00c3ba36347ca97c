"""The command line: each command calls the function of its name and prints the result.

TensorFlow is imported when work starts, so `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from medseq_tf import __version__
from medseq_tf.cli.prepare_commands import FOLDER, PLACE, prepare
from medseq_tf.cli.ray_options import RAY, cpus_per, gpus_per
from medseq_tf.cli.watch_command import watch
from medseq_tf.console import DebugGroup, import_tensorflow_quietly, run_and_exit, say


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


cli.add_command(prepare)
cli.add_command(watch)


def _say_where_mlflow_is(info: dict[str, Any], track: bool, title: str = "MLflow:") -> None:
    """Say where what was logged is to be seen, and how, if anything was."""
    if track and info["mlflow_run_id"]:
        from medseq_tf.runs.mlflow_store import public_uri

        say(f"{title} {public_uri()}  (mlflow ui --backend-store-uri {public_uri()})")


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
@click.option(
    "--devices",
    type=click.IntRange(1),
    metavar="N",
    help="GPUs that train the model together; default: all that are visible.",
)
@RAY
@click.option(
    "--hosts", type=click.IntRange(1), metavar="N", help="Train on so many nodes of Ray together."
)
@cpus_per("task")
@gpus_per("task")
@cpus_per("host")
@click.option(
    "--gpus-per-host", type=click.IntRange(0), default=0, show_default=True, help="With --hosts."
)
@click.option("--track/--no-track", default=True, show_default=True, help="Log to MLflow.")
def train(**arguments: Any) -> None:
    """Train a recipe and evaluate its best epoch; splits are by patient."""
    from medseq_tf import recipe as recipes
    from medseq_tf.execution.hosts import host_of_environment

    recipes.load(arguments["experiment"], arguments["overrides"])  # its errors come at once
    host = host_of_environment()
    import_tensorflow_quietly()
    from medseq_tf.evaluation.results_text import (
        covariates_alone_text,
        folds_text,
        metrics_text,
    )
    from medseq_tf.training.train import train as run

    done = run(**arguments)
    if host and not host.is_chief:
        say(f"{host.name}: done; the run is the chief's")
        return
    say(metrics_text(done.metrics, done.classes))
    if done.folds:
        say(folds_text(done.predictions, done.classes))
    if done.covariates_alone is not None:
        say(covariates_alone_text(done.covariates_alone, done.beyond_covariates))
    say(f"run:    {done.path}")
    say(f"report: {done.path / 'report.html'}")
    for note in done.notes:
        say(f"note:   {note}")
    _say_where_mlflow_is(done.info, arguments["track"])


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
    "--workers",
    type=click.IntRange(1),
    help="Trials at a time; default: one, on Ray what it has room for.",
)
@RAY
@cpus_per("trial")
@gpus_per("trial")
@click.option(
    "--stop-hopeless",
    is_flag=True,
    help="End a trial that is worse than half of the finished ones were at its epoch.",
)
@click.option("--cluster", hidden=True)
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
    from medseq_tf.tuning.tune import tune as run

    search = run(**arguments)
    say(search.text())
    say(f"best recipe: {search.path / 'best.yaml'}")
    if search.champion is not None:
        say(f"its run:     {search.champion.path}")
    _say_where_mlflow_is(search.info, arguments["track"], "MLflow:     ")


@cli.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, help="The run's new folder; default: runs/auto.")
@click.option("--minutes", type=float, help="Of it all; default: 60. Linear ones finish.")
@click.option("--plan", type=FOLDER, metavar="FILE.yaml", help="A plan to run, perhaps edited.")
@click.option("--plan-only", is_flag=True, help="Print the plan, write OUT/plan.yaml, and stop.")
@click.option(
    "--folds",
    type=click.IntRange(3),
    metavar="N",
    help="Default: 5, or 4 where the rarest class has fewer than 25 patients.",
)
@click.option("--repeats", type=click.IntRange(1), help="Of the folds; default: 5.")
@click.option("--seed", type=int, help="Of the folds and the candidates; default: 0.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option(
    "--deploy-anyway",
    is_flag=True,
    help="Where nothing beats chance, keep the best linear model all the same.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes that fit linear candidates; default: one, on Ray what it has room for.",
)
@click.option("--features", type=FOLDER, metavar="DIR", help="As of train.")
@click.option("--track/--no-track", default=True, show_default=True, help="Log to MLflow.")
@RAY
@cpus_per("task")
@gpus_per("task")
def auto(**arguments: Any) -> None:
    """From a prepared data set to the best honest model, by itself.

    A plan is made from the cohort: regressions on measures of the slices, networks as time allows.
    Candidates are compared on the same patient-level folds and joined where that pays. The figure
    is that of the whole procedure, on patients whom neither models nor choices saw.
    """
    if arguments["plan"] is not None:
        from medseq_tf.automl.plan import load_plan

        load_plan(arguments["plan"])  # its errors come at once
    import_tensorflow_quietly()
    from medseq_tf.automl.auto import auto as run
    from medseq_tf.evaluation.results_text import headline_text

    done = run(**arguments)
    if done is None:
        return
    say(headline_text(done.metrics, done.classes))
    say(done.info["auto"]["sentence"])
    say(f"run:    {done.path}")
    say(f"report: {done.path / 'report.html'}")
    _say_where_mlflow_is(done.info, arguments["track"])


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
@click.argument("paths", nargs=-1, required=True, type=PLACE, metavar="PATH...")
@click.option("--running", is_flag=True, help="Also give the probability after each slice.")
@click.option("--workers", type=int, help="Processes that read; default: one a core.")
@click.option(
    "--study", multiple=True, metavar="UID", help="Of an archive: a study; repeat for more."
)
@click.option(
    "--query",
    metavar="KEY=VALUE,...",
    help="Of an archive: which studies, as StudyDate=20260101-20260131,StudyDescription=*HEAD*.",
)
@click.option(
    "--insecure-tls", is_flag=True, help="Do not ask whether an archive is what it says it is."
)
@click.option(
    "--dicom-out",
    type=FOLDER,
    metavar="DIR",
    help="Write each DICOM study's results: a structured report, a contact sheet, lesion maps.",
)
@click.option(
    "--store", is_flag=True, help="Store these results in the archive that the study is from."
)
@click.option(
    "--dicom-seg",
    type=click.Choice(["binary", "fractional"]),
    default="binary",
    show_default=True,
    help="Of results: lesion maps as the pixels above 0.5, or as probabilities.",
)
@click.option("--strict", is_flag=True, help="Stop at the first study left out.")
@click.option(
    "--costs",
    type=FOLDER,
    help="Of classes: a CSV of what calls cost; that of least expected cost is called.",
)
@click.option(
    "--participants",
    type=PLACE,
    help="A CSV of covariates, one row a patient, for a model that reads some.",
)
@RAY
@cpus_per("task")
@gpus_per("task")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON line a study and label; of classes, a study."
)
def predict(model: str, paths: tuple[str | Path, ...], as_json: bool, **arguments: Any) -> None:
    """Probabilities of studies without labels: folders of images, volumes, DICOM, archives.

    MODEL is a run, an exported model, models:/NAME/1 of MLflow, or the address of a served one:
    http://host:8501/v1/models/NAME or grpc://host:8500/NAME. An archive's PATH is
    dicomweb+https://host/dicom-web; credentials are the environment's (MEDSEQ_TF_DICOMWEB_TOKEN, or
    _USER and _PASSWORD) or ~/.netrc's. Exit status 1: a study, or its results, were left out.
    """
    import_tensorflow_quietly()
    from medseq_tf.serving.predict import predict as run
    from medseq_tf.serving.predict import table

    progress = sys.stderr.isatty() and not sys.stdout.isatty()
    left_out, without_results = [], set()

    def noted(predictions: Any) -> Any:
        for prediction in predictions:
            left_out.extend([prediction] if prediction.error else [])
            if prediction.results_error:
                without_results.add((prediction.path, prediction.study))
            yield prediction

    predictions = noted(run(model, *paths, progress=progress, **arguments))
    lines = (p.to_json() for p in predictions) if as_json else table(predictions)
    for line in lines:
        say(line)
    for count, what in ((len(left_out), "left out"), (len(without_results), "without results")):
        if count:
            print(f"medseq-tf: {count} studies {what}", file=sys.stderr)
    if left_out or without_results:
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


@cli.command()
@click.option("--features", type=FOLDER, metavar="DIR", help="As of train.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool, **arguments: Any) -> None:
    """What is installed, which weights are there, what a site without internet has to carry.

    Exit status 1: something that is needed is missing or broken.
    """
    with contextlib.suppress(Exception):  # told below, as one problem
        import_tensorflow_quietly()
    from medseq_tf.reporting.doctor import doctor as run

    found = run(**arguments)
    say(found.to_json() if as_json else found.text())
    if found.problems:
        sys.exit(1)


def main(command: str | None = None) -> NoReturn:
    """Run the command line; `command` stands for its first word (`python -m medseq_tf.tune`)."""
    run_and_exit(cli.commands[command] if command else cli, command)
