"""Takes a source of trials; gives workers that train them, in this process or spread over machines.

A chief serves its trials over KerasTuner's own gRPC service; a worker asks for one, trains it in a
process of its own, and reports. While it trains it goes on asking: the answer is the same trial as
long as it is the worker's. So a worker that is gone is noticed, and its trial is handed to another;
and a worker whose chief is gone ends. The service has no password: it is for one's own network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import grpc
from keras_tuner.src import protos

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, printable
from medseq_tf.files import write_json
from medseq_tf.tuning import trial

BEAT = 5.0
"""Seconds between two questions of a worker that trains."""
PATIENCE = 60.0
"""Seconds of silence after which a worker, or the chief, is taken for gone."""
LARGEST_REQUEST = 2**24
"""Bytes that a chief takes at once; a result has some hundred for each study and fold."""

_CONTENT = "medseq_tf"
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.so_reuseport", 0),
]


class Refused(ValueError):
    """A question that makes no sense: an answer to who asked it, and no end of the search."""


class Source(Protocol):
    """Where trials come from: a search in this process, or a chief elsewhere.

    It raises `Refused` for what makes no sense.
    """

    def next(self, worker: str) -> dict[str, Any]:
        """Return `{"kind": "run", "trial": name, "job": ...}`, or of kind `wait` or `stop`."""

    def report(self, name: str, found: dict[str, Any]) -> None:
        """Take the result of a trial."""


# --------------------------------------------------------------------------------- the worker


def work(
    source: Source,
    worker: str,
    folder: Path,
    here: dict[str, Any],
    still_mine: Callable[[str], bool] = lambda name: True,
    environment: dict[str, str] | None = None,
) -> None:
    """Train trials until there are no more.

    Args:
        source: hands them out.
        worker: this worker's name.
        folder: the search's folder on this machine.
        here: what jobs need to know of this machine: `data`, `splits` and `features`, paths.
        still_mine: asked every second for the trial that is being trained; once false, it is left.
        environment: variables for the trials' processes.
    """
    while (order := source.next(worker))["kind"] != "stop":
        if order["kind"] == "wait":
            time.sleep(1.0)
            continue
        name = order["trial"]
        if not trial.is_name(name):
            raise InputError("the chief names a trial as none is named; is it another program?")
        found = trial.run(
            folder / "trials" / name,
            {**order["job"], **here},
            environment,
            abandoned=functools.partial(_is_abandoned, still_mine, name),
        )
        if found is not None:
            source.report(name, found)


def _is_abandoned(still_mine: Callable[[str], bool], name: str) -> bool:
    return not still_mine(name)


def work_for_chief(
    address: str,
    worker: str,
    data: Path,
    folder: Path,
    features: str | None = None,
    key: str | None = None,
) -> None:
    """Train trials of a chief until it has no more.

    Args:
        address: `HOST:PORT` of the chief.
        worker: this worker's name, its own.
        data: the search's prepared data set on this machine.
        folder: where trials are kept on this machine; the chief's own folder, if this is its
          machine.
        features: the folder of stored features.
        key: `Space.key` of the search that is meant; None: any.

    Raises:
        InputError: another search or other data, or the chief is gone.
    """
    chief = Chief(address)
    search = chief.greet()
    if key is not None and key != search["key"]:
        raise InputError(
            f"{address}: the chief there searches another space, or with another recipe or --set; "
            "give all of them the same"
        )
    fingerprint = Prepared.load(data).fingerprint
    if fingerprint != search["fingerprint"]:
        raise InputError(f"{data}: is not the data set of the chief at {address}")
    folder.mkdir(parents=True, exist_ok=True)
    splits = folder / "splits.json"
    if not splits.is_file():
        write_json(splits, search["splits"])
    elif json.loads(splits.read_text("utf-8")) != search["splits"]:
        raise InputError(f"{folder}: holds another search; choose another --out for this worker")
    here = {"data": str(data.resolve()), "splits": str(splits), "features": features}
    asked = time.monotonic()

    def still_mine(name: str) -> bool:
        nonlocal asked
        if time.monotonic() - asked < BEAT:
            return True
        asked = time.monotonic()
        return chief.next(worker).get("trial") == name

    work(chief, worker, folder, here, still_mine)


class Chief:
    """A search elsewhere, as a worker sees it.

    Raises:
        InputError: on any question that has no answer for `PATIENCE` seconds.
    """

    def __init__(self, address: str):
        self.address = address
        channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = protos.get_service_grpc().OracleStub(channel)

    def greet(self) -> dict[str, Any]:
        """Return what the search is: its key, the data's fingerprint, the splits."""
        request = protos.get_service().GetSpaceRequest()
        return self._read(self._ask(self._stub.GetSpace, request), "key", "fingerprint", "splits")

    def next(self, worker: str) -> dict[str, Any]:
        """Return what to do next; see `Source`."""
        request = protos.get_service().CreateTrialRequest(tuner_id=worker)
        order = self._read(self._ask(self._stub.CreateTrial, request).trial, "kind")
        if order["kind"] == "run" and not {"trial", "job"} <= order.keys():
            raise self._misunderstood()
        return order

    def report(self, name: str, found: dict[str, Any]) -> None:
        """Hand in the result of a trial."""
        done = protos.get_proto().Trial(trial_id=name, hyperparameters=_pack(found))
        self._ask(self._stub.EndTrial, protos.get_service().EndTrialRequest(trial=done))

    def _read(self, message: Any, *names: str) -> dict[str, Any]:
        """Return what a message says, which is to hold these names."""
        try:
            content = _unpack(message.hyperparameters)
        except Refused:
            raise self._misunderstood() from None
        if not isinstance(content, dict) or not set(names) <= content.keys():
            raise self._misunderstood()
        return content

    def _misunderstood(self) -> InputError:
        return InputError(f"{self.address}: answers, but not as a chief of this version does")

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, wait_for_ready=True, timeout=PATIENCE)
        except grpc.RpcError as error:
            reason = "does not answer" if _unreachable(error) else f"failed: {error.details()}"
            raise InputError(
                f"{self.address}: the chief there {reason}; start it, then this worker, again: "
                "the search goes on"
            ) from None


def _unreachable(error: grpc.RpcError) -> bool:
    return error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


def _pack(content: dict[str, Any]) -> Any:
    """Return a message's content as KerasTuner's hyperparameters: one text, JSON."""
    proto = protos.get_proto()
    values = {_CONTENT: proto.Value(string_value=json.dumps(content))}
    return proto.HyperParameters(values=proto.HyperParameters.Values(values=values))


def _unpack(hyperparameters: Any) -> Any:
    try:
        return json.loads(hyperparameters.values.values[_CONTENT].string_value)
    except (ValueError, RecursionError):
        raise Refused("the message is not in JSON") from None


# ---------------------------------------------------------------------------------- the chief


class Server:
    """Serves a source of trials until it is stopped.

    Attributes:
        port: where it listens.
        failure: the error that a question met, if one did; the source is not asked again.

    Args:
        source: hands out trials and takes results.
        greeting: what the search is.
        host: the address to listen at.
        port: 0: any that is free.

    Raises:
        InputError: the address cannot be had.
    """

    def __init__(self, source: Source, greeting: dict[str, Any], host: str, port: int = 0):
        self._source, self._greeting = source, greeting
        self._heard: dict[str, float] = {}
        self._begun = time.monotonic()
        self.failure: Exception | None = None
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # the chief says it itself
        limited = dict(_OPTIONS) | {"grpc.max_receive_message_length": LARGEST_REQUEST}
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=4), options=[*limited.items()]
        )
        service = protos.get_service_grpc()
        service.add_OracleServicer_to_server(_servicer(self), self._server)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise InputError(f"{host}:{port}: cannot be listened at; is it taken?") from None
        self._server.start()

    def answer(self, worker: str | None, question: Callable[[], Any]) -> Any:
        """Answer a worker's question; note that it lives, or why there is no answer."""
        if self.failure is not None:
            raise self.failure
        if worker is not None:
            self._heard[worker] = time.monotonic()
        try:
            return question()
        except Refused:
            raise
        except Exception as error:
            self.failure = error
            raise

    def silent(self) -> list[str]:
        """Return the workers that have not been heard of for `PATIENCE` seconds; once each."""
        now = time.monotonic()
        gone = [worker for worker, heard in self._heard.items() if now - heard > PATIENCE]
        for worker in gone:
            del self._heard[worker]
        return gone

    def forget(self, worker: str) -> None:
        """Expect nothing more of a worker."""
        self._heard.pop(worker, None)

    @property
    def workers(self) -> int:
        """How many workers are at work, or waiting for it."""
        return len(self._heard)

    @property
    def quiet_seconds(self) -> float:
        """How long no worker has been heard of."""
        return time.monotonic() - max(self._heard.values(), default=self._begun)

    def stop(self) -> None:
        """Listen no more."""
        self._server.stop(grace=1).wait()


def _servicer(server: Server) -> Any:
    service, proto = protos.get_service(), protos.get_proto()

    class Servicer(protos.get_service_grpc().OracleServicer):  # type: ignore[misc]
        def GetSpace(self, request: Any, context: Any) -> Any:  # noqa: N802
            return service.GetSpaceResponse(hyperparameters=_pack(server._greeting))

        def CreateTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
            worker = request.tuner_id
            if not 0 < len(worker) <= 200 or not worker.isprintable():
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a worker has a name")
            order = server.answer(worker, lambda: server._source.next(worker))
            if order["kind"] == "stop":
                server.forget(worker)
            trial = proto.Trial(
                trial_id=order.get("trial", ""),
                hyperparameters=_pack(order),
                status=proto.TrialStatus.Value("STOPPED" if order["kind"] == "stop" else "RUNNING"),
            )
            return service.CreateTrialResponse(trial=trial)

        def EndTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
            name = request.trial.trial_id
            try:
                found = trial.checked(_unpack(request.trial.hyperparameters))
                server.answer(None, lambda: server._source.report(name, found))
            except ValueError as error:
                if error is server.failure:
                    raise
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"refused: {error}")
            return service.EndTrialResponse()

    return Servicer()


class LocalWorkers:
    """Worker processes on this machine, which end with this one.

    Args:
        count: how many.
        address: of the chief.
        data: the prepared data set.
        folder: of the search.
        features: the folder of stored features.
    """

    def __init__(self, count: int, address: str, data: Path, folder: Path, features: str | None):
        (folder / "workers").mkdir(exist_ok=True)
        self._processes = {}
        for number, variables in enumerate(_devices(count), start=1):
            name = f"worker {number}"
            words = [address, name, str(data), str(folder), *([features] if features else [])]
            log = open(folder / "workers" / f"{number}.log", "ab")  # noqa: SIM115
            with log:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "medseq_tf.tuning.cluster", *words],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=trial.environment(variables),
                    start_new_session=True,
                )

    def ended(self) -> list[str]:
        """Return the workers that have ended since they were last asked for."""
        gone = [name for name, process in self._processes.items() if process.poll() is not None]
        for name in gone:
            self._processes.pop(name).stdin.close()  # type: ignore[union-attr]
        return gone

    @property
    def count(self) -> int:
        """How many are left."""
        return len(self._processes)

    def stop(self, seconds: float = 0.0, interrupt: bool = False) -> None:
        """End them: give them time, or interrupt them so that they save; then kill."""
        if interrupt:
            for process in self._processes.values():
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + seconds
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(max(deadline - time.monotonic(), 0.0))
            process.kill()
            process.wait()
            process.stdin.close()  # type: ignore[union-attr]
        self._processes.clear()


def _devices(count: int) -> list[dict[str, str]]:
    """Return variables by worker: the GPUs named by CUDA_VISIBLE_DEVICES are dealt out."""
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if len(named) < 2:
        return [shared] * count
    return [{**shared, "CUDA_VISIBLE_DEVICES": named[i % len(named)]} for i in range(count)]


def main(words: list[str]) -> int:
    """Be a worker of the chief that started this process; return the exit status."""
    trial.end_with_parent()
    address, worker, data, folder, *features = words
    try:
        work_for_chief(address, worker, Path(data), Path(folder), *features)
    except InputError as error:
        print(f"medseq-tf: error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
