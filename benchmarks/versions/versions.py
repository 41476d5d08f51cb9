"""The core of the test suite with each version of transformers and of torch that README and metadata claim.

Each pair of versions gets an environment of its own, under ``.venv-versions/``, into which this checkout is installed with
these two pinned and everything else as pip resolves it. The oldest claimed, two between, and the newest that the package
index has, whatever the metadata allow: a release that breaks us fails here. With ``--table`` the results are written into
docs/versions.md as well. Needs some ten gigabytes on disk, and about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from swift_rm.files.tested_versions import TRANSFORMERS
from swift_rm.models.transformers_internals import INTERNALS

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
BETWEEN = ("5.11.0", "5.17.0")
OLDEST_TORCH = "2.6.0"
# Capture, streaming, decoding, sampling, recording, custom_generate, HiPO's rollouts, check-model.
CORE = (
    "capture/test_fed_tokens", "capture/test_generate_listeners", "capture/test_logits_tap", "capture/test_running_reward",
    "capture/test_state_recorder", "capture/test_streaming", "capture/test_tap", "capture/test_tap_refusals",
    "decoding/test_best_of_n", "decoding/test_custom_generate",
    "decoding/test_custom_generate_folder", "decoding/test_engine", "decoding/test_loop", "decoding/test_planted_generate",
    "features/test_source_records", "hipo/test_force_mode", "hipo/test_rollout", "integrations/test_candidate_sampler",
    "models/test_kv_cache_rows", "models/test_model_shape", "models/test_transformers_internals", "parity/test_capture_check",
    "parity/test_tested_versions", "sampling/test_sample", "scoring/test_score", "scoring/test_token_scoring",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A version of transformers and one of torch."""

    transformers: str
    torch: str

    @property
    def folder(self) -> Path:
        """The environment of the pair."""
        return ROOT / ".venv-versions" / f"transformers-{self.transformers}-torch-{self.torch}"

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return self.folder / "bin" / "python"


def main() -> None:
    """Run the pairs that are asked for, one after another, and write what came of them."""
    args = _arguments()
    pairs = [_pair(text) for text in args.pairs] if args.pairs else pairs_of(newest("transformers"), _newest_torch())
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        print(f"transformers {pair.transformers}, torch {pair.torch}", flush=True)
        rows.append(_run(pair, args.tests))
        print(f"  {json.dumps(rows[-1])}", flush=True)
    result = summary(rows, python=platform.python_version(), command="make test-versions")
    if not args.pairs and not args.tests:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.table:
        page = with_table(PAGE.read_text(), "versions", table(result))
        PAGE.write_text(with_table(page, "internals", internals_table()))
    print(json.dumps(result) if args.json else table(result))
    sys.exit(1 if result["failed"] else 0)


def pairs_of(newest_transformers: str, torch: str) -> list[Pair]:
    """Return the pairs to test: the ends with both versions of torch, the versions between with the newer one."""
    oldest = TRANSFORMERS.oldest
    return [
        Pair(oldest, OLDEST_TORCH), Pair(oldest, torch), *(Pair(version, torch) for version in BETWEEN),
        Pair(newest_transformers, OLDEST_TORCH), Pair(newest_transformers, torch),
    ]  # fmt: skip


def summary(rows: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """Return the result: for each version whether all that was run with it passed, and how many pairs failed."""
    tested: dict[str, dict[str, bool]] = {"transformers": {}, "torch": {}}
    for row in rows:
        for library, passed in tested.items():
            passed[row[library]] = passed.get(row[library], True) and row["ok"]
    return {"tested": tested, "failed": sum(not row["ok"] for row in rows), "runs": rows, **facts}


def table(result: dict[str, Any]) -> str:
    """Return the results as a table of Markdown."""
    lines = ["| transformers | torch | trl | tests passed | failed | |", "|---|---|---|---|---|---|"]
    for row in result["runs"]:
        verdict = "passes" if row["ok"] else f"**fails**: {row['reason']}"
        cells = (row["transformers"], row["torch"], row.get("trl", ""), row.get("passed", 0), row.get("tests_failed", 0), verdict)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def internals_table() -> str:
    """Return what is used of transformers' internals as a table of Markdown."""
    lines = ["| what | of | since | until | for |", "|---|---|---|---|---|"]
    lines += [f"| `{one.name}` | {one.where} | {one.since or ''} | {one.until or ''} | {one.use} |" for one in INTERNALS]
    return "\n".join(lines)


def with_table(page: str, name: str, text: str) -> str:
    """Put a table between its two marks in a page."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    return f"{page[: page.index(begin)]}{begin}\n{text}\n{page[page.index(end) :]}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", metavar="TRANSFORMERS+TORCH", help="only these, e.g. 5.24.0+2.13.0; no result file")
    parser.add_argument("--tests", nargs="+", help="test files instead of the core; no result file")
    parser.add_argument("--table", action="store_true", help="write the table into docs/versions.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file (default: benchmarks/results/versions.json)")
    return parser.parse_args()


def _run(pair: Pair, tests: list[str] | None) -> dict[str, Any]:
    start = time.monotonic()
    row: dict[str, Any] = {"transformers": pair.transformers, "torch": pair.torch, "ok": False}
    if reason := _install(pair):
        return {**row, "reason": reason}
    row["trl"] = _version(pair, "trl")
    if (_version(pair, "transformers"), _version(pair, "torch")) != (pair.transformers, pair.torch):
        return {**row, "reason": "pip installed other versions"}
    files = tests or [f"tests/{name}.py" for name in CORE]
    done = subprocess.run(
        [pair.python, "-m", "pytest", "-p", "no:cacheprovider", *files], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
    )  # fmt: skip
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    row |= {"passed": counts.get("passed", 0), "tests_failed": failed, "seconds": round(time.monotonic() - start)}
    row["ok"] = done.returncode == 0 and row["passed"] > 0
    if not row["ok"]:
        first = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        row["reason"] = f"{first[0]} and {len(first) - 1} more" if first else f"pytest ended with {done.returncode}"
        (pair.folder / "pytest.log").write_text(done.stdout + done.stderr)
    return row


def _install(pair: Pair) -> str | None:
    """Make the environment of a pair unless it is there; return why that cannot be done, or None."""
    if not pair.python.exists():
        subprocess.run([sys.executable, "-m", "venv", pair.folder], check=True)
    wanted = [f"torch=={pair.torch}", f"transformers=={pair.transformers}", "pytest>=8", "trl>=1.16,<1.17", "peft>=0.18"]
    known = [name for name in _dependencies() if name not in ("torch", "transformers")]
    for step in ([*wanted, *known], ["--no-deps", "--editable", "."]):  # no-deps: the newest may be beyond our own bounds
        done = subprocess.run(
            [pair.python, "-m", "pip", "install", "--quiet", *step], cwd=ROOT, capture_output=True, text=True
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return f"pip: {(lines or ['failed'])[0]}"
    return None


def _dependencies() -> list[str]:
    """Return what the project needs, but for torch and transformers, as pip is told."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [one for one in project["dependencies"] if not one.startswith(("torch", "transformers"))]


def newest(library: str) -> str:
    """Return the newest release that the package index has; raise LookupError, with what pip said, if it does not tell."""
    command = [sys.executable, "-m", "pip", "index", "versions", library]
    told = subprocess.run(command, capture_output=True, text=True)
    listed = re.search(r"Available versions: (.*)", told.stdout)
    if listed is None:
        raise LookupError(f"the index did not tell which {library} is the newest: {told.stderr.strip()[-200:]}")
    return max(listed[1].split(", "), key=Version)


def _newest_torch() -> str:
    """Return the torch of the constraints file, the newest of which there is a build without a GPU."""
    return re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]  # type: ignore[index]


def _pair(text: str) -> Pair:
    transformers, _, torch = text.partition("+")
    return Pair(transformers, torch or _newest_torch())


def _version(pair: Pair, library: str) -> str:
    code = f"from importlib.metadata import version; print(version({library!r}).split('+')[0])"
    return subprocess.run([pair.python, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip()


if __name__ == "__main__":
    main()
