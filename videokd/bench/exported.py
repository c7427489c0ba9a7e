"""Reading of exported networks, `.pt2` and `.onnx`, without running code that comes with them.

`torch.export.load` runs code of a file in five ways: it unpickles weights, constants and sample inputs; it loads
compiled libraries; it evaluates sizes as Python; it imports modules that the tree of inputs names; and it compiles
guards as Python. Here an archive is taken apart, what is plain data is checked and written into a new archive in
memory, and only that is loaded.
"""

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.export.pt2_archive._package import load_pt2

from videokd.config import is_trusted, require_trust
from videokd.json_files import as_object, parse_json

_GRAPH = "models/model.json"
_TENSORS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d{1,9}"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d{1,9}"),
}
"""What lists the tensors of a kind -> how the files of their values are called, which lie beside it."""
_SAMPLES = "data/sample_inputs/model.pt"
_BOOKKEEPING = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}

_NAME = re.compile(r"[A-Za-z_]\w{0,499}", re.ASCII)
_DOTTED = re.compile(r"(\w{1,500}(\.\w{1,500}){0,99})?", re.ASCII)
_SYMBOL = re.compile(r"[A-Za-z]{1,20}\d{0,5}", re.ASCII)
_VERSION = re.compile(r"[\w.+-]{0,100}", re.ASCII)

_PYTHON_OPERATORS = frozenset(
    ("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge")
) | {"and_", "or_", "not_", "getitem"}
_EXPRESSIONS = frozenset(
    ("Symbol", "Integer", "Float", "Add", "Mul", "Max", "Min", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod")
) | {"ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat"}
"""Functions of sizes; a power of a power would never end."""
_NO_OPERATORS = {"from_file", "set_", "resize_", "resize_as_", "record_stream", "pin_memory"}
"""What reads files, or changes where a tensor lies."""
_PRIVATE_OPERATORS = {
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_assert_tensor_metadata",
    "_log_softmax",
    "_native_batch_norm_legit_no_training",
    "_softmax",
    "_to_copy",
    "_unsafe_view",
}
"""Those that begin with _, and that exported networks have."""


class CodeError(ValueError):
    """An archive holds something that can't be loaded as plain data."""


def load_program(path: Path, *, trust: Collection[str]) -> ExportedProgram:
    """Return the program that `torch.export.save` wrote; nothing that comes with it is run.

    Args:
        path: of the .pt2 file.
        trust: files that may run code, which are then loaded as `torch.export.load` does.

    Raises:
        ValueError: if it is no such archive or a damaged one; or if it holds more than plain data, and is not trusted.
    """
    try:
        if is_trusted(str(path), trust):
            return torch.export.load(path)
        return load_pt2(_plain_archive(path)).exported_programs["model"]
    except CodeError as error:
        require_trust(str(path), trust, why=f"{path} is more than plain data: {error}")
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever torch raises for a damaged file
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is no network of torch.export, or is damaged: {said}") from error


def check_external_data(path: Path) -> None:
    """Raises a `ValueError` for an ONNX file whose weights lie in a file outside of its folder."""
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"{path} needs ONNX Runtime: pip install 'videokd[onnx]'") from error
    folder = path.resolve().parent
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # its own classes are not public
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"ONNX Runtime cannot run {path}, which is no ONNX file: {said}") from error
    for tensor in _messages(model, onnx.TensorProto):
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder):
                raise ValueError(
                    f"{path} takes weights from {entry.value!r}, which is outside of its folder: they are not read"
                )


def _messages(message: Any, kind: type) -> Iterator[Any]:
    """All protobuf messages of a kind that are in a message."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if hasattr(value, "__len__") else (value,):
                yield from _messages(one, kind)


def _plain_archive(path: Path) -> io.BytesIO:
    """A new archive with what of a .pt2 file is plain data."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive")
    with zipfile.ZipFile(path) as archive:
        files = _files(archive, path.stat().st_size)
        if "serialized_exported_program.json" in files:
            raise CodeError("it is of a version of torch before 2.8, whose tensors are pickles (export it again)")
        tensors: dict[str, Callable[[], bytes]] = {}
        new: dict[str, bytes] = {}
        for listed, values in _TENSORS.items():
            config = as_object(parse_json(_bytes(archive, files, listed), source=listed), source=listed)
            folder = listed.rpartition("/")[0]
            for name in _tensor_files(config, values, {name: one.file_size for name, one in files.items()}, folder):
                tensors[name] = partial(archive.read, files[name])
            new[listed] = json.dumps(config).encode()
        new[_GRAPH] = json.dumps(_plain_program(parse_json(_bytes(archive, files, _GRAPH), source=_GRAPH))).encode()
        if strange := [name for name in files if not _is_known(name, new, tensors)]:
            raise CodeError(f"it holds {strange[0]!r}")
        if files.get("byteorder") is not None and archive.read(files["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        # Not even read: they are a pickle, and nothing needs them.
        new[_SAMPLES] = b""
        buffer = io.BytesIO()
        with PT2ArchiveWriter(buffer) as writer:
            for name, data in new.items():
                writer.write_bytes(name, data)
            for name, read in tensors.items():
                writer.write_bytes(name, read())
    buffer.seek(0)
    return buffer


def _files(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their names, without the folder that all of them lie in."""
    files: dict[str, zipfile.ZipInfo] = {}
    for one in archive.infolist():
        name = one.filename if one.filename.startswith("serialized_") else one.filename.partition("/")[2]
        if one.filename.startswith("/") or ".." in one.filename.split("/") or "\\" in one.filename:
            raise ValueError(f"a file in it is called {one.filename!r}")
        if name in files:
            raise ValueError(f"two files in it are called {name!r}")
        # torch never compresses: what is there can't become more than the file.
        if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1:
            raise ValueError(f"{name!r} in it is compressed or encrypted, which torch.export.save never does")
        files[name] = one
    if sum(one.file_size for one in files.values()) > size:
        raise ValueError(f"its files have more bytes than it has, {size}")
    return files


def _bytes(archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in files:
        raise CodeError(f"it has no {name!r}, as programs of other versions of torch")
    return archive.read(files[name])


def _is_known(name: str, new: Collection[str], tensors: Collection[str]) -> bool:
    return name in new or name in tensors or name in _BOOKKEEPING or name == _SAMPLES or name.startswith("extra/")


def _tensor_files(
    config: Mapping[str, Any], values: re.Pattern[str], sizes: Mapping[str, int], folder: str
) -> Iterator[str]:
    """The files of the tensors that a config lists."""
    found: set[str] = set()
    for name, one in as_object(config.get("config"), source="a list of tensors").items():
        one = as_object(one, source=f"tensor {name!r}")
        _check_strings(one, "")
        if not _DOTTED.fullmatch(name):
            raise ValueError(f"a tensor is called {name!r}")
        if one.get("use_pickle") is not False or not values.fullmatch(str(one.get("path_name"))):
            raise CodeError(f"the tensor {name!r} is a pickle or an object")
        file = f"{folder}/{one['path_name']}"
        if file not in sizes:
            raise ValueError(f"the values of {name!r} are missing")
        meta = as_object(one.get("tensor_meta"), source=f"tensor {name!r}")
        shape: list[Any] = [as_object(size, source="a size").get("as_int") for size in meta.get("sizes", ())]
        if not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape):
            raise ValueError(f"the tensor {name!r} has the shape {shape}")
        if sizes[file] == 0 and math.prod(shape) > 0:
            raise ValueError(f"the values of {name!r} are missing")
        if meta.get("device") != {"type": "cpu", "index": None}:
            raise ValueError(f"the tensor {name!r} is for the device {meta.get('device')}: export it on the CPU")
        found.add(file)
    yield from sorted(found)


def _plain_program(program: Any) -> dict[str, Any]:
    """A program of which everything is checked; without its guards, sources and notes, which the graph does without."""
    program = as_object(program, source=_GRAPH)
    module = as_object(program.get("graph_module"), source="its graph module")
    graph = as_object(module.get("graph"), source="its graph")
    if module.get("treespec_namedtuple_fields"):
        raise CodeError("its inputs or outputs are named tuples")
    nodes = [as_object(node, source="a node") | {"metadata": {}} for node in graph.get("nodes", ())]
    calls = [as_object(call, source="a call") for call in module.get("module_call_graph", ())]
    kept = {
        **program,
        "guards_code": [],
        "graph_module": {
            **module,
            "graph": {**graph, "nodes": nodes},
            "metadata": {},
            "module_call_graph": [call for call in calls if call.get("fqn") == ""],
        },
    }
    _check_strings(kept, "")
    for symbol in as_object(kept.get("range_constraints", {}), source="its sizes"):
        if not _SYMBOL.fullmatch(symbol):
            raise ValueError(f"a size is called {symbol!r}")
    return kept


def _check_strings(value: Any, key: str) -> None:
    """Raises a `ValueError` for text, wherever it is inside `value`, that is not what a program has under its key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not _DOTTED.fullmatch(name):
                raise ValueError(f"a key of it is {name!r}")
            if name in ("as_graph", "as_operator", "as_custom_obj") or (name == "custom_obj_values" and item):
                raise CodeError(f"its graph has a value {name!r}")
            _check_strings(item, name)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, key)
    elif isinstance(value, str):
        match key:
            case "target":
                _check_operator(value)
            case "expr_str":
                _check_expression(value)
            case "in_spec" | "out_spec":
                _check_tree(value)
            case "as_string" | "as_strings":  # arguments of operators
                pass
            case "torch_version":
                _matches(_VERSION, value, key)
            case "name" | "as_name" | "forward_arg_names":  # they are written into Python
                _matches(_NAME, value, key)
            case _:
                _matches(_DOTTED, value, key)


def _matches(pattern: re.Pattern[str], value: str, key: str) -> None:
    if not pattern.fullmatch(value):
        raise CodeError(f"{key!r} in it is {value[:80]!r}")


def _check_operator(target: str) -> None:
    match target.split("."):
        case ["torch", "ops", "aten", name, overload] if f"aten::{name}.{overload}".removesuffix(".default") in _aten():
            if name in _NO_OPERATORS or (name.startswith("_") and name not in _PRIVATE_OPERATORS):
                raise CodeError(f"its graph calls {target!r}")
        case ["_operator", name] if name in _PYTHON_OPERATORS:
            pass
        case _:
            raise CodeError(f"its graph calls {target[:80]!r}")


@cache
def _aten() -> frozenset[str]:
    """All operators on tensors. (Others of the name space, such as aten::save, are TorchScript's.)"""
    return frozenset(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))


def _check_expression(text: str) -> None:
    """Raises a `CodeError` for a size that is not made of symbols, numbers and functions of sizes."""
    try:
        if len(text) > 10_000:
            raise ValueError("too long")
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = None
    if body is None or not _is_expression(body):
        raise CodeError(f"a size in it is {text[:80]!r}")


def _is_expression(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_expression(node.operand)
    if isinstance(node, ast.BinOp):
        plain = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod)
        return plain and _is_expression(node.left) and _is_expression(node.right)
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id))
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in _EXPRESSIONS:
        return False
    options = all(isinstance(one.value, ast.Constant) and type(one.value.value) is bool for one in node.keywords)
    if node.func.id == "Symbol":
        (name,) = node.args if len(node.args) == 1 else (None,)
        named = isinstance(name, ast.Constant) and isinstance(name.value, str) and bool(_SYMBOL.fullmatch(name.value))
        return named and options
    if node.func.id == "Float":  # its digits are text
        return options and all(_is_number(one) for one in node.args)
    return options and all(_is_expression(one) for one in node.args)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(re.fullmatch(r"-?[\d.]{1,50}(e[+-]?\d{1,3})?", str(node.value)))


def _check_tree(text: str) -> None:
    """Raises a `CodeError` for a tree of inputs or outputs that is not made of tuples, lists and dicts."""
    protocol = parse_json(text, source="a tree of inputs")
    if not isinstance(protocol, list) or len(protocol) != 2:
        raise ValueError("a tree of inputs is no tree")
    level = [protocol[1]]
    while level:
        tree = as_object(level.pop(), source="a tree of inputs")
        context = tree.get("context")
        kept = None if context is None else parse_json(str(context), source="a tree of inputs")
        keys = kept is None or (isinstance(kept, list) and all(isinstance(one, str) for one in kept))
        if tree.get("type") not in (None, "builtins.tuple", "builtins.list", "builtins.dict") or not keys:
            raise CodeError(f"its inputs or outputs are a {tree.get('type')!r}")
        for name in kept or ():
            _matches(_NAME, name, "an input's name")
        children = tree.get("children_spec")
        level += children if isinstance(children, list) else [None]
