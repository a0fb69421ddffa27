"""What the README shows works as it stands there, and its tables are those of the results in the repository.

python -m tests.test_readme writes the tables anew, those of the README and those beside the results, from the results
that git knows.
"""

import contextlib
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hta.experiments.__main__ import main
from hta.experiments.paper import TABLES
from hta.experiments.results import ResultsFolder

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results"
_MADE = re.compile(r"<!-- python -m hta\.experiments (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def printed(arguments, results):
    """What a command of the experiments prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*arguments.split(), "--results", str(results)]) == 0
    return out.getvalue().strip() + "\n"


def renewed(text, results):
    """The README with every table made anew from the results."""
    return _MADE.sub(lambda found: f"<!-- python -m hta.experiments {found[1]} -->\n"
                     f"{printed(found[1], results)}<!-- end -->", text)  # fmt: skip


def test_the_library_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(ROOT / "Input", tmp_path / "Input")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hta.runtime.available_cores", lambda: 1)
    exec(compile(code, "README.md", "exec"), {})
    assert "(128, 128)" in capsys.readouterr().out


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def results_of_the_repository(folder):
    """A copy of the results that belong to the repository: a checkout may hold others, of its user's own."""
    listed = subprocess.run(
        ["git", "ls-files", "--", "*.json"], cwd=RESULTS, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split() or [path.name for path in RESULTS.glob("*.json")]
    folder.mkdir()
    for name in names:
        shutil.copy(RESULTS / name, folder)
    return folder


def test_the_tables_are_those_of_the_results(tmp_path):
    copy = results_of_the_repository(tmp_path / "results")
    text = README.read_text(encoding="utf-8")
    assert len(_MADE.findall(text)) >= 5
    assert renewed(text, copy) == text
    for table in TABLES:
        printed(f"table {table}", copy)
    kept = sorted((RESULTS / "tables").iterdir())
    assert len(kept) == 2 * len(TABLES)
    for path in kept:
        assert (copy / "tables" / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_every_result_in_the_repository_can_be_read(tmp_path):
    copy = results_of_the_repository(tmp_path / "results")
    assert len(list(ResultsFolder(copy).results())) == len(list(copy.glob("*.json"))) > 100


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        known = results_of_the_repository(Path(folder, "results"))
        README.write_text(renewed(README.read_text(encoding="utf-8"), known), encoding="utf-8")
        for number in TABLES:
            printed(f"table {number}", known)
        shutil.copytree(known / "tables", RESULTS / "tables", dirs_exist_ok=True)
