"""Whether a kernel file from outside keeps the rules: read as a syntax tree, never run."""

import ast
from collections.abc import Iterator

IMPORTS = ("torch", "triton", "math", "typing", "dataclasses", "collections.abc", "__future__", "functools")
# what a wrapper may take from torch: memory, types and the device; everything else would be the work itself
TORCH = {
    "Tensor", "device", "dtype", "Size", "tensor", "arange", "empty", "empty_like", "empty_strided", "zeros",
    "zeros_like", "full", "float16", "bfloat16", "float32", "float64", "half", "float", "uint8", "int8", "int16",
    "int32", "int64", "int", "long", "bool", "cuda", "cuda.current_device", "cuda.get_device_properties",
    "cuda.is_available",
}  # fmt: skip
WORK = {
    "matmul", "mm", "bmm", "addmm", "addmm_", "baddbmm", "einsum", "softmax", "log_softmax", "sum", "mean", "var",
    "sqrt", "rsqrt", "pow", "square", "exp", "sigmoid", "tanh", "silu", "gelu", "relu", "norm", "mul", "mul_", "add",
    "add_", "sub", "sub_", "div", "div_", "addcmul", "addcmul_", "dot", "mv", "cumsum", "index_select", "gather",
    "scatter", "scatter_", "index_add_", "index_copy_", "index_put_", "masked_fill", "masked_fill_", "roll", "apply_",
    "map_", "tolist", "item", "numpy", "double", "copy_", "lerp", "rms_norm", "layer_norm", "linear",
}  # fmt: skip
NAMES = {
    "exec", "eval", "compile", "__import__", "open", "getattr", "setattr", "delattr", "globals", "locals", "vars",
    "input", "breakpoint", "memoryview",
}  # fmt: skip
CACHES = {"cache", "lru_cache", "cached_property"}


def problems(source: str, entry: str) -> list[str]:
    """The rules that a kernel file breaks, each with its line; empty if it may be run.

    Args:
        entry: the function that it must define.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"line {error.lineno}: does not parse: {error.msg}"]
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    kernels = {name for name, node in functions.items() if _is_jit(node)}
    found = []
    if entry not in functions or entry in kernels:
        found.append(f"defines no function {entry}")
    if not kernels:
        found.append("defines no @triton.jit kernel")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in kernels:
            found.extend(_problems_of(node.decorator_list, entry))
        else:
            found.extend(_problems_of([node], entry))
    if kernels and not any(isinstance(n, ast.Subscript) and _root(n.value) in kernels for n in ast.walk(tree)):
        found.append("launches none of its kernels")
    return found


def _problems_of(nodes: list[ast.AST] | list[ast.expr] | list[ast.stmt], entry: str) -> Iterator[str]:
    for top in nodes:
        for node in ast.walk(top):
            problem = _problem(node)
            if problem is not None:
                yield f"line {getattr(node, 'lineno', '?')}: {problem}"


def _problem(node: ast.AST) -> str | None:
    match node:
        case ast.Import(names=names):
            bad = [alias.name for alias in names if not _may_import(alias.name)]
            return f"imports {bad[0]}" if bad else None
        case ast.ImportFrom(module=module, level=level):
            bad_names = [a.name for a in node.names if module == "torch" and a.name not in TORCH | {"Tensor"}]
            if level or not _may_import(module or "") or bad_names or (module or "").startswith("torch."):
                return f"imports from {module or '.'}" + (f": {bad_names[0]}" if bad_names else "")
        case ast.Try() | ast.TryStar():
            return "try: a kernel that fails must fail, not fall back"
        case ast.With() | ast.AsyncFunctionDef() | ast.Global() | ast.Nonlocal():
            return f"{type(node).__name__}: not needed to launch a kernel"
        case ast.BinOp(op=ast.MatMult()):
            return "a matrix product outside the kernel"
        case ast.Name(id=name) if name in NAMES | CACHES:
            return f"{name}: not needed to launch a kernel"
        case ast.Attribute(attr=attr) if attr.startswith("__"):
            return f"{attr}: not needed to launch a kernel"
        case ast.Attribute():
            return _attribute_problem(node)
        case ast.Assign(targets=targets):
            patched = [t for t in targets if isinstance(t, ast.Attribute)]
            return f"assigns to {ast.unparse(patched[0])}" if patched else None
    return None


def _attribute_problem(node: ast.Attribute) -> str | None:
    path = ast.unparse(node)
    if _root(node) == "torch" and path.startswith("torch."):
        return None if path.removeprefix("torch.") in TORCH else f"{path}: the kernel must do the work"
    if node.attr in WORK and not path.startswith(("math.", "tl.", "triton.")):
        return f".{node.attr}: the kernel must do the work"
    if node.attr in CACHES:
        return f"{path}: an answer must not be remembered"
    if path.startswith("triton.") and path.split(".")[1] not in {"jit", "cdiv", "next_power_of_2", "language"}:
        return f"{path}: not needed to launch a kernel"
    return None


def _may_import(name: str) -> bool:
    return name in IMPORTS or name == "triton.language"


def _is_jit(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(d).split("(")[0] in {"triton.jit", "jit"} for d in node.decorator_list)


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
