"""Check that a vLLM that was never tested has what the adapters use: its source is read, not imported.

What is used stands in the table of :mod:`swift_rm.integrations.vllm.versions.used_names`. A name must be there; a function
must take the arguments that it is given; and where rewards depend on the order of a method's steps, its source must be one
that was read, comments and layout aside.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from swift_rm.integrations.vllm.versions.used_names import USED, Used


class SourceDiffers(ImportError):
    """vLLM's source lacks something that the adapters use, or does something in another order."""


def vllm_folder() -> Path:
    """Return the folder of the installed vLLM without importing it; raise SourceDiffers if there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise SourceDiffers("vLLM's package has no folder with its source")
    return Path(next(iter(spec.submodule_search_locations)))


def check_source(folder: Path, used: Sequence[Used] = USED) -> None:
    """Raise SourceDiffers that names what of ``used`` the vLLM in a ``folder`` does not have."""
    wrong = differences(folder, used)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise SourceDiffers("; ".join(wrong[:3]) + more)


def differences(folder: Path, used: Sequence[Used] = USED) -> list[str]:
    """Return a sentence for each name that is gone, function that takes something else, and method that was changed."""
    wrong: list[str] = []
    for file in dict.fromkeys(one.file for one in used):
        own = [one for one in used if one.file == file]
        try:
            tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            wrong += [f"{one.name} is gone with vllm/{file} ({one.why})" for one in own]
            continue
        wrong += [said for one in own if (said := _difference(tree, one)) is not None]
    return wrong


def digest(function: ast.AST) -> str:
    """Return a digest of a function's source without comments, layout, docstrings and annotations."""
    return hashlib.sha256("".join(_spelled(function)).encode()).hexdigest()[:16]


def find(tree: ast.Module, name: str) -> ast.AST | None:
    """Return where a module defines ``name``: a function, class, method, or an attribute that a class or its methods set."""
    owner, _, attribute = name.rpartition(".")
    if not owner:
        return _defined(tree.body, name)
    group = _defined(tree.body, owner)
    if not isinstance(group, ast.ClassDef):
        return None
    return _defined(group.body, attribute) or next(
        (node for node in ast.walk(group)
         if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == attribute
         and isinstance(node.value, ast.Name) and node.value.id == "self"), None,
    )  # fmt: skip


def _difference(tree: ast.Module, one: Used) -> str | None:
    node = find(tree, one.name)
    if node is None:
        return f"{one.name} is gone from vllm/{one.file} ({one.why})"
    if one.takes is None and not one.order:
        return None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{one.name} of vllm/{one.file} is no function any more ({one.why})"
    if one.takes is not None and (said := _unfit(node, one.takes, method="." in one.name)) is not None:
        return f"{one.name} of vllm/{one.file} {said} ({one.why})"
    if one.order and digest(node) not in one.order:
        return f"{one.name} of vllm/{one.file} was changed ({one.why})"
    return None


def _unfit(node: ast.FunctionDef | ast.AsyncFunctionDef, takes: Sequence[str], method: bool) -> str | None:
    """Say why a function cannot be called with the arguments ``takes``, or None if it can."""
    static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    spec = node.args
    positional = [one.arg for one in (*spec.posonlyargs, *spec.args)][int(method and not static) :]
    named = [*positional, *(one.arg for one in spec.kwonlyargs)]
    lacking = [name for name in takes if name not in named and spec.kwarg is None]
    if lacking:
        return f"takes no {lacking[0]!r}"
    if [name for name in positional if name in takes] != [name for name in takes if name in positional]:
        return f"takes {', '.join(positional)} in another order"
    free = len(positional) - len(spec.defaults)
    wanted = [
        *positional[:free],
        *(one.arg for one, value in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if value is None),
    ]
    more = [name for name in wanted if name not in takes]
    return f"wants {more[0]!r} too" if more else None


def _defined(body: Iterable[ast.stmt], name: str) -> ast.AST | None:
    """Return the last definition of ``name`` in a body; of overloads that is the one that does something."""
    found: ast.AST | None = None
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = node if node.name == name else found
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found = node
        elif isinstance(node, ast.If | ast.Try):
            found = _defined([*node.body, *node.orelse], name) or found
    return found


SKIPPED = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}  # of no effect, or not in every Python


def _spelled(node: object) -> Iterable[str]:
    """Spell a syntax tree: the same for the same code, in every version of Python."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for field, value in ast.iter_fields(node):
            if field in SKIPPED or value is None or value == []:
                continue
            body = value[1:] if field == "body" and isinstance(value, list) and _says(value[0]) else value
            yield f" {field}"
            yield from _spelled(body)
        yield ")"
    elif isinstance(node, list):
        for one in node:
            yield from _spelled(one)
    else:
        yield f" {node!r}"


def _says(statement: object) -> bool:
    """Tell whether a statement is a docstring, or another string that does nothing."""
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )
