"""The repository as a stranger finds it: pins in one place, nothing that ties it to a machine."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split(";")[0].split("==") for line in lines if "==" in line]
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in found}


def test_conda_brings_python_and_pip_alone():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert conda == [f"python{PROJECT['project']['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[lab]"]}


def test_torch_is_pinned_to_one_version_and_its_range_is_wide():
    assert pins()["torch"] == "2.13.0"
    assert "torch>=2.6" in PROJECT["project"]["dependencies"]


def test_every_direct_dependency_has_a_pin():
    project = PROJECT["project"]
    listed = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        listed += extra
    names = {re.split(r"[\[<>=;~ ]", each)[0].lower().replace("_", "-") for each in listed}
    assert names - pins().keys() - {"gptoss-workbench"} == set()


def test_make_has_the_promised_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("install", "lab", "demo", "test", "test-slow", "bench", "lint", "nano"):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert ".DEFAULT_GOAL := install" in makefile


def test_make_says_each_step_and_what_is_next():
    def planned(*goals: str) -> str:
        command = ["make", "--dry-run", "--what-if=pyproject.toml", *goals]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    bare = planned()
    steps = ["1/3 environment", "2/3 packages", "3/3 kernels", "next: make lab"]
    places = [bare.index(step) for step in steps]
    assert places == sorted(places) and "--quiet" not in bare
    assert "next: make lab" not in planned("lab")


def test_the_readme_says_where_the_commands_are():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("conda env create -f environment.yml") == 1
    assert readme.index("source .venv/bin/activate") < readme.index("## A first trace")


def test_ci_budgets_fit_its_time():
    slow = (ROOT / ".ci" / "slow.py").read_text()
    budgets = [int(minutes) for minutes in re.findall(r'Group\("\w+", (\d+)', slow)]
    assert len(budgets) == 4
    assert sum(budgets) <= 75


def test_no_file_is_larger_than_20_megabytes(tracked):
    assert [path.name for path in tracked if path.stat().st_size > 20_000_000] == []


def test_notebooks_are_committed_without_outputs(tracked):
    for path in (each for each in tracked if each.suffix == ".ipynb"):
        notebook = json.loads(path.read_text())
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), path
        assert "widgets" not in notebook["metadata"], path


def test_nothing_names_a_path_of_one_machine(tracked):
    places = re.compile(r"(?<![\w./])/(?:home|root|Users)/\w")
    text = {".py", ".md", ".js", ".yml", ".toml", ".ipynb", ".css", ".txt"}
    found = [
        f"{path.name}: {match.group()}"
        for path in tracked
        if path.suffix in text
        for match in [places.search(path.read_text())]
        if match
    ]
    assert found == []


def test_views_fetch_nothing_from_a_network(tracked):
    remote = re.compile(r"""(?:src|href|from|import|fetch)\s*[=(]?\s*["']https?://""")
    for path in (each for each in tracked if each.suffix in (".js", ".css")):
        assert not remote.search(path.read_text()), path
