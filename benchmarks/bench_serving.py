"""How fast a recipe's SavedModel predicts, from the bytes of JPEGs to probabilities.

Of studies of 10, 30 and 100 slices, in alternating rounds: `bare`, which decodes and resizes the
slices that the recipe shows with OpenCV and passes them through the Keras model in one graph; and
two signatures of the exported model, `probability` and `serving_default`, which also gives the
probability after each slice. The ratio is to `bare`, by the clock and by the processor time of all
threads, which a busy machine disturbs less. Then the throughput with one client and with eight in
threads, and the memory over many requests of every length.

The weights are random: they change no time.

    python benchmarks/bench_serving.py [--preset NAME] [--set KEY=VALUE] [--rounds N]
        [--requests N] [--side PIXELS] [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import psutil
import tensorflow as tf
from side_by_side import aim

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.records import to_square
from medseq_tf.input import sampling
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.readers.pictures import decode_picture
from medseq_tf.serving.description import Description
from medseq_tf.serving.member_group import ServedMember
from medseq_tf.serving.model import ServingModel

TARGET = 1.2
COUNTS = (10, 30, 100)
CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fsm_bilstm")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each throughput")
    parser.add_argument("--side", type=int, default=256, help="of the JPEG files, pixels")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.requests, arguments.seconds = 20, 500, 5.0
    recipe = recipes.load(arguments.preset, arguments.overrides)
    size, channels = recipe.input.size, recipe.input.channels
    model = models.build(recipe.model, (size, size, channels), 1, seed=0)
    files = _files(arguments.side)
    with tempfile.TemporaryDirectory() as folder:
        served = ServingModel([ServedMember(model, recipe, 1.0)], _description(size))
        tf.saved_model.save(served, folder, signatures=served.signatures)
        megabytes = sum(p.stat().st_size for p in Path(folder).rglob("*")) / 2**20
        start = time.perf_counter()
        loaded = tf.saved_model.load(folder)
        seconds = time.perf_counter() - start
        machine = platform.processor() or platform.machine()
        print(f"{machine}, {os.cpu_count()} cores, TensorFlow {tf.__version__}")
        print(f"{arguments.preset}, JPEG {arguments.side} x {arguments.side} to {size} x {size}")
        print(f"SavedModel of {megabytes:.0f} MiB, loaded in {seconds:.1f} s\n")
        _latency(model, recipe, loaded.signatures, files, arguments.rounds)
        _throughput(loaded.signatures["probability"], files, arguments.seconds)
        _memory(loaded.signatures["probability"], files, arguments.requests)


def _files(side: int) -> list[bytes]:
    """100 different JPEG files."""
    cohort = DemoCohort(patients=4, size=side, slices=(25, 25))
    images = [image for n in range(4) for image in photographs(cohort.render(n).volume)]
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]


def _description(size: int) -> Description:
    return Description(
        name="benchmark",
        labels=["label"],
        thresholds={"label": 0.5},
        temperatures={"label": 1.0},
        modality="photograph",
        unit="grey level",
        bits=8,
        offset=0,
        size=size,
        aspect="pad",
        most_slices=512,
        preparation={},
    )


def _request(files: list[bytes]) -> dict[str, tf.Tensor]:
    return {"image_bytes": tf.constant([files]), "lengths": tf.constant([len(files)])}


# --------------------------------------------------------------------------------------- latency


def _bare(model, recipe, count: int, files: list[bytes]) -> Callable[[], np.ndarray]:
    """Returns what decodes the slices that the recipe shows, and asks the Keras model."""
    shown = sampling.evaluation_sequences(count, recipe.sequence)
    size, settings = recipe.input.size, recipe.input
    signature = (
        tf.TensorSpec((None, None, size, size, recipe.input.channels), tf.float32),
        tf.TensorSpec((None,), tf.int32),
    )

    @tf.function(input_signature=signature, autograph=False)
    def forward(slices, lengths):
        return tf.sigmoid(model({"slices": slices, "lengths": lengths}, training=False))

    def ask() -> np.ndarray:
        decoded = {}
        for place in {int(place) for sequence in shown for place in sequence}:
            image = decode_picture(files[place])
            square = to_square(image, size, "pad", cv2.INTER_AREA)
            decoded[place] = (square / np.float32(255) - settings.mean) / settings.std
        slices = np.stack([np.stack([decoded[int(p)] for p in sequence]) for sequence in shown])
        slices = np.repeat(slices[..., None], recipe.input.channels, axis=-1)
        lengths = tf.constant([len(sequence) for sequence in shown])
        return forward(tf.constant(slices, tf.float32), lengths).numpy().mean(axis=0)

    return ask


def _latency(model, recipe, signatures, files: list[bytes], rounds: int) -> None:
    print("| slices | road | median ms | 95% ms | ratio | ratio by processor time |")
    print("|---|---|---|---|---|---|")
    for count in COUNTS:
        request = _request(files[:count])
        roads = {
            "bare": _bare(model, recipe, count, files),
            "probability": lambda r=request: signatures["probability"](**r),
            "serving_default": lambda r=request: signatures["serving_default"](**r),
        }
        clock = {name: [] for name in roads}
        processor = {name: [] for name in roads}
        for round_ in range(rounds + 3):
            for name, ask in roads.items():
                wall, used = time.perf_counter(), time.process_time()
                ask()
                if round_ >= 3:
                    clock[name].append(time.perf_counter() - wall)
                    processor[name].append(time.process_time() - used)
        for name in roads:
            times, used = np.array(clock[name]), np.array(processor[name])
            ratio = np.median(times) / np.median(clock["bare"])
            by_processor = np.median(used) / np.median(processor["bare"])
            median, slow = 1e3 * np.median(times), 1e3 * np.quantile(times, 0.95)
            numbers = f"{median:.1f} | {slow:.1f} | {ratio:.2f} | {by_processor:.2f}"
            print(f"| {count} | {name} | {numbers} |")
            if name == "probability":
                aim(f"served study of {count} slices / bare", ratio, TARGET, most=True)
    print(f"\ntarget: probability at most {TARGET} x bare\n")


# -------------------------------------------------------------------------- throughput and memory


def _throughput(ask, files: list[bytes], seconds: float) -> None:
    request = _request(files[:30])
    rates = {}
    for clients in (1, CLIENTS):
        counts, stop = [0] * clients, time.perf_counter() + seconds

        def client(number: int, counts=counts, stop=stop) -> None:
            while time.perf_counter() < stop:
                ask(**request)
                counts[number] += 1

        threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[clients] = sum(counts) / seconds
    print(f"studies of 30 slices a second: 1 client {rates[1]:.1f}, {CLIENTS} clients "
          f"{rates[CLIENTS]:.1f} ({rates[CLIENTS] / rates[1]:.2f}x)\n")  # fmt: skip


def _memory(ask, files: list[bytes], requests: int) -> None:
    rng = np.random.default_rng(0)
    process, sizes = psutil.Process(), []
    tenth = max(1, requests // 10)
    for number in range(10 * tenth):
        count = int(rng.integers(1, 41))
        ask(**_request(files[:count]))
        if (number + 1) % tenth == 0:
            sizes.append(process.memory_info().rss / 2**20)
    print(f"resident memory after each tenth of {10 * tenth} requests of 1 to 40 slices, MiB: "
          + ", ".join(f"{size:.0f}" for size in sizes))  # fmt: skip
    print(f"last / second tenth: {sizes[-1] / sizes[1]:.3f}")


if __name__ == "__main__":
    main()
