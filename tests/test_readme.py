"""What the README shows works as it stands there."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_library_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(ROOT / "Input", tmp_path / "Input")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hta.runtime.available_cores", lambda: 1)
    exec(compile(code, "README.md", "exec"), {})
    assert "(128, 128)" in capsys.readouterr().out


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
