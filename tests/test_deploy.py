"""The launch files: what they start is known to the command line, and well-formed.

The Slurm scripts run here with stand-ins for `srun` and `scontrol`. The manifests were checked
against the schema that KubeRay publishes; what is asserted of them here is what KubeRay needs of a
`RayCluster` (`headGroupSpec.template`, and of each of `workerGroupSpecs` its `groupName`, numbers
of replicas and `template`) and of a `RayJob` (`entrypoint`, `rayClusterSpec`).
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from medseq_tf.cli import cli

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
RAY = [path for path in MANIFESTS if "ray.io" in path.read_text("utf-8")]
JOBS = [path for path in RAY if "kind: RayJob" in path.read_text("utf-8")]
GPU = "nvidia.com/gpu"

SCONTROL = """#!/bin/bash
[ "$1 $2 $3" = "show hostnames n[1-3]" ] && printf 'n1\\nn2\\nn3\\n'
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for SLURM_PROCID in 0 1 2; do export SLURM_PROCID; "$@" || exit 1; done
"""
TOLD = """#!/bin/bash
printf '%s\\n' "$TF_CONFIG" | tr '\\n' ' '
for word in "$(basename "$0")" "$@"; do printf '|%s' "$word"; done
printf '\\n'
"""


def run(script: str, words: list[str], folder: Path) -> list[list[str]]:
    """Run a script as Slurm would; return for each task TF_CONFIG and the words of its command."""
    getent = "#!/bin/bash\n[ $2 = n1 ] && printf '10.0.0.1 STREAM n1\\n10.0.0.1 DGRAM\\n'\n"
    stand_ins = {"scontrol": SCONTROL, "srun": SRUN, "getent": getent}
    stand_ins |= dict.fromkeys(["medseq-tf", "ray"], TOLD)
    for name, text in stand_ins.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "16",
    }
    command = ["bash", str(DEPLOY / "slurm" / script), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def check_command(words: list[str]) -> None:
    """Parse a command as the command line would, unknown options and all."""
    assert words[0] == "medseq-tf"
    command: click.Command = cli
    words = words[1:]
    while isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("medseq-tf", words)


def test_slurm_tells_each_task_of_all_hosts_and_its_place(tmp_path):
    words = ["fsm_bilstm", "--set", "fit.epochs=3 ", "--data", "/data/a b", "--out", "/runs/mine"]
    tasks = run("train.sbatch", words, tmp_path)
    for place, (config, *command) in enumerate(tasks):
        told = json.loads(config)
        assert told["task"] == {"type": "worker", "index": place}
        assert told["cluster"] == {"worker": ["n1:33456", "n2:33456", "n3:33456"]}
        assert command == ["medseq-tf", "train", *words]
    assert len(tasks) == 3


def test_slurm_starts_ray_on_every_node_and_the_command_in_it(tmp_path):
    words = ["medseq-tf", "prepare", "image-folder", "/a b", "--out", "/prepared"]
    tasks = run("ray.sbatch", words, tmp_path)
    assert len(tasks) == 3
    for _, *command in tasks:
        split = command.index("--")
        assert command[:2] == ["ray", "symmetric-run"]
        options = dict(zip(command[2:split:2], command[3:split:2], strict=True))
        assert options == {
            "--address": "10.0.0.1:23456",
            "--min-nodes": "3",
            "--num-cpus": "16",
            "--num-gpus": "0",
        }
        assert command[split + 1 :] == words


@pytest.mark.parametrize("path", RAY, ids=lambda path: path.stem)
def test_a_manifest_has_what_kuberay_needs(path):
    manifest = yaml.safe_load(path.read_text("utf-8"))
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["metadata"]["name"].startswith("medseq")
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec
    (claim,) = yaml.safe_load_all((DEPLOY / "kubernetes/storage.yaml").read_text("utf-8"))
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    images = set()
    (group,) = cluster["workerGroupSpecs"]
    assert group["groupName"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    for pod in (cluster["headGroupSpec"], group):
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values())
        (container,) = pod["template"]["spec"]["containers"]
        (volume,) = pod["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/medseq"}]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        images.add(container["image"])
    assert len(images) == 1


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_starts_a_command_that_there_is(path):
    spec = yaml.safe_load(path.read_text("utf-8"))["spec"]
    words = shlex.split(spec["entrypoint"])
    check_command(words)
    given = dict(itertools.pairwise(words))
    assert given["--ray"] == "auto"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"].get(GPU, 0)
    asked = given.get("--gpus-per-trial", given.get("--gpus-per-host", "0"))
    assert int(asked) <= gpus
    assert int(given.get("--hosts", 0)) in (0, group["replicas"])
    assert all(word.startswith("/medseq/") for word in words if "/" in word)
