"""Takes nothing; prints how long the first answers take, each in new processes.

`medseq-tf --help`, `import medseq_tf`, `import tensorflow` for comparison, and a first prediction:
`medseq-tf predict` on one study with an exported model, from the command to the last line.

    python benchmarks/bench_startup.py [--rounds 7] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from side_by_side import aim, machine, table, timed

TARGET = 0.5


def exported(folder: Path) -> tuple[Path, Path]:
    """A SavedModel of one epoch's training, and a study of 30 slices as JPEG files."""
    from bench_prepare import write_jpegs

    import medseq_tf
    from medseq_tf.phantom.cohort import DemoCohort

    write_jpegs(DemoCohort(patients=12, size=64, slices=(30, 30)), folder / "pictures")
    data = folder / "prepared"
    medseq_tf.prepare("image-folder", folder / "pictures", out=data, size=64, progress=False)
    run = {"out": folder / "run", "overrides": ["fit.epochs=1"], "track": False, "verbose": False}
    medseq_tf.train("fsm_bilstm", data=data, **run)
    medseq_tf.export(folder / "run", out=folder / "model")
    return folder / "model", next(p for p in (folder / "pictures").iterdir() if p.is_dir())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    python = [sys.executable]
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as name:
        model, study = exported(Path(name))
        commands = {
            "python -c pass": ([*python, "-c", "pass"], ""),
            "medseq-tf --help": ([*python, "-m", "medseq_tf", "--help"], f"< {TARGET}"),
            "import medseq_tf": ([*python, "-c", "import medseq_tf"], f"< {TARGET}"),
            "import tensorflow": ([*python, "-c", "import tensorflow"], ""),
            "medseq-tf predict, one study": (
                [*python, "-m", "medseq_tf", "predict", str(model), str(study)],
                "",
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            for name, (words, _) in commands.items():
                run = lambda w=words: subprocess.run(w, check=True, capture_output=True)  # noqa: E731
                took = timed(run)[1].clock
                if number:  # the first round reads the files from disk
                    seconds[name].append(took)
    row = table({"new process": 30, "s": 6, "spread": 14, "target": 6})
    for name, took in seconds.items():
        spread = f"{min(took):.2f} to {max(took):.2f}"
        row(name, f"{statistics.median(took):.2f}", spread, commands[name][1])
        if commands[name][1]:
            aim(f"{name}, s", statistics.median(took), TARGET, most=True)


if __name__ == "__main__":
    main()
