"""The lock, pyproject.toml, environment.yml, the Makefile and .ci/run describe one and the same environment."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK_LINES = [
    line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
]
LOCK = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LOCK_LINES}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def direct_requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    texts = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]
    return [Requirement(text) for text in texts]


def locked_version(name: str) -> Version:
    (pin,) = LOCK[canonicalize_name(name)].specifier
    return Version(pin.version)


def make(*arguments: str) -> str:
    # Make hands its own state to its children through the first three; the calls here must not see it.
    not_meant = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON")
    environment = {key: value for key, value in os.environ.items() if key not in not_meant}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_lock_names_each_package_once_with_an_exact_version() -> None:
    assert len(LOCK) == len(LOCK_LINES)
    for requirement in LOCK.values():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is not an exact pin"


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_lock_pins_direct_dependency_within_its_range(requirement: Requirement) -> None:
    assert canonicalize_name(requirement.name) in LOCK, f"{requirement.name} is missing in requirements.lock"
    assert locked_version(requirement.name) in requirement.specifier


def test_whatever_the_package_depends_on_is_imported() -> None:
    imported: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    providers = metadata.packages_distributions()
    used = {canonicalize_name(name) for module in imported for name in providers.get(module, [])}
    required = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    assert required - used == set(), "required, and never imported"


def test_lock_is_complete() -> None:
    """Whatever the direct dependencies need here, at any depth, is pinned within the range that they ask for."""

    def needed_by(requirement: Requirement) -> Iterator[Requirement]:
        for text in metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                yield needed

    open_requirements = direct_requirements()
    seen: set[str] = set()
    while open_requirements:
        requirement = open_requirements.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        assert canonicalize_name(requirement.name) in LOCK, f"{requirement.name} is missing in requirements.lock"
        assert requirement.specifier.contains(locked_version(requirement.name), prereleases=True), requirement
        open_requirements.extend(needed_by(requirement))


def test_installed_versions_are_those_of_the_lock() -> None:
    different = []
    for name, requirement in LOCK.items():
        if requirement.marker is None or requirement.marker.evaluate():
            # A build for one device carries a local part, as in 2.14.1+cpu; it is the same release.
            installed = Version(metadata.version(name)).public
            if installed != str(locked_version(name)):
                different.append(f"{name}: installed {installed}, locked {locked_version(name)}")
    assert not different, "run `make install`: " + "; ".join(different)


@pytest.mark.parametrize("name", ["torch", "nvidia-cublas", "nvidia-cudnn-cu13", "triton", "appnope", "colorama"])
def test_platform_markers(name: str) -> None:
    platforms = {
        "torch": {"linux", "darwin", "win32"},
        "appnope": {"darwin"},
        "colorama": {"win32"},
    }
    marker = LOCK[canonicalize_name(name)].marker or Marker('python_version >= "3"')
    installed_on = {p for p in ("linux", "darwin", "win32") if marker.evaluate({"sys_platform": p})}
    assert installed_on == platforms.get(name, {"linux"})


def test_environment_yml_installs_the_lock() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    conda = dict(entry.partition("=")[::2] for entry in dependencies if isinstance(entry, str))
    assert set(conda) == {"python", "pip"}, "everything but Python and pip belongs into requirements.lock"
    assert Version(conda["python"] + ".0") in Requirement("python" + PROJECT["project"]["requires-python"]).specifier


@needs_make
@pytest.mark.parametrize("target", ["install", "lint", "format", "test", "reproduce-table4", "tables", "figures"])
def test_each_target_first_installs_the_lock(target: str, tmp_path: Path) -> None:
    commands = make("--dry-run", target, f"VENV={tmp_path}/venv").splitlines()
    installs = [index for index, line in enumerate(commands) if "pip install" in line]
    flags = "--disable-pip-version-check --no-deps"
    assert [commands[index].split("pip install ")[1] for index in installs] == [
        f"{flags} -r requirements.lock",
        f"{flags} --no-build-isolation -e .",
    ]
    uses = [index for index, line in enumerate(commands) if re.search(r"-m (pytest|ruff|mypy)|scripts/", line)]
    assert bool(uses) == (target != "install")
    assert all(index > max(installs) for index in uses)


@needs_make
def test_second_install_has_nothing_to_do(tmp_path: Path) -> None:
    install_nothing(tmp_path)
    assert "pip" not in make("--dry-run", "install", f"VENV={tmp_path}")
    assert "pip" not in make("--dry-run", "install", f"VENV={tmp_path}", f"PYTHON={sys.executable}")


def install_nothing(venv: Path) -> Path:
    """Make a folder look installed; return its interpreter, which is the one that runs here."""
    interpreter = venv / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    (stamp,) = re.findall(r"touch (\S+)", make("--dry-run", "install", f"VENV={venv}"))
    Path(stamp).touch()
    return interpreter


@needs_make
@pytest.mark.parametrize("target", ["install", "lint"])
def test_another_interpreter_is_installed_for(target: str, tmp_path: Path) -> None:
    other = tmp_path / "python3.99"
    other.write_text("#!/bin/sh\necho Python 3.99.1\n")
    other.chmod(0o755)
    install_nothing(tmp_path / "venv")
    commands = make("--dry-run", target, f"VENV={tmp_path}/venv", f"PYTHON={other}")
    assert f"{other} -m venv --clear {tmp_path}/venv" in commands and "-r requirements.lock" in commands


@needs_make
def test_an_environment_whose_interpreter_is_gone_is_made_anew(tmp_path: Path) -> None:
    interpreter = install_nothing(tmp_path)
    interpreter.unlink()
    interpreter.symlink_to(tmp_path / "python-that-was-removed")
    commands = make("--dry-run", "lint", f"VENV={tmp_path}")
    assert f"python3 -m venv --clear {tmp_path}" in commands and "-r requirements.lock" in commands


@needs_make
def test_an_interpreter_that_is_not_there_is_said(tmp_path: Path) -> None:
    install_nothing(tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make("install", f"VENV={tmp_path}", "PYTHON=python3.99")
    assert 'Python >= 3.11 is needed, and "python3.99" is not' in failed.value.stderr
    assert (tmp_path / "bin" / "python").exists() and list(tmp_path.glob(".installed-*"))


@needs_make
@pytest.mark.parametrize("table", ["table1", "table3", "table4"])
def test_reproducing_passes_its_options_on(tmp_path: Path, table: str) -> None:
    venv = f"VENV={tmp_path}/venv"
    command = f"{tmp_path}/venv/bin/python scripts/reproduce.py {table}"
    lines = make("--dry-run", f"reproduce-{table}", venv).splitlines()
    assert f"{command} --from released --results 'runs/reproduction'" in [" ".join(line.split()) for line in lines]
    settings = ("FROM=scratch", "PRESET=paper", "SEED=3", "DATASET=other", "RESULTS=else where")
    assert f"{command} --from scratch --preset paper --seed 3 --dataset other --results 'else where'\n" in make(
        "--dry-run", f"reproduce-{table}", venv, *settings
    )
    assert "--results 'runs/from_scratch'\n" in make("--dry-run", f"reproduce-{table}", venv, "FROM=scratch")


@needs_make
def test_help_is_the_default_and_lists_every_target() -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert sorted(phony.split()) == sorted(targets)
    described = re.findall(r"^  (\S+) +\S", make(), flags=re.MULTILINE)
    assert sorted(described) == sorted(targets)
    assert make("help") == make()


@pytest.mark.parametrize(("given", "first"), [(None, "data"), ("/photos", "/photos")])
@pytest.mark.parametrize("shared", [True, False])
def test_ci_runs_make_test_and_adds_the_shared_data(
    given: str | None, first: str, shared: bool, tmp_path: Path
) -> None:
    script = tmp_path / "project" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    if shared:
        (tmp_path / "shared" / "data").mkdir(parents=True)
    fake_make = tmp_path / "bin" / "make"
    fake_make.parent.mkdir()
    fake_make.write_text('#!/bin/sh\necho "$PWD|$*|$OEN_DATA_DIR"; exit 7\n')
    fake_make.chmod(0o755)
    environment = {"PATH": f"{fake_make.parent}{os.pathsep}{os.environ['PATH']}"}
    if given is not None:
        environment["OEN_DATA_DIR"] = given

    done = subprocess.run([script], cwd="/", env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 7, "the script must fail when `make test` does"
    directory, arguments, data = done.stdout.strip().split("|")
    assert Path(directory) == (tmp_path / "project").resolve()
    assert arguments.split()[-1] == "test"
    assert data == (f"{first}:{(tmp_path / 'shared' / 'data').resolve()}" if shared else given or "")


def test_citation_gives_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["preferred-citation"]["doi"] == "10.1016/j.neucom.2022.06.118"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("data/cifar10.npz", True),
        ("runs/table1_original/seed=0/log.jsonl", True),
        (".venv/bin/python", True),
        ("src/offset_equivariant/data/cifar10.py", False),
        ("tests/data/test_cifar10.py", False),
        ("results/checkpoints/table1_original.safetensors", False),
    ],
)
def test_gitignore_spares_code_and_results(path: str, ignored: bool) -> None:
    # The checkout may be another user's, as in a container.
    command = ["git", "-c", "safe.directory=*", "check-ignore", "--quiet", "--no-index", path]
    assert (subprocess.run(command, cwd=ROOT, check=False).returncode == 0) == ignored
