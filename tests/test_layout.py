"""The package reads from top to bottom: a module imports only from modules above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medseq_tf

PACKAGE = Path(medseq_tf.__file__).parent

ROAD = [
    "errors",
    "files",
    "yaml_text",
    "experiment",
    "space",
    "cohort",
    "readers",
    "tfrecord",
    "study_record",
    "audit",
    "prepared",
    "requirements",
    "prepare",
    "selection",
    "read_counts",
    "sequences",
    "augment",
    "pipeline",
    "layers",
    "models",
    "losses",
    "point_metrics",
    "thresholds",
    "proportions",
    "resampling",
    "calibration",
    "curves",
    "auc_intervals",
    "metric_intervals",
    "pixel_metrics",
    "metrics",
    "cross_validation",
    "operating_points",
    "model_file",
    "optimism",
    "runs",
    "search",
    "leakage",
    "subgroups",
    "cache",
    "features",
    "inference",
    "evaluate",
    "slice_values",
    "explanation",
    "explainer",
    "explanation_quality",
    "explain",
    "figures",
    "report",
    "model_card",
    "unsent",
    "tracking",
    "track",
    "registry",
    "painted_lesions",
    "pretraining",
    "fitting",
    "train",
    "serving_wire",
    "serving_client",
    "serving_graph",
    "serving_model",
    "export",
    "saved_graph",
    "answering",
    "predict",
    "mlflow_scoring",
    "trial",
    "oracles",
    "cluster",
    "tune",
    "cli",
    "__main__",
]
LIGHT = {"cache", "slice_values", "model_file", "yaml_text",
         "errors", "files", "experiment", "space", "cohort", "readers", "tfrecord",
         "study_record", "audit", "prepared", "requirements", "prepare", "sequences",
         "point_metrics",
         "thresholds", "resampling", "proportions", "calibration", "curves", "auc_intervals",
         "metric_intervals", "pixel_metrics", "metrics", "optimism", "runs", "search", "selection",
         "read_counts", "leakage", "subgroups", "tracking", "painted_lesions", "trial",
         "serving_wire", "serving_client",
         "cli"}  # fmt: skip
HEAVY = {"tensorflow", "keras", "mlflow", "keras_tuner", "torch", "jax"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def station(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Return (module, at the top level) of every import outside the __main__ guard."""
    tree = ast.parse(path.read_text("utf-8"))
    guards = [
        node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
    ]
    skipped = {id(inner) for guard in guards for inner in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "medseq_tf":
            yield from ((f"medseq_tf.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, top


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    here = station(path)
    if here == "__init__":
        return
    for module, _ in imports(path):
        if module.startswith("medseq_tf."):
            there = module.split(".")[1]
            if there == "__version__":
                continue
            assert ROAD.index(there) <= ROAD.index(here), f"{here} imports {module}, which is below"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_have_their_places(path):
    here = station(path)
    named = {module.split(".")[0] for module, _ in imports(path)}
    assert "mlflow" not in named or here in ("tracking", "registry")
    if here in LIGHT:
        at_top = {module.split(".")[0] for module, top in imports(path) if top}
        assert not at_top & HEAVY, f"{here} is imported by --help and must stay light"
    if here in ("layers", "models") and path.name != "kernels.py":
        assert "tensorflow" not in named, "layers and models are written in keras.ops alone"


@pytest.mark.parametrize(
    "code",
    [
        "import medseq_tf",
        "from medseq_tf import cli",
        "import medseq_tf.experiment",
        "import medseq_tf.readers, medseq_tf.prepare",
    ],
)
def test_light_imports_leave_tensorflow_alone(code):
    check = f"{code}; import sys; print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_is_a_function_and_a_module():
    assert callable(medseq_tf.prepare)
    assert medseq_tf.prepare.prepare.__name__ == "prepare"


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
