"""Where avocado-vt keeps its files, what stands in for its machines, and which of a feature's names QEMU knows."""

import os
import sys
import tempfile
from collections.abc import Collection
from enum import Enum
from typing import Any

from .errors import MonitorNotSupportedError


class Flags(Enum):
    """What a machine may be asked for with `check_capability`, where avocado-vt's own flags are not loaded."""

    BLOCKDEV = "blockdev"


class VM:
    """What a pickled monitor keeps of its machine.

    :param name: the machine's name
    """

    def __init__(self, name: Any) -> None:
        self.name = name
        self.blockdev = False
        self.pid: Any = None

    def check_capability(self, flag: Any) -> bool:
        """Whether the machine is one of ``-blockdev``, where that is what `flag` asks."""
        return self.blockdev and flag is blockdev_flag()

    def get_pid(self) -> Any:
        """QEMU's process, where it is known."""
        return self.pid


def blockdev_flag() -> Any:
    """The flag that the machines which are used here know: avocado-vt's own where it is loaded."""
    loaded = sys.modules.get("virttest.qemu_capabilities")
    return Flags.BLOCKDEV if loaded is None else loaded.Flags.BLOCKDEV


def tmp_dir() -> str:
    """Where sockets are: where avocado-vt keeps them if it is loaded, else the system's temporary directory."""
    loaded = sys.modules.get("virttest.data_dir")
    return (None if loaded is None else loaded.get_tmp_dir()) or tempfile.gettempdir()


def log_path(name: str) -> str:
    """Where the log file `name` is: where avocado-vt keeps it if it is loaded, else beside the sockets."""
    loaded = sys.modules.get("virttest.utils_logfile")
    return os.path.join(getattr(loaded, "_log_file_dir", None) or tmp_dir(), name)


def x_non_x_feature(feature: str) -> str:
    """The other name of `feature`: with ``x-`` before it, or without."""
    return feature[2:] if feature.startswith("x-") else f"x-{feature}"


def pick_supported_x_feature(
    feature: str,
    supported_features: Collection[str],
    disable_auto_x_evaluation: bool,
    error_on_missing: bool = False,
    feature_type: str = "Feature",
) -> str:
    """Which name of `feature` QEMU knows, with ``x-`` before it or without; `feature` itself where it knows neither.

    :param supported_features: what QEMU knows
    :param disable_auto_x_evaluation: take `feature` as it is
    :param error_on_missing: raise where QEMU knows neither
    :param feature_type: what it is, for the error
    :raises MonitorNotSupportedError: it knows neither
    """
    if disable_auto_x_evaluation or feature in supported_features:
        return feature
    other = x_non_x_feature(feature)
    if other in supported_features:
        return other
    if error_on_missing:
        raise MonitorNotSupportedError(f"{feature_type} {feature}, nor {other} supported.")
    return feature
