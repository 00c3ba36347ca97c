"""Takes nothing; runs every `bench_*.py`, prints targets and what was reached in one table.

A script that fails is named, and the others are run all the same. Ratios are medians of alternating
rounds, with quartiles where there are rounds.

    python benchmarks/run_all.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import machine, table


def main() -> None:
    """Prints the scripts' own tables, then the one of targets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="do they run at all?")
    options = ["--quick"] if parser.parse_args().quick else []
    failed = []
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name) / "aims.jsonl"
        kept.touch()
        for script in sorted(Path(__file__).parent.glob("bench_*.py")):
            print(f"\n{script.name}\n", flush=True)
            environment = os.environ | {"BENCH_AIMS": str(kept)}
            if subprocess.run([sys.executable, script, *options], env=environment).returncode:
                failed.append(script.name)
        aims = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    print(f"\n{machine()}\n")
    row = table({"what": 60, "found": 22, "by processor": 12, "target": 7, "": 6})
    for found in aims:
        spread = f" ({found['low']:.2f} to {found['high']:.2f})" if found["low"] else ""
        processor = f"{found['processor']:.2f}" if found["processor"] else ""
        value, target = found["found"], found["target"]
        reached = value <= target if found["most"] else value >= target
        said = "?" if math.isnan(value) else "" if reached else "missed"
        bound = f"{'<=' if found['most'] else '>='} {target:g}"
        row(found["what"], f"{value:.2f}{spread}", processor, bound, said)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
