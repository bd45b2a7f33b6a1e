"""What all tests share. The environment is set before anything imports TensorFlow."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgeline.model_module.hooks import ModelModule

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}
# NumPy's threads wait by spinning, for sums that are small in all tests
os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _is_roomy(folder: str) -> bool:
    """Whether there are 4 GiB free, and programs can be run there."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return (
        status.f_bavail * status.f_frsize >= 2**32 and not status.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK)
    )


# ML Metadata waits for the disk several times in each step of a run, and so do our own files: in memory nothing waits
if _is_roomy("/dev/shm"):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

# in the background, and under nohup, a process has these ignored, and so would have all that the tests start
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# the process that deals tests to the workers of pytest-xdist runs none: they need not wait for its imports
if "PYTEST_XDIST_WORKER" in os.environ or "-n" not in sys.argv:
    with warnings.catch_warnings():
        # what TensorFlow, TFX and Beam say of themselves at import is not ours to fail on
        warnings.simplefilter("ignore")
        import apache_beam  # noqa: F401
        import tensorflow
        import tensorflow_model_optimization  # noqa: F401
        import tf_keras  # noqa: F401
        import tfx.components  # noqa: F401
    # as `edgeline run` does, whichever test comes first
    tensorflow.config.threading.set_intra_op_parallelism_threads(8)


# what tests of several folders import by its name
for _name in ("command_line", "power_cut"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # a long file must not be what one worker still has to do at the end: of the slow tests these two are the longest,
    # of all others whole runs
    longest = ("test_applications.py", "test_cluster.py")
    whole_runs = {"pipelines", "extending", "kubeflow"}
    items.sort(key=lambda item: (item.path.name not in longest, whole_runs.isdisjoint(item.path.parts)))


def pytest_collection_finish() -> None:
    # what has been imported, half a million objects, will never be garbage: each full collection, one of which the
    # TFLite converter asks for in every conversion, would look at all of them
    gc.freeze()
    # tracing makes many objects that stay for a while
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    """Keeps the processes that help alive for all tests of this one: each takes seconds to import TensorFlow.

    And latencies are measured for a moment only: no test goes by how exact they are.
    """
    from edgeline.conversion import worker
    from edgeline.evaluator.measuring import findings
    from edgeline.isolation import fork_server

    worker.MOST_CALLS = 500
    fork_server._IDLE_SECONDS = 3600.0
    findings._SECONDS = 0.02


DIGITS_MODULE = "edgeline.pipelines.examples.digits.model"


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with scikit-learn's digits: 1,461 train, 163 validation, 173 eval."""
    from edgeline.pipelines.datasets import mnist

    folder = tmp_path_factory.mktemp("data") / "digits"
    mnist.write_digits(folder, shards=3)
    return folder


@pytest.fixture(scope="session")
def digits_examples(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The uri of an Examples artifact of the digits."""
    from edgeline.data.data_folder import SPLITS

    root = tmp_path_factory.mktemp("examples")
    for split in SPLITS:
        shutil.copytree(digits_data / split, root / f"Split-{split}")
    return str(root)


@pytest.fixture(scope="session")
def digits_module() -> ModelModule:
    from edgeline.model_module import hooks

    return hooks.load(DIGITS_MODULE)


TINY_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def build_model():
    layers = [keras.Input([4], name="x"), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
"""


@pytest.fixture(scope="session")
def tiny_source() -> str:
    """The code of a minimal model module: four numbers in, three logits out."""
    return TINY_MODULE


@pytest.fixture
def tiny_module(tiny_source: str, tmp_path: Path) -> Path:
    """The path of the minimal model module."""
    path = tmp_path / "tiny_model.py"
    path.write_text(tiny_source)
    return path
