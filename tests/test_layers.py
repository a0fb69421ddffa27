"""Imports run down the floors of the design, training and evaluation apart, no star imports, no cycles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module belongs to the longest of these names that it equals or is below. A folder or file that is missing here
# fails the test: it has to be given a floor.
FLOORS = {
    "hta.errors": 1,
    "hta.settings": 2,
    "hta.files": 2,
    "hta.config": 3,
    "hta.images": 3,
    "hta.pages": 3,
    "hta.runtime": 4,
    "hta.cli": 4,
    "hta.data": 5,
    "hta.models": 5,
    "hta.training": 6,
    "hta.evaluation": 6,
    "hta.vacancy": 7,
    "hta.model": 7,
    "hta.runs": 8,
    "hta.inputs": 8,
    "hta.estimator": 9,
    "hta": 9,  # the package itself looks its names up in the modules below
    "hta.experiments": 10,
    "hta.studies": 10,
    "hta.export": 10,
    "hta.speed": 10,
    "hta.watch": 10,
    "main_train": 11,
    "main_eval": 11,
}
SCRIPTS = ("main_train", "main_eval", "hta.experiments", "hta.export", "hta.speed", "hta.studies", "hta.watch")
APART = ({"hta.training", "hta.evaluation"},)


def room(module: str) -> str | None:
    """The entry of FLOORS that a module belongs to; `hta` holds only itself."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOORS and (name != "hta" or module == "hta")), None)


def read_sources() -> dict[str, str]:
    """The text of every module of the product by its dotted name."""
    files = [*ROOT.glob("main_*.py"), *ROOT.glob("hta/**/*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    packages = {name for name, path in zip(names, files, strict=True) if path.name == "__init__.py"}
    texts = {name: path.read_text(encoding="utf-8") for name, path in zip(names, files, strict=True)}
    assert packages >= {"hta", "hta.models"}
    return texts


def imports_of(module: str, text: str, modules: set[str]) -> Iterator[str]:
    """Every import of a module, at any depth of its text: modules of the product, others by their top name; `*`."""
    is_package = any(name.startswith(module + ".") for name in modules)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                if alias.name == "*":
                    yield "*"
                whole = f"{base}.{alias.name}"
                if whole == "hta.__version__":
                    continue  # the one name of the package that every floor may use
                yield whole if whole in modules else base


def violations(sources: dict[str, str]) -> list[str]:
    """What the imports do that they must not, one line each."""
    modules, found, arrows = set(sources), [], {}
    for module, text in sources.items():
        mine = room(module)
        if mine is None:
            found.append(f"{module} has no floor")
            continue
        targets = set(imports_of(module, text, modules))
        arrows[module] = {target for target in targets if target in modules and target != module}
        if "*" in targets:
            found.append(f"{module} has a star import")
        if "argparse" in targets and mine not in (*SCRIPTS, "hta.cli"):
            found.append(f"{module} sees the command line")
        for target in sorted(targets):
            theirs = room(target)
            if theirs is None:
                if target.split(".")[0] == "hta":
                    found.append(f"{module} imports {target}, which has no floor")
                continue
            if FLOORS[theirs] > FLOORS[mine]:
                found.append(f"{module} runs up to {target}")
            if theirs in SCRIPTS and mine not in SCRIPTS:
                found.append(f"{module} imports the script {target}")
            if {mine, theirs} in APART:
                found.append(f"{module} imports {target}, which must be independent")
            if target == "hta.cli" and mine not in SCRIPTS:
                found.append(f"{module} sees the command line")
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(arrows)]


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The cycles that a walk along the arrows meets; empty if there are none."""
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(arrows.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(arrows):
        walk(module, [])
    return found


def test_imports_run_down_the_floors():
    assert violations(read_sources()) == []


def test_the_walk_sees_the_modules_and_their_imports():
    sources = read_sources()
    assert {"main_train", "hta", "hta.runs", "hta.models.canvas", "hta.models.pyramid", "hta.training.scale"} <= set(
        sources
    )
    seen = set(imports_of("hta.training.scale", sources["hta.training.scale"], set(sources)))
    assert {"hta.runtime", "hta.models.pyramid", "torch", "math"} <= seen


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("hta.files", "from hta.images import resize", "hta.files runs up to hta.images"),
        ("hta.config", "def f():\n    import hta.models.pyramid", "hta.config runs up to hta.models.pyramid"),
        ("hta.models.pyramid", "from ..training import scale", "hta.models.pyramid runs up to hta.training.scale"),
        ("hta.models.pyramid", "from hta import Model", "hta.models.pyramid runs up to hta"),
        ("hta.training.scale", "from hta.evaluation.scorer import x", "which must be independent"),
        ("hta.evaluation.scorer", "from hta import training", "which must be independent"),
        ("hta.runs", "from hta import cli", "hta.runs sees the command line"),
        ("hta.runs", "import main_train", "hta.runs imports the script main_train"),
        ("hta.runtime", "import argparse", "hta.runtime sees the command line"),
        ("hta.models.canvas", "from torch import *", "hta.models.canvas has a star import"),
        (
            "hta.models.canvas",
            "import hta.models.blocks",
            "cycle: hta.models.blocks -> hta.models.canvas -> hta.models.blocks",
        ),
        ("hta.cellar", "", "hta.cellar has no floor"),
    ],
)
def test_each_kind_of_violation_is_found(module, text, complaint):
    names = "files config images runtime runs cli models models.canvas models.blocks models.pyramid training"
    names = ("hta", "main_train", *(f"hta.{name}" for name in f"{names} training.scale evaluation".split()))
    sources = dict.fromkeys((*names, "hta.evaluation.scorer"), "import torch")
    assert violations(sources) == []
    sources["hta.models.blocks"] = "from hta.models.canvas import Canvas"
    assert any(complaint in line for line in violations(sources | {module: text}))
