"""Exported files: what torch.export.save writes is loaded, and no file runs code that comes with it."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from videokd.bench import variants
from videokd.bench.exported import load_program
from videokd.bench.variants import of_file, random_views
from videokd.cli import main
from videokd.contracts import Clip, InputSpec
from videokd.models import CompactShift, Model

GRAPH = "models/model.json"
WEIGHTS, CONSTANTS = (f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))
SAMPLES = "data/sample_inputs/model.pt"


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def model() -> Model[Clip]:
    torch.manual_seed(0)
    return CompactShift(width=4, input=InputSpec(frames=4, size=16)).build(["a", "b", "c"]).eval()


@pytest.fixture(scope="module")
def exported(model: Model[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file, of any number of clips."""
    view, clips = model.blank(2), torch.export.Dim("clips", min=1, max=64)
    assert isinstance(view, Clip)
    program = torch.export.export(
        variants._OnlyLogits(model),
        (view.frames, view.times),
        dynamic_shapes={"frames": {0: clips}, "times": {0: clips}},
    )
    path = tmp_path_factory.mktemp("exported") / "good.pt2"
    torch.export.save(program, path, extra_files={"note.txt": "hello"})
    return path


def rewritten(
    good: Path, path: Path, change: Callable[[dict[str, bytes]], object], *, method: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of an archive, of whose files some are changed."""
    with zipfile.ZipFile(good) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(f"bad/{name}", data)
    return path


def in_json(name: str, change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], None]:
    """What changes a JSON file of an archive."""

    def changed(files: dict[str, bytes]) -> None:
        plain = json.loads(files[name])
        change(plain)
        files[name] = json.dumps(plain).encode()

    return changed


def graph(plain: Any) -> Any:
    return plain["graph_module"]["graph"]


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"evil": Marker(marker)}, buffer)
    return buffer.getvalue()


def first(plain: dict[str, Any]) -> Any:
    return next(iter(plain["config"].values()))


def tree(plain: Any, **changed: Any) -> None:
    """Changes the tree of the inputs."""
    call = plain["graph_module"]["module_call_graph"][0]["signature"]
    protocol, spec = json.loads(call["in_spec"])
    call["in_spec"] = json.dumps([protocol, {**spec, **changed}])


def attacks(ran: Path) -> Iterator[tuple[str, Callable[[dict[str, bytes]], object]]]:
    """Name, and how it changes an archive; `ran` is made by what of it is run."""
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    evil = pickled(ran)
    folder, weight = "data/weights", "weight_0"
    yield (
        "a pickled weight",
        lambda files: (
            files.update({f"{folder}/{weight}": evil}),
            in_json(WEIGHTS, lambda plain: first(plain).update(use_pickle=True))(files),
        ),
    )
    yield "old weights", lambda files: files.update({f"{folder}/model.pt": evil})
    yield "old constants", lambda files: files.update({"data/constants/model.pt": evil})
    for prefix, data in (("opaque_obj_0", pickle.dumps(Marker(ran))), ("custom_obj_0", evil), ("tensor_99", evil)):
        listed = {"path_name": prefix, "is_param": False, "use_pickle": True, "tensor_meta": None}
        yield (
            f"a constant {prefix}",
            lambda files, name=prefix, data=data, listed=listed: (  # type: ignore[misc]
                files.update({f"data/constants/{name}": data}),
                in_json(CONSTANTS, lambda plain: plain["config"].update(evil=listed))(files),
            ),
        )
    yield "a compiled library", lambda files: files.update({"data/aotinductor/model/x.wrapper.so": b"\x7fELF"})
    yield "a second model", lambda files: files.update({"models/other.json": files[GRAPH]})
    yield "another folder", lambda files: files.update({"data/mtia/x": b"x"})

    def in_graph(change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], None]:
        return in_json(GRAPH, change)

    def value(plain: Any) -> Any:
        return next(one for one in graph(plain)["tensor_values"].values() if "as_expr" in str(one["sizes"][:1]))[
            "sizes"
        ][0]

    yield "a size that is code", in_graph(lambda plain: value(plain)["as_expr"].update(expr_str=code))
    yield "a symbol that is code", in_graph(lambda plain: value(plain)["as_expr"].update(expr_str=f'Symbol("{code}")'))
    yield (
        "an attribute in a size",
        in_graph(lambda plain: value(plain)["as_expr"].update(expr_str="Symbol('s0').__class__")),
    )
    for target in (
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.higher_order.cond",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "#my:op",
        "os.system",
        "torch.ops.aten.add.Tensor\nimport os",
    ):
        yield f"a call of {target}", in_graph(lambda plain, to=target: graph(plain)["nodes"][0].update(target=to))  # type: ignore[misc]
    yield "a name that is code", in_graph(lambda plain: graph(plain)["nodes"][0].update(name=f"x = {code}\n    y"))
    yield (
        "a value's name that is code",
        in_graph(lambda plain: next(iter(graph(plain)["nodes"][0]["outputs"][0].values())).update(as_name=f"x;{code}")),
    )
    yield (
        "an input's name that is code",
        in_graph(lambda plain: graph(plain)["inputs"][0]["as_tensor"].update(name=f"x={code}")),
    )
    yield (
        "a parameter that is code",
        in_graph(
            lambda plain: plain["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
                parameter_name=f"a'+{code}+'"
            )
        ),
    )
    yield (
        "an argument that is code",
        in_graph(
            lambda plain: plain["graph_module"]["module_call_graph"][0]["signature"].update(
                forward_arg_names=[f"x={code}", "y"]
            )
        ),
    )
    yield (
        "an operator as an argument",
        in_graph(
            lambda plain: graph(plain)["nodes"][0]["inputs"].append(
                {"name": "x", "arg": {"as_operator": "torch.os.system"}, "kind": 1}
            )
        ),
    )
    context = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "x"})
    yield "an enum of a module", in_graph(lambda plain: tree(plain, context=context))
    kind = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
    yield (
        "a factory of a module",
        in_graph(lambda plain: tree(plain, type="collections.defaultdict", context=json.dumps(kind))),
    )
    yield "a named tuple", in_graph(lambda plain: tree(plain, type="collections.namedtuple"))
    yield "a type of a module", in_graph(lambda plain: tree(plain, type="os.system"))


NAMES = [name for name, _ in attacks(Path("ran"))]


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_that_is_more_than_data_is_refused_unless_it_is_trusted(
    name: str, exported: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    path = rewritten(exported, tmp_path / "bad.pt2", dict(attacks(ran))[name])
    with pytest.raises(ValueError, match=r"bad\.pt2.* to open it would run that code: .*--trust .*/bad\.pt2"):
        of_file(path)
    with pytest.raises(ValueError, match="--trust"):
        of_file(path, trust=("bad.pt2", str(tmp_path), "torch"))
    assert not ran.exists()


def test_code_that_is_left_out_is_not_run(exported: Path, tmp_path: Path, model: Model[Clip]) -> None:
    # Sample inputs, guards and notes are not needed: they are not read.
    ran = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"

    def change(files: dict[str, bytes]) -> None:
        files[SAMPLES] = pickled(ran)
        in_json(GRAPH, lambda plain: plain.update(guards_code=[code]))(files)
        notes = {"stack_trace": f"\n{code}\n", "nn_module_stack": f"{code},{code},{code}", "custom": '{"a": 1}'}
        in_json(GRAPH, lambda plain: [node.update(metadata=notes) for node in graph(plain)["nodes"]])(files)
        in_json(GRAPH, lambda plain: plain["graph_module"].update(metadata={"custom": code}))(files)

    path = rewritten(exported, tmp_path / "bad.pt2", change)
    run, shape = of_file(path)
    assert shape == (0, 4, 3, 16, 16)
    (view,) = random_views(model, clips=5, count=1)
    torch.testing.assert_close(run(view), model(view).logits, rtol=1e-4, atol=1e-5)
    assert not ran.exists()


def test_a_trusted_archive_is_loaded_with_all_that_it_holds(exported: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = rewritten(exported, tmp_path / "mine.pt2", lambda files: files.update({SAMPLES: pickled(ran)}))
    with pytest.raises(ValueError, match=r"is no network of torch\.export"):  # its sample inputs are none
        load_program(path, trust=[str(path)])
    assert ran.exists()
    assert load_program(exported, trust=[str(exported)]).example_inputs is not None


def old_format(path: Path, ran: Path) -> Path:
    """As torch 2.7 wrote it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.1")
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", pickled(ran))
    return path


def test_an_archive_of_the_old_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"version of torch before 2\.8, whose tensors are pickles.*--trust"):
        of_file(old_format(tmp_path / "old.pt2", tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_a_damaged_archive_is_an_error_in_a_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"x": b"\0" * 10_000_000}
    whole = exported.read_bytes()
    made = {
        "nothing": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"hello"),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Marker(tmp_path / "ran"))),
        "torch.save": lambda path: path.write_bytes(pickled(tmp_path / "ran")),
        "half": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "flipped": lambda path: path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]),
        "bomb": lambda path: rewritten(exported, path, lambda files: files.update(same), method=zipfile.ZIP_DEFLATED),
        "traversal": lambda path: rewritten(exported, path, lambda files: files.update({"../../x": b"x"})),
        "absolute": lambda path: rewritten(exported, path, lambda files: files.update({"data/weights/../../x": b"x"})),
        "deep": lambda path: rewritten(exported, path, lambda files: files.update({GRAPH: b"[" * 100_000})),
        "no graph": lambda path: rewritten(exported, path, lambda files: files.update({GRAPH: b"5"})),
        "empty graph": lambda path: rewritten(exported, path, lambda files: files.update({GRAPH: b"{}"})),
        "no weights": lambda path: rewritten(exported, path, lambda files: files.pop("data/weights/weight_0")),
        "huge weight": lambda path: rewritten(
            exported,
            path,
            in_json(WEIGHTS, lambda plain: first(plain)["tensor_meta"].update(sizes=[{"as_int": 10**9}])),
        ),
        "huge empty weight": lambda path: rewritten(
            exported,
            path,
            lambda files: (
                files.update({"data/weights/weight_0": b""}),
                in_json(WEIGHTS, lambda plain: first(plain)["tensor_meta"].update(sizes=[{"as_int": 10**11}]))(files),
            ),
        ),
        "no number": lambda path: rewritten(
            exported, path, in_json(GRAPH, lambda plain: graph(plain)["nodes"][0].update(inputs=5))
        ),
    }
    for how, make in made.items():
        path = tmp_path / f"{how.replace(' ', '_')}.pt2"
        make(path)
        assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--parts", "inference"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1, (how, said)
        assert path.name in said, (how, said)
    assert not (tmp_path / "ran").exists()


def test_two_entries_that_share_their_bytes_are_refused(exported: Path, tmp_path: Path) -> None:
    # The list at the end of a zip may name the same bytes many times: a bomb without compression.
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/extra/0", b"x" * 100_000)
        for number in range(1, 50):
            twin = zipfile.ZipInfo(f"bad/extra/{number}")
            (of,) = (one for one in archive.filelist if one.filename == "bad/extra/0")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, name, getattr(of, name))
            archive.filelist.append(twin)
    with pytest.raises(ValueError, match="its files have more bytes than it has"):
        of_file(path)


def test_bench_runs_no_code_of_a_file(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rewritten(exported, tmp_path / "bad.pt2", dict(attacks(tmp_path / "ran"))["a pickled weight"])
    quick = ["--rounds", "2", "--turn-seconds", "0.001", "--warm-up-seconds", "0", "--parts", "inference"]
    bench = ["bench", str(path), "--out", str(tmp_path / "out"), *quick]
    assert main(bench) == 1
    assert f"add --trust {path} " in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main([*bench, "--trust", str(path)]) == 1  # its weight is none
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["attribute", "initializer", "in a branch"])
def test_weights_of_an_onnx_file_lie_in_its_folder(where: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    (tmp_path / "inside/link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link", "a/../../secret"):
        path = tmp_path / "inside/bad.onnx"
        onnx.save(onnx_file(location, where), path)
        with pytest.raises(ValueError, match="outside of its folder"):
            of_file(path)


def onnx_file(location: str, where: str) -> onnx.ModelProto:
    """A network whose weights are in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 4, 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    adds = helper.make_node("Add", ["frames", "w"], ["logits"])
    if where == "in a branch":
        inner = helper.make_graph(
            [constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [16])]
        )
        yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        nodes = [yes, helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner), adds]
        return helper.make_model(helper.make_graph(nodes, "g", [frames], [logits]))
    nodes = [constant, adds] if where == "attribute" else [adds]
    return helper.make_model(
        helper.make_graph(nodes, "g", [frames], [logits], [] if where == "attribute" else [weight])
    )
