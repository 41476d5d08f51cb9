"""The house: rooms and nothing else, no circle of files, and every path that users were told of."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FunctionType

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "swift_rm"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONGEST = 250  # lines of a file

# What users were told of, in the README, in the docs, by error messages or by the settings of other programs.
PUBLIC = {
    "swift_rm": "ApiBestOfN BestOfNDecoding HiddenStateTap StreamingReward SwiftConfig SwiftRewardModel __version__ best_of_n "
    "evaluate fit fit_online plan_grid sample score",
    "swift_rm.tasks.jsonl": "JsonlTask",
    "swift_rm.tasks.homework": "HomeworkTask",
    "swift_rm.tasks.rewriting": "RewritingTask",
    "swift_rm.pruning": "Confidence Halving Prune",
    "swift_rm.external": "SequenceClassificationReward",
    "swift_rm.custom_generate": "BestOfNDecoding BestOfNOutput",
    "swift_rm.logprob_features": "LogprobFeatures feature_names features_of response_features VERSION",
    "swift_rm.selection": "RULES DEFAULT_RULE EXTERNAL_RULES best borda_vote fuse_rank fuse_scale majority_vote reward_vote "
    "select shrunk_vote weighted_vote",
    "swift_rm.report": "CHARTS accuracy_by_n accuracy_by_tokens auroc_by_layer calibration charts differences label_efficiency",
    "swift_rm.hipo": "Mode Parsed Template",
    "swift_rm.hipo.trainer": "HiPOConfig HiPOTrainer",
    "swift_rm.hipo.rollout": "SwiftRollouts",
    "swift_rm.hipo.measuring": "measure",
    "swift_rm.hipo.metrics": "step_metrics",
    "swift_rm.integrations.one_line": "best_of_n_generate rank",
    "swift_rm.integrations.ray_actors": "RayActors",
    "swift_rm.integrations.trl": "SwiftReward rollout_reward",
    "swift_rm.integrations.trl_module": "SwiftRewardModule",
    "swift_rm_kernels": "gated_pool gated_pool_reference gated_step",
}  # fmt: skip


@pytest.mark.parametrize("path", PUBLIC)
def test_every_path_that_users_were_told_of_has_its_names(path):
    module = importlib.import_module(path)
    assert all(getattr(module, name, None) is not None for name in PUBLIC[path].split())


def test_the_old_names_are_the_same_objects():
    """Not copies: what is patched or registered through one path is seen through the other."""
    for path in ("pruning", "external", "custom_generate", "logprob_features", "selection", "report", "hipo.rollout"):
        module = importlib.import_module(f"swift_rm.{path}")
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, (type, FunctionType)):
                assert found.__module__ != module.__name__
                assert getattr(importlib.import_module(found.__module__), name) is found, (path, name)


def test_other_programs_find_what_they_load_by_name():
    points = SETTINGS["project"]["entry-points"]
    assert points["verl.plugins"]["swift_rm"] == "swift_rm.integrations.verl"
    assert points["inspect_ai"]["swift_rm"] == "swift_rm.integrations.inspect_ai"
    for group in points.values():
        for path in group.values():
            assert (ROOT / f"{path.replace('.', '/')}.py").is_file(), path
    module, _, name = SETTINGS["project"]["scripts"]["swift-rm"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    vllm = importlib.import_module("swift_rm.integrations.vllm")
    assert set(vllm.__all__) == {"LogitsReward", "RewardMiddleware", "RewardWorker", "VLLMBestOfN"}
    for home in vllm._ROOMS.values():
        assert (PACKAGE / "integrations/vllm" / f"{home.replace('.', '/')}.py").is_file(), home


def test_what_readme_docs_and_examples_import_is_there():
    """Lines such as ``from swift_rm.tasks.jsonl import JsonlTask``, wherever a reader may copy them from."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [path for kind in ("*.py", "*.md") for path in (ROOT / "examples").rglob(kind)]
    heavy = {"swift_rm.integrations.verl", "swift_rm.integrations.its_hub", "swift_rm.integrations.lm_eval"}
    found = set()
    for file in files:
        for module, names in re.findall(r"^\s*from (swift_rm[\w.]*) import \(?([^#\n]+)", file.read_text(), re.M):
            found |= {(module, name.split(" as ")[0].strip(" (),")) for name in names.split(",")}
    found -= {pair for pair in found if not pair[1]}
    assert len(found) > 30
    for module, name in sorted(found):
        if module in heavy or module.startswith(("swift_rm.integrations.vllm", "swift_rm.integrations.inspect_ai")):
            assert importlib.util.find_spec(module) is not None, module
        else:
            loaded = importlib.import_module(module)
            assert hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)


def test_files_that_the_docs_name_are_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text, rooms = page.read_text(), "swift_rm|tests|benchmarks|kernels|examples"
        named = re.findall(rf"(?<![\w/.-])(?:{rooms})/[\w/]+\.(?:py|json|yaml)\b", text)
        assert not [path for path in named if not (ROOT / path).exists()], page.name
        for script in re.findall(r"python -m (benchmarks[.a-z_]+\w)", text):
            assert (ROOT / f"{script.replace('.', '/')}.py").exists(), (page.name, script)


def test_the_package_shows_its_rooms_only():
    """Beside the rooms there are paths that users were told of, a few lines each."""
    for file in PACKAGE.glob("*.py"):
        if file.stem not in ("__init__", "_version"):
            tree = ast.parse(file.read_text())
            assert f"swift_rm.{file.stem}" in PUBLIC, file
            assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in tree.body), file
    for folder in PACKAGE.rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__" and "assets" not in folder.parts:
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} does not say what it is for"


def test_every_room_stands_in_the_contract():
    layers = SETTINGS["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip("( )") for layer in layers for name in layer.split("|")}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= named and len(rooms) > 15
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


def test_no_files_import_each_other_in_a_circle():
    """Lazy imports and those for types included."""
    graph = grimp.build_graph("swift_rm", cache_dir=None)
    assert circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def circles(imports):
    """Return the modules that reach each other, in alphabetical groups of two and more."""
    reached = {}
    for start in imports:
        seen, ahead = set(), [start]
        while ahead:
            for module in imports.get(ahead.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    ahead.append(module)
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in imports if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def test_a_file_has_one_idea():
    """At least its length says so; kernels, whose launches are long, and tests aside."""
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_make_lists_its_targets():
    done = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=ROOT, check=True)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert targets == set(re.findall(r"^  make ([a-z-]+) +\S", done.stdout, re.M))


def test_benchmarks_share_no_private_names():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                assert not [name.name for name in node.names if name.name.startswith("_")], path


def test_python_runs_the_command_by_its_room():
    command = [sys.executable, "-m", "swift_rm.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("swift-rm ")
