"""Hosts of one training, as processes on 127.0.0.1 that `TF_CONFIG` tells of each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from small_run import SMALL

from medseq_tf.errors import InputError
from medseq_tf.execution.hosts import VARIABLE, Host, host_of_environment

SECONDS = 300


def refuse_on_the_second(stop):
    """As a host, find the others; the second then raises what only it can know of."""
    from medseq_tf.recipe import Experiment
    from medseq_tf.training.hosts import Hosts as Training

    host = host_of_environment()
    hosts = Training(host, None, Experiment())
    with hosts.together():
        if not host.is_chief:
            raise InputError("a study cannot be read")
        hosts.any(False)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Hosts:
    """Processes of `medseq-tf train` with a small recipe; killed at the end, if they still run.

    Args:
        folder: of the run, and beside it what the processes say.
        data: of a prepared data set; a list: one a host.
        words: further ones of the command.
        count: how many hosts.
        preset: the recipe.
        small: settings that make it small.
    """

    def __init__(self, folder, data, *words, count=2, preset="fsm_bilstm", small=SMALL):
        self.folder = Path(folder)
        addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
        settings = [word for setting in small for word in ("--set", setting)]
        each = data if isinstance(data, list) else [data] * count
        self.processes = []
        for place in range(count):
            command = ["train", preset, "--data", each[place], "--out", folder, "--no-track"]
            environment = {**os.environ, VARIABLE: Host(addresses, place).to_json()}
            environment |= {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
            environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the command sets its own
            with open(self._said(place), "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "medseq_tf", *map(str, command), *settings, *words],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.wait()

    def ended(self, seconds=SECONDS):
        """Wait for all; return their exit statuses."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]

    def said(self, place):
        return self._said(place).read_text("utf-8")

    def _said(self, place):
        return self.folder.with_name(f"{self.folder.name}.{place}.txt")

    def wait_for(self, condition, seconds=SECONDS):
        """Wait until something is so; the processes must not end before."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            statuses = [process.poll() for process in self.processes]
            assert statuses == [None] * len(statuses), list(map(self.said, range(len(statuses))))
            time.sleep(0.02)
