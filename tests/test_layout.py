"""The package reads from top to bottom: a folder imports only from folders above it."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medseq_tf

PACKAGE = Path(medseq_tf.__file__).parent

ROAD = (
    "errors",
    "files",
    "execution",
    "recipe",
    "readers",
    "phantom",
    "dataset",
    "input",
    "layers",
    "models",
    "runs",
    "evaluation",
    "reporting",
    "training",
    "automl",
    "serving",
    "tuning",
    "console",
    "cli",
)
ENTRANCES = ("__init__", "__main__", "tune", "mlflow_scoring")
"""Files that lead into the package: they may import anything, and nothing imports them."""

HEAVY = {"tensorflow", "keras", "mlflow", "keras_tuner", "torch", "jax", "ray"}
HOMES = {
    "mlflow": ("runs/mlflow_store.py",),
    "keras_tuner": ("tuning/oracles.py",),
    "fsspec": ("readers/storage.py",),
    "pydicom": (
        "readers/dicom/archive.py",
        "readers/dicom/elements.py",
        "serving/dicom_results/*",
    ),
    "requests": ("readers/dicom/connection.py",),
    "highdicom": ("serving/dicom_results/*",),
    "ray": ("execution/ray_cluster.py",),
    "SimpleITK": ("phantom/writers.py", "readers/simpleitk_volume.py"),
}
"""A heavy library -> the files that may import it, all of them there."""

MOST_LINES = 600

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path): path for path in MODULES}


def imports(path: Path):
    """Yield the dotted name of every import of a file, wherever in it the import stands."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*above, node.module or ""]) if node.level else node.module
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if whole in NAMES or module == "medseq_tf" else module


def station(name: str) -> str:
    return (name.split(".") + ["__init__"])[1]


def test_a_folder_imports_only_from_folders_above_it():
    wrong = []
    for name, path in NAMES.items():
        here = station(name)
        if here in ENTRANCES:
            continue
        for module in imports(path):
            if module.startswith("medseq_tf.") and module != "medseq_tf.__version__":
                there = station(module)
                if there not in ROAD or ROAD.index(there) > ROAD.index(here):
                    wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_no_circle_between_files():
    graph = {
        name: {module for module in imports(path) if module in NAMES} - {name, "medseq_tf"}
        for name, path in NAMES.items()
    }
    assert graph["medseq_tf.training.train"] > {"medseq_tf.training.one_run"}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_every_room_has_its_place():
    top = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    python = {name.removesuffix(".py") for name in top if "." not in name or name.endswith(".py")}
    assert python == {*ROAD, *ENTRANCES}
    assert len(top) < 26


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_file_is_short_and_opens_with_what_it_is(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= MOST_LINES
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_its_place(library):
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if library in {module.split(".")[0] for module in imports(path)}
    }
    homes = {home: set(fnmatch.filter(found, home)) for home in HOMES[library]}
    assert all(homes.values())
    assert found == set().union(*homes.values())


def test_layers_and_models_are_written_in_keras_ops_alone():
    for path in [*(PACKAGE / "layers").glob("*.py"), *(PACKAGE / "models").glob("*.py")]:
        if path.name != "kernels.py":
            assert "tensorflow" not in {module.split(".")[0] for module in imports(path)}, path


@pytest.mark.parametrize(
    "code",
    [
        "import medseq_tf",
        "import medseq_tf.cli",
        "import medseq_tf.recipe.experiment, medseq_tf.tuning.space, medseq_tf.tuning.search",
        "import medseq_tf.dataset.prepare, medseq_tf.dataset.splits, medseq_tf.dataset.leakage",
        "import medseq_tf.runs.run, medseq_tf.runs.tracking",
        "import medseq_tf.evaluation.metrics, medseq_tf.evaluation.cross_validation",
        "import medseq_tf.serving.client, medseq_tf.tuning.trial",
    ],
)
def test_light_imports_leave_tensorflow_alone(code):
    check = f"{code}; import sys; print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", medseq_tf.COMMANDS)
def test_a_command_is_a_function_with_a_true_signature(command):
    function = getattr(medseq_tf, command)
    assert inspect.isfunction(function)
    assert function.__name__ == command
    assert function.__module__ == f"medseq_tf.{medseq_tf.COMMANDS[command]}"
    assert inspect.signature(function).parameters
    assert command in dir(medseq_tf)


def test_the_stub_says_the_same_as_the_package():
    stub = (PACKAGE / "__init__.pyi").read_text("utf-8")
    places = re.findall(r"^from medseq_tf\.(\S+) import (\w+) as \2$", stub, re.MULTILINE)
    assert {name: place for place, name in places} == medseq_tf.COMMANDS


def test_importing_the_entrance_of_tune_leaves_the_function_alone():
    code = "import medseq_tf.tune; print(medseq_tf.tune.__module__, callable(medseq_tf.tune))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "medseq_tf.tuning.tune True"


@pytest.mark.parametrize("words", [["-m", "medseq_tf", "tune"], ["-m", "medseq_tf.tune"]])
def test_the_package_runs_as_a_module(words):
    done = subprocess.run(
        [sys.executable, *words, "--help"], capture_output=True, text=True, check=True
    )
    assert "SPACE.yaml" in done.stdout


def test_help_needs_no_more_than_the_command_line_library():
    """Counted in imported modules, not on the clock: click and the standard library."""
    code = (
        "import sys; sys.argv = ['medseq-tf', 'train', '--help']\n"
        "from medseq_tf.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'numpy', 'pandas', 'pydantic', 'cv2', 'tensorflow', 'keras', 'mlflow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
