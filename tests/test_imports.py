import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = "['torch', 'transformers', 'trl', 'triton', 'numba', 'sklearn', 'math_verify']"
    assert run(f"import sys, swift_rm; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_recipe_of_hipo_is_light_until_it_trains():
    heavy = "['transformers', 'trl', 'datasets', 'peft', 'accelerate', 'openai', 'matplotlib', 'sklearn']"
    names = ("rewards.rollout_reward", "rewards.advantages", "trainer.metrics", "cold_start.pipeline", "cold_start.sft")
    modules = ", ".join(["swift_rm.hipo", *(f"swift_rm.hipo.{name}" for name in names), "swift_rm.hipo.cold_start.questions"])
    modules += ", swift_rm.hipo.trainer.resume, swift_rm.cli.hipo"
    assert run(f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_reward_model_needs_neither_transformers_nor_scikit_learn():
    program = "import sys; from swift_rm import SwiftConfig, SwiftRewardModel, HiddenStateTap; print([m for m in "
    assert run(program + "['transformers', 'trl', 'triton', 'numba', 'sklearn'] if m in sys.modules])") == "[]"


def test_help_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['swift-rm', '--help']; from swift_rm.cli.main import main; main()"
    )
    assert "best-of-n" in run(program)


@pytest.mark.parametrize("first", ["swift_rm.training.fit", "swift_rm.decoding.best_of_n"])
def test_functions_named_like_their_files_stay_functions(first):
    program = f"import {first}; from swift_rm import fit, best_of_n, score; from {first} import {first.split('.')[-1]} as f; "
    assert run(program + "print(callable(fit), callable(best_of_n), callable(score), callable(f))") == "True True True True"


def test_every_public_name_is_there_and_others_are_not():
    import swift_rm

    assert all(getattr(swift_rm, name) is not None for name in swift_rm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'rewards'"):
        _ = swift_rm.rewards


def test_the_kernels_know_nothing_of_the_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert "import swift_rm." not in path.read_text()
        assert "from swift_rm " not in path.read_text()
        assert "from swift_rm." not in path.read_text()


def test_the_formula_is_written_down_below_only():
    """The package asks the kernels for rewards; of the definitions it takes one that is a training loss."""
    users: dict[str, set[str]] = {}
    for path in sorted((ROOT / "swift_rm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swift_rm_kernels"):
                for name in node.names:
                    users.setdefault(name.name, set()).add(path.stem)
            assert not (isinstance(node, ast.Import) and any("swift_rm_kernels" in name.name for name in node.names)), path
    assert users == {
        "gated_pool": {"head"},
        "gated_pool_heads": {"head"},
        "head_scores": {"head_bank"},
        "pool_heads": {"head_bank", "head"},
        "gated_step": {"running_mean"},
        "token_scores": {"reward_worker"},
        "new_running": {"running_mean"},
        "running_rewards": {"running_mean"},
        "pool_prefixes_reference": {"head_bank"},
        "States": {"head"},
    }
    gates = [path.stem for path in (ROOT / "swift_rm").rglob("*.py") if "torch.sigmoid(" in path.read_text()]
    assert gates == ["head"], "a gate is made of its logit in one place"
