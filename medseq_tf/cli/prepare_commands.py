"""`medseq-tf prepare`: a command a reader, with the options that readers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medseq_tf.cli.ray_options import RAY
from medseq_tf.console import DebugGroup, say

FOLDER = click.Path(path_type=Path)


class Place(click.Path):
    """A path or, as text, a URL."""

    def coerce_path_result(self, value: Any) -> Any:
        """Return a path; a URL stays as it was given."""
        return value if "://" in value else super().coerce_path_result(value)


PLACE = Place(path_type=Path)


@click.group(cls=DebugGroup)
def prepare() -> None:
    """Read a cohort once: decode, resize, audit, and write a prepared data set.

    SOURCE and tables may be URLs of s3://, gs:// or http(s)://, and SOURCE of dicomweb is a DICOM
    archive's; credentials are the environment's.
    """


def _options(*options: Any) -> Any:
    """Return a decorator that gives a command several options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


SOURCE = click.argument("source", type=PLACE)
LABELS = click.option(
    "--labels",
    type=PLACE,
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
        type=PLACE,
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
    click.option("--out", type=PLACE, required=True, help="The data set's new folder."),
    click.option("--size", default=64, show_default=True, help="Side of a slice, pixels."),
    click.option(
        "--aspect",
        type=click.Choice(["pad", "stretch"]),
        default="pad",
        show_default=True,
        help="How a slice becomes square.",
    ),
    click.option("--workers", type=int, help="Processes; default: one a core, two for a URL."),
    click.option("--strict", is_flag=True, help="Stop at the first study left out."),
    click.option("--overwrite", is_flag=True, help="Replace a data set in --out."),
    RAY,
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


def _dicom_options(*identifiers: str) -> Any:
    """Return the options of readers of DICOM, whose studies have these identifiers."""
    return _options(
        click.option(
            "--series",
            default="best",
            show_default=True,
            help="best, all, or a description like '*HEAD*'; with --series-as several, with "
            "commas.",
        ),
        SERIES_AS,
        click.option(
            "--modality", type=click.Choice(["CT", "MR"]), help="Default: the more frequent."
        ),
        click.option(
            "--match",
            type=click.Choice(identifiers),
            help="What a row's id is of a study; default: what its column is called.",
        ),
        click.option(
            "--fewest-slices", default=3, show_default=True, help="Of a series that is used."
        ),
        click.option(
            "--tilt",
            type=click.Choice(["keep", "correct"]),
            default="keep",
            show_default=True,
            help="Slices of a tilted gantry.",
        ),
        SPACING,
    )


_IDENTIFIERS = ("study_instance_uid", "accession_number", "patient_id")


@prepare.command("dicom")
@click.argument("source", type=PLACE, is_eager=True)
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
@_dicom_options(*_IDENTIFIERS, "folder")
@PREPARED
def _dicom(**arguments: Any) -> None:
    """DICOM files in any tree; no name, date or raw id leaves them."""
    _prepare("dicom", **arguments)


@prepare.command("dicomweb")
@click.argument("source", metavar="URL")
@LABELS
@click.option(
    "--query",
    metavar="KEYWORD=VALUE,...",
    help="Which studies, such as Modality=CT,StudyDate=20260101-20260131,StudyDescription=*HEAD*; "
    "default: all.",
)
@COLUMNS
@CLASSES
@OTHERS
@_dicom_options(*_IDENTIFIERS)
@click.option("--insecure-tls", is_flag=True, help="Take any certificate of the archive's.")
@PREPARED
def _dicomweb(**arguments: Any) -> None:
    """Studies in an archive, by DICOMweb: https://pacs/dicom-web.

    The series are chosen by what the archive tells of them; their files alone are read, into
    memory. Credentials are the environment's: MEDSEQ_TF_DICOMWEB_TOKEN, or _USER and _PASSWORD, or
    _CERT and _KEY, or else ~/.netrc.
    """
    _prepare("dicomweb", **arguments)


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
