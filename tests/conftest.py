"""Fixtures that many tests share; `--slow` runs the slow ones too."""

import os
import signal
from pathlib import Path

import pytest
import torch

from videokd.clips.synthetic import write_set
from videokd.contracts import Clip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure() -> None:
    # pytest-xdist's processes say that they have 80 columns, and tables would be cut to them.
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: pass --slow"))
        # No GPU, no GPU test; with one, none is skipped.
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    # Tiny tensors: more threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a small synthetic set in real mp4 files: 24 training, 12 validation and 12 test clips."""
    counts = {"train": 24, "val": 12, "test": 12}
    return write_set(tmp_path_factory.mktemp("drawn"), counts=counts, workers=1)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny Hugging Face models with random weights, as their authors would publish them."""
    from tiny_models import write_originals  # transformers takes seconds to import

    return write_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="session")
def noisy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of eight videos of two classes, of which two have no sound."""
    from noisy_videos import write_noisy_set

    return write_noisy_set(tmp_path_factory.mktemp("noisy"))


def heed_ctrl_c() -> None:
    """For a process to start: Ctrl-C ends it as on a terminal, though the tests run in the background, where shells
    have it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def random_clip(*, batch: int = 2, frames: int = 8, size: int = 32, fps: float = 8.0, seed: int = 0) -> Clip:
    """Noise at a constant frame rate."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, frames, 3, size, size), dtype=torch.uint8, generator=generator)
    return Clip(pixels, torch.arange(frames).float().div(fps).expand(batch, -1).contiguous())
