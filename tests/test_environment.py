import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import videokd
from videokd.environment import environment


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A working folder with one committed file."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "recipe.py").write_text("a = 1\n")
    git(tmp_path, "add", "recipe.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def test_versions_and_machine_are_plain_data() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["videokd"] == videokd.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["ffmpeg"]["libavcodec"].count(".") == 2
    assert found["cpu"]["model"]
    assert found["cpu"]["torch_threads"] == torch.get_num_threads()
    assert found["date"].endswith("+00:00")
    assert found["processes"] == 1


def test_the_revision_says_whether_files_were_changed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    revision = git(repository, "rev-parse", "HEAD")
    (repository / "runs").mkdir()
    (repository / "runs" / "new.txt").write_text("git does not know this one")
    assert environment()["git"]["folder"] == {"revision": revision, "changed": False}
    (repository / "recipe.py").write_text("a = 2\n")
    assert environment()["git"]["folder"] == {"revision": revision, "changed": True}


def test_without_a_repository_or_without_git_there_is_no_revision(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert environment()["git"]["folder"] is None
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PATH", "")
    assert environment()["git"]["folder"] is None


def test_a_package_installed_inside_a_repository_is_no_checkout(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository / ".venv" / "videokd"
    installed.mkdir(parents=True)
    monkeypatch.setattr(videokd, "__file__", str(installed / "__init__.py"))
    assert environment()["git"]["package"] is None
    monkeypatch.setattr(videokd, "__file__", str(repository / "videokd" / "__init__.py"))
    assert environment()["git"]["package"]["revision"] == git(repository, "rev-parse", "HEAD")


def test_nothing_says_who_ran_it_or_what_they_keep_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    arguments = ["train", "x.py", "--data.path", "s3://alice:hunter2@store/set", "--out", "/home/alice/runs/a"]
    monkeypatch.setattr(sys, "argv", ["/home/alice/.venv/bin/videokd", *arguments])
    found = environment()
    assert found["command"] == ["videokd", "train", "x.py", "--data.path", "s3://***@store/set", "--out", "~/runs/a"]
    assert found["variables"]["SLURM_JOB_ID"] == "77"
    assert "alice" not in json.dumps(found)
    assert "hunter2" not in json.dumps(found)
    assert f'"{platform.node()}"' not in json.dumps(found)


def test_the_number_of_processes_is_that_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert environment()["processes"] == 8


@pytest.mark.gpu
def test_gpus_are_named_with_their_driver() -> None:
    found = environment()["gpu"]
    assert found["names"]
    assert found["driver"]
    assert found["cuda"] == torch.version.cuda


@pytest.mark.parametrize("how", ["monitor", "filter", "included filter", "submodule"])
def test_a_repository_of_others_runs_no_command(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, ran = tmp_path / "theirs", tmp_path / "ran"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    evil.chmod(0o755)

    def made(folder: Path) -> None:
        folder.mkdir()
        git(folder, "init")
        (folder / "file").write_text("one")
        (folder / ".gitattributes").write_text("* filter=evil\n")
        git(folder, "add", ".")
        git(folder, "commit", "-m", "one")

    made(repository)
    spoilt = repository
    if how == "submodule":
        made(tmp_path / "inner")
        git(repository, "-c", "protocol.file.allow=always", "submodule", "add", str(tmp_path / "inner"), "inner")
        git(repository, "commit", "-m", "two")
        spoilt = repository / "inner"
    if how == "included filter":
        (repository / ".git/more").write_text(f'[filter "evil"]\n\tclean = {evil}\n')
        git(repository, "config", "include.path", "more")
    elif how == "monitor":
        git(repository, "config", "core.fsmonitor", str(evil))
    else:
        git(spoilt, "config", "filter.evil.clean", str(evil))
    (spoilt / "file").write_text("two")
    monkeypatch.chdir(repository)
    found = environment()["git"]["folder"]
    assert len(found["revision"]) == 40
    assert found["changed"] is {"monitor": True, "submodule": False}.get(how)
    assert not ran.exists()
    subprocess.run(["git", "status"], check=True, capture_output=True)
    assert ran.exists()  # as git itself would
