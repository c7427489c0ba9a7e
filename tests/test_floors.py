"""The house of the architecture: each module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import videokd

FLOORS = {
    "cli": 10,
    "quickstart": 9,
    "study": 9,
    "study_plan": 8,
    "train": 7,
    "assembly": 5,
    "report": 8,
    "bench": 7,
    "inside": 6,
    "label": 6,
    "preflight": 6,
    "evaluate": 5,
    "arms": 5,
    "leaks": 4,
    "predictions": 1,
    "protocols": 2,
    "metrics": 2,
    "fidelity": 3,
    "predict": 6,
    "recipe": 4,
    "teachers": 2,
    "distill": 3,
    "clips": 1,
    "models": 1,
    "losses": 1,
    "weighting": 2,
    "store": 3,
    "stored_shards": 2,
    "records": 1,
    "bank": 2,
    "optim": 2,
    "acceleration": 1,
    "machine": 1,
    "run_folder": 3,
    "averaging": 1,
    "norms": 1,
    "processes": 0,
    "text": 0,
    "disk": 0,
    "json_files": 0,
    "interruption": -1,
    "stopping": 5,
    "gradients": 5,
    "tally": 1,
    "checkpoint": 2,
    "timing": 1,
    "environment": 1,
    "progress": 2,
    "tracking": 2,
    "contracts": 0,
    "config": 0.5,
    "config_types": 0,
    "run_files": 1.5,
}
PACKAGE = Path(videokd.__file__).parent


def test_every_module_is_in_the_table_and_every_name_of_the_table_is_a_module() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(FLOORS))
def test_module_imports_only_from_floors_below(module: str) -> None:
    files = [PACKAGE / f"{module}.py"] if (PACKAGE / f"{module}.py").is_file() else (PACKAGE / module).rglob("*.py")
    for file in files:
        assert wrong_imports(module, file.read_text(encoding="utf-8")) == [], file


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("losses", "from videokd.contracts import Outputs", []),
        ("losses", "from videokd.losses.loss import Loss", []),
        ("losses", "from videokd.models import VideoModel", ["models"]),
        ("losses", "import videokd.train", ["train"]),
        ("losses", "def late():\n    from videokd import distill", ["distill"]),
        ("cli", "from videokd import quickstart, train", []),
    ],
)
def test_wrong_imports_are_found(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(module, source) == wrong


def test_no_module_is_too_long_to_read() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {file: length for file, length in lengths.items() if length > 600} == {}


def wrong_imports(module: str, source: str) -> list[str]:
    """Modules of the package that `source`, part of `module`, may not import."""
    imported: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            whole = node.module or ""
            imported += [f"videokd.{alias.name}" for alias in node.names] if whole == "videokd" else [whole]
    parts = [name.split(".")[1] for name in imported if name.startswith("videokd.")]
    return [part for part in parts if part in FLOORS and part != module and FLOORS[part] >= FLOORS[module]]
