"""Every engine of this machine under one contract, alone and staged.

An engine that is missing is refused, never replaced.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from objectives.serving import devices, engines
from objectives.serving.devices import Gpu, computes_bf16, cores_allowed, cpu_quota, engines_here, memory_available
from objectives.serving.engines import EngineError, open_engine, open_replica
from objectives.serving.split_engine import DENSE, TABLES, Engine, Staged, taken_once
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup

ROOT = Path(__file__).resolve().parents[2]
ITEMS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
USERS = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(2).normal(size=(4,)).astype(np.float32)
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
USER = 5
Inputs = dict[str, np.ndarray]
Value = tuple[str, int, Sequence[int | str]]


def save(path: Path, nodes: Sequence[onnx.NodeProto], takes: Sequence[Value], gives: Sequence[Value]) -> Path:
    values = {"items": ITEMS, "users": USERS, "weight": WEIGHT}
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in takes],
        [helper.make_tensor_value_info(*value) for value in gives],
        [numpy_helper.from_array(array, name) for name, array in values.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def node(op: str, takes: str, gives: str) -> onnx.NodeProto:
    return helper.make_node(op, takes.split(), [gives])


SCORING = [node("Mul", "item_rows user_rows", "crossed"), node("MatMul", "crossed weight", "scores")]
LOOKUPS = [node("Gather", "items item", "item_rows"), node("Gather", "users user", "user_rows")]


def whole(path: Path, user_rows: int | str, item_rows: int | str = "rows") -> Path:
    """Save a graph of scores = (items[item] * users[user]) @ weight."""
    takes = [("item", INT64, [item_rows]), ("user", INT64, [user_rows])]
    return save(path, [*LOOKUPS, *SCORING], takes, [("scores", FLOAT, [item_rows])])


def cut(folder: Path, user_rows: int | str) -> Path:
    """Save the same in two stages, with one more input for the second; beside a model file that is not needed."""
    embeddings: list[Value] = [("user_rows", FLOAT, [user_rows, 4]), ("item_rows", FLOAT, ["rows", 4])]
    # An identity merges names of tensors inside OpenVINO; the graph's own must be found all the same.
    lookups = [node("Identity", "item", "same"), node("Gather", "items same", "item_rows"), LOOKUPS[1]]
    save(folder / TABLES, lookups, [("item", INT64, ["rows"]), ("user", INT64, [user_rows])], embeddings)
    shifted = [SCORING[0], node("MatMul", "crossed weight", "plain"), node("Add", "plain shift", "scores")]
    rest: list[Value] = [("shift", FLOAT, ["rows"])]
    save(folder / DENSE, shifted, [*rest, *embeddings], [("scores", FLOAT, ["rows"])])
    return folder / "model.onnx"


def request(rows: int) -> Inputs:
    return {"item": np.arange(rows, dtype=np.int64) % 30, "user": np.full(rows, USER, dtype=np.int64)}


def expected(inputs: Inputs) -> np.ndarray:
    return (ITEMS[inputs["item"]] * USERS[inputs["user"]]) @ WEIGHT + inputs.get("shift", np.float32(0))


def shifted(rows: int) -> Inputs:
    return {**request(rows), "shift": np.linspace(-1, 1, rows, dtype=np.float32)}


PAIRS = [(tables, dense) for tables in engines_here() for dense in engines_here()]
KINDS = [*engines_here(), *(f"{tables}+{dense}" for tables, dense in PAIRS)]
Open = Callable[[int | str], tuple[Engine, Callable[[int], Inputs]]]


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens an engine whose model takes so many rows of the user, and says how its requests are made."""

    def alone(user_rows: int | str) -> tuple[Engine, Callable[[int], Inputs]]:
        return open_replica(
            whole(tmp_path / "model.onnx", user_rows), InstanceGroup(request.param, threads=1), None
        ), _plain

    def staged(user_rows: int | str) -> tuple[Engine, Callable[[int], Inputs]]:
        tables, dense = request.param.split("+")
        return open_replica(cut(tmp_path, user_rows), InstanceGroup(dense, threads=1), EmbeddingDevice(tables)), shifted

    return staged if "+" in request.param else alone


def _plain(rows: int) -> Inputs:
    return request(rows)


class TestEngineContract:
    """Contract of every engine."""

    @pytest.mark.parametrize("user_rows", ["rows", 1])
    def test_scores_any_number_of_rows(self, opened: Open, user_rows: int | str) -> None:
        engine, make = opened(user_rows)
        for rows in (1, 2, 7, 64, 257):
            scores = engine.run(make(rows))
            assert scores.shape == (rows,)
            assert scores.dtype == np.float32
            assert np.allclose(scores, expected(make(rows)), atol=1e-4)

    def test_what_is_taken_once_is_read_from_the_graph(self, opened: Open) -> None:
        engine, make = opened(1)
        assert engine.once == {"user"}
        alone = {**make(5), "user": np.array([USER])}
        assert np.allclose(engine.run(alone), expected(make(5)), atol=1e-4)
        assert opened("rows")[0].once == frozenset()

    def test_rows_of_several_users_are_said_to_take_longer(self, opened: Open) -> None:
        engine, make = opened(1)
        with pytest.warns(RuntimeWarning, match="users"):
            engine.run({**make(2), "user": np.array([USER, 1])})
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"rows.*got"):
            warnings.simplefilter("ignore")
            engine.run({**make(5), "user": np.array([USER, 1])})

    @pytest.mark.parametrize("user_rows", ["rows", 1])
    @pytest.mark.filterwarnings("ignore:A request holds rows of several users")
    @pytest.mark.parametrize("users", [[USER, 1], [USER, 1, USER, 1, 1, 2, USER], [1] * 299 + [2], range(5)])
    def test_each_row_is_scored_with_its_own_user(
        self, opened: Open, user_rows: int | str, users: Sequence[int]
    ) -> None:
        """The users may be what the model takes once; the caller's arrays stay as they were."""
        engine, make = opened(user_rows)
        asked = {**make(len(users)), "user": np.array(users)}
        assert np.allclose(engine.run(asked), expected(asked), atol=1e-4)
        assert asked["user"].tolist() == list(users)

    def test_an_answer_is_not_overwritten_by_the_next(self, opened: Open) -> None:
        engine, make = opened("rows")
        first = engine.run(make(4))
        copy = first.copy()
        engine.run({**make(4), "item": np.array([20, 21, 22, 23])})
        assert np.array_equal(first, copy)

    def test_a_missing_input_is_refused_after_a_whole_request_too(self, opened: Open) -> None:
        engine, make = opened("rows")
        engine.run(make(3))
        with pytest.raises(Exception, match="item"):
            engine.run({name: array for name, array in make(3).items() if name != "item"})


@pytest.mark.parametrize("name", engines_here())
class TestOneGraph:
    """Contract of an engine's single graph beside the common one, for a stage to be made of it."""

    def test_all_outputs_go_by_name(self, name: str, tmp_path: Path) -> None:
        cut(tmp_path, 1)
        graph = open_engine(name, tmp_path / TABLES, threads=1)
        assert graph.takes == {"item": (None,), "user": (1,)}
        assert graph.gives == ("user_rows", "item_rows")
        found = graph.outputs({"item": np.array([3, 1]), "user": np.array([USER])})
        assert np.array_equal(found["item_rows"], ITEMS[[3, 1]])
        assert np.array_equal(found["user_rows"], USERS[[USER]])

    def test_a_graph_of_fixed_size_takes_nothing_once(self, name: str, tmp_path: Path) -> None:
        engine = open_engine(name, whole(tmp_path / "one.onnx", 1, 1))
        assert engine.once == frozenset()
        assert np.allclose(engine.run(request(1)), expected(request(1)), atol=1e-4)

    def test_an_unknown_device_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"cpu.*but got 'npu'"):
            open_engine(name, whole(tmp_path / "model.onnx", "rows"), device="npu")

    def test_a_file_that_is_no_model_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "broken.onnx").write_bytes(b"no model")
        with pytest.raises(EngineError, match=r"broken\.onnx"):
            open_engine(name, tmp_path / "broken.onnx")


def test_every_engine_has_a_class_and_a_way_to_get_it() -> None:
    assert set(engines._ENGINES) == set(devices.ENGINES) <= set(devices.HOW_TO_GET)
    for name in devices.ENGINES:
        assert bool(devices.devices_of(name)) == (name in engines_here())
    with pytest.raises(ValueError, match=r"onnxruntime, openvino.*'tensorflow'"):
        devices.devices_of("tensorflow")


def test_a_first_dimension_counts_only_beside_an_open_one() -> None:
    assert taken_once({"a": (None, 3), "b": (1, 3), "c": (1,), "d": (), "e": (2,)}) == {"b", "c"}
    assert taken_once({"b": (1, 3), "c": (1,)}) == frozenset()
    assert taken_once({"b": (1, None), "d": ()}) == frozenset()


@pytest.mark.parametrize(("tables", "dense"), PAIRS)
def test_tables_of_the_user_alone_are_looked_up_once(tables: str, dense: str, tmp_path: Path) -> None:
    """The tables' graph has no open dimension; that the request has more rows shows in the other inputs only."""
    save(tmp_path / TABLES, LOOKUPS[1:], [("user", INT64, [1])], [("user_rows", FLOAT, [1, 4])])
    takes: list[Value] = [("item", INT64, ["rows"]), ("user_rows", FLOAT, [1, 4])]
    save(tmp_path / DENSE, [LOOKUPS[0], *SCORING], takes, [("scores", FLOAT, ["rows"])])
    engine = open_replica(tmp_path / "model.onnx", InstanceGroup(dense), EmbeddingDevice(tables))
    assert engine.once == {"user"}
    assert np.allclose(engine.run(request(6)), expected(request(6)), atol=1e-4)


def test_a_lookup_needs_both_graphs_and_they_must_fit(tmp_path: Path) -> None:
    model = cut(tmp_path, "rows")
    with pytest.raises(ValueError, match=r"takes \['item', 'user'\], but got \['scores'\]"):
        Staged(open_engine("onnxruntime", tmp_path / DENSE), open_engine("onnxruntime", tmp_path / TABLES))
    (tmp_path / DENSE).unlink()
    with pytest.raises(EngineError, match=DENSE):
        open_replica(model, InstanceGroup(), EmbeddingDevice("onnxruntime"))


def test_unknown_engines_and_widths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole(tmp_path / "model.onnx", "rows")
    with pytest.raises(EngineError, match="tensorflow"):
        open_engine("tensorflow", model)
    with pytest.raises(EngineError, match="fp32"):
        open_engine("onnxruntime", model, compute="bf16")
    monkeypatch.setattr("objectives.serving.engines.engines_here", lambda: ("onnxruntime",))
    with pytest.raises(EngineError, match=r"pip install 'leanrec\[openvino\]'"):
        open_engine("openvino", model)


@pytest.mark.parametrize("device", ["cpu:0", "cuda:", "cuda:x", "gpu"])
def test_strange_names_of_devices_are_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"cpu, cuda, tensorrt.*but got '{device}'"):
        open_engine("onnxruntime", whole(tmp_path / "model.onnx", "rows"), device)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a build for GPUs")
@pytest.mark.parametrize(("device", "word"), [("cuda", "CUDA"), ("cuda:1", "CUDA"), ("tensorrt", "Tensorrt")])
def test_a_provider_that_the_build_lacks_is_refused(device: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"{word}ExecutionProvider, but has .*CPUExec.*onnxruntime-gpu"):
        open_engine("onnxruntime", whole(tmp_path / "model.onnx", "rows"), device)


class FakeSession:
    """A session that loads what it is told to, and remembers what it was asked for."""

    asked: Sequence[tuple[str, Mapping[str, str]]] = ()
    fallback: int = 1
    loads: Sequence[str] | None = None

    def __init__(self, _model: str, _options: Any, providers: Any, enable_fallback: int) -> None:
        FakeSession.asked, FakeSession.fallback = providers, enable_fallback

    def get_providers(self) -> list[str]:
        return list(self.loads or [name for name, _ in self.asked])

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return [helper.make_tensor_value_info("scores", FLOAT, [1])]

    def run(self, _outputs: Any, _inputs: Any) -> list[Any]:
        return [np.zeros(1, np.float32)]


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [f"{kind}ExecutionProvider" for kind in ("Tensorrt", "CUDA", "CPU")]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(FakeSession, "loads", None)


@pytest.mark.usefixtures("gpu_build")
class TestProviders:
    """A build for GPUs, imitated."""

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
    def test_the_cpu_in_its_place_is_refused(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FakeSession, "loads", ["CPUExecutionProvider"])
        with pytest.raises(EngineError, match=r"CPUExecutionProvider.*onnxruntime-gpu"):
            open_engine("onnxruntime", Path("model.onnx"), device)

    @pytest.mark.parametrize(
        ("device", "kinds", "number"),
        [
            ("cpu", ["CPU"], None),
            ("cuda", ["CUDA", "CPU"], None),
            ("cuda:1", ["CUDA", "CPU"], "1"),
            ("tensorrt:2", ["Tensorrt", "CUDA", "CPU"], "2"),
        ],
    )
    def test_providers_come_in_order_with_the_devices_number(
        self, device: str, kinds: list[str], number: str | None
    ) -> None:
        open_engine("onnxruntime", Path("model.onnx"), device)
        assert [name for name, _ in FakeSession.asked] == [f"{kind}ExecutionProvider" for kind in kinds]
        assert [options.get("device_id") for _, options in FakeSession.asked] == [number] * (len(kinds) - 1) + [None]
        assert FakeSession.fallback == 0

    def test_cuda_does_not_compute_in_tf32_unasked(self) -> None:
        open_engine("onnxruntime", Path("model.onnx"), "cuda")
        assert dict(FakeSession.asked)["CUDAExecutionProvider"]["use_tf32"] == "0"


class FakeGpu:
    """This machine's session, of whose profile it is said that all nodes ran on the GPU but those of some operators."""

    left: Sequence[str] = ()
    session = onnxruntime.InferenceSession

    def __init__(self, model: str, options: Any, providers: Any, enable_fallback: int) -> None:
        self._session = self.session(model, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def end_profiling(self) -> str:
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event.get("args", {}).get("op_name") not in (None, *self.left):
                event["args"]["provider"] = "CUDAExecutionProvider"
        path.write_text(json.dumps(events))
        return str(path)


def _with_shapes(path: Path) -> Path:
    """The graph of `whole`, with the rows read from a shape and the scores spread to as many."""
    nodes = [
        *LOOKUPS,
        node("Mul", "item_rows user_rows", "crossed"),
        node("MatMul", "crossed weight", "plain"),
        node("Shape", "item", "shape"),
        node("Expand", "plain shape", "scores"),
    ]
    return save(path, nodes, [("item", INT64, ["rows"]), ("user", INT64, ["rows"])], [("scores", FLOAT, ["rows"])])


class TestNodePlacement:
    """Nodes that a GPU's provider leaves to the CPU, imitated: the profile is a real one, but for the providers."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        monkeypatch.setattr(onnxruntime, "InferenceSession", FakeGpu)

    @pytest.mark.parametrize("left", [(), ("Shape",)])
    def test_shapes_may_stay_on_the_cpu(
        self, left: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakeGpu, "left", left)
        engine, asked = open_engine("onnxruntime", _with_shapes(tmp_path / "model.onnx"), "cuda"), request(30)
        for _ in range(2):
            assert np.allclose(engine.run(asked), expected(asked), atol=1e-5)

    @pytest.mark.parametrize("left", [("MatMul",), ("Gather",), ("Expand", "Shape")])
    def test_what_does_more_is_refused_by_name(
        self, left: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakeGpu, "left", left)
        engine, asked = open_engine("onnxruntime", _with_shapes(tmp_path / "model.onnx"), "cuda"), request(30)
        for _ in range(2):
            with pytest.raises(EngineError, match=rf"cuda, .*\({left[0]}\)") as caught:
                engine.run(asked)
            assert "(Shape)" not in str(caught.value)

    def test_a_cpus_session_is_not_profiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "InferenceSession", FakeGpu.session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        monkeypatch.chdir(tmp_path)
        engine, asked = open_engine("onnxruntime", whole(tmp_path / "model.onnx", "rows")), request(30)
        assert np.allclose(engine.run(asked), expected(asked), atol=1e-5)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.skipif("openvino" not in engines_here(), reason="no OpenVINO here")
class TestOpenVino:
    """Widths and devices of OpenVINO."""

    @pytest.mark.skipif(not computes_bf16(), reason="no bf16 on this CPU")
    def test_computes_in_the_width_it_is_asked_for(self, tmp_path: Path) -> None:
        model, asked = whole(tmp_path / "model.onnx", "rows"), request(30)
        assert np.allclose(open_engine("openvino", model).run(asked), expected(asked), atol=1e-5)
        narrow = open_engine("openvino", model, compute="bf16").run(asked)
        assert np.allclose(narrow, expected(asked), atol=0.1)
        assert not np.allclose(narrow, expected(asked), atol=1e-5)

    def test_an_unknown_width_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="fp32, bf16, but got 'fp8'"):
            open_engine("openvino", whole(tmp_path / "model.onnx", "rows"), compute="fp8")

    @pytest.mark.parametrize(
        ("found", "asked", "named"),
        [
            (["CPU", "GPU"], "gpu", "GPU"),
            (["CPU", "GPU"], "gpu.0", "GPU.0"),
            (["CPU", "GPU.0", "GPU.1"], "gpu", "GPU"),
            (["CPU", "GPU.0", "GPU.1"], "gpu.1", "GPU.1"),
            (["CPU"], "cpu", "CPU"),
        ],
    )
    def test_gpus_are_not_told_what_only_a_cpu_knows(
        self, found: list[str], asked: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import openvino

        real, told = openvino.Core(), {}

        class Core:
            available_devices = found

            def read_model(self, model: str) -> Any:
                return real.read_model(model)

            def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
                told[device] = config
                return real.compile_model(model, "CPU", config)

        monkeypatch.setattr(openvino, "Core", Core)
        engine = open_engine("openvino", whole(tmp_path / "model.onnx", "rows"), asked, threads=1)
        assert np.allclose(engine.run(request(4)), expected(request(4)), atol=1e-4)
        only_cpu = {"ENABLE_CPU_PINNING", "INFERENCE_NUM_THREADS"} & set(told[named])
        assert bool(only_cpu) == (named == "CPU")
        with pytest.raises(EngineError, match=r"cpu.*'gpu\.7'"):
            open_engine("openvino", tmp_path / "model.onnx", "gpu.7")


def test_cores_are_those_of_the_affinity_mask() -> None:
    code = "import os; only = min(os.sched_getaffinity(0)); os.sched_setaffinity(0, {only})\n"
    code += (
        "from objectives.serving.devices import cores_allowed, core_ids; print(cores_allowed(), core_ids() == (only,))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 True"
    assert cores_allowed() >= 1


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


UNLIMITED = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # Nested: the strictest up the tree counts, wherever it stands.
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n", "a/c/cpu.max": "1 9\n"}, 0.5),
        # In a container the path may be the host's, and the mount the container's own.
        ("0::/docker/x\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../../x\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (
            "3:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("3:cpuacct,cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1.0),
        ("3:cpu:/\n", {f"cpu/{name}": text for name, text in UNLIMITED.items()}, None),
        # Hybrid: version 2 is mounted beside the controllers of version 1; other controllers do not count.
        ("2:cpuset:/\n1:cpu:/\n0::/\n", {"cpuset/cpu.max": "1 2", "unified/cpu.max": "700000 100000"}, 7.0),
    ],
)
def test_the_strictest_quota_counts(groups: str, files: Mapping[str, str], cores: float | None, tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})
    assert cpu_quota(tmp_path) == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_available(tmp_path) is None


def test_a_quota_below_one_core_still_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "core_ids", lambda: (0, 2, 5, 7))
    for quota, cores in ((None, 4), (0.5, 1), (2.9, 2), (9.0, 4)):
        monkeypatch.setattr(devices, "cpu_quota", lambda quota=quota: quota)
        assert cores_allowed() == cores


def test_memory_is_cut_to_the_groups_limit(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n", "proc/self/cgroup": "0::/a\n"})
    assert memory_available(tmp_path) == 2048 * 1024
    tree(tmp_path, {"sys/fs/cgroup/a/memory.max": "4096\n"})
    assert memory_available(tmp_path) == 4096
    tree(tmp_path, {"sys/fs/cgroup/a/memory.max": "max\n", "proc/self/cgroup": "4:memory:/b\n"})
    assert memory_available(tmp_path) == 2048 * 1024
    tree(tmp_path, {"sys/fs/cgroup/memory/b/memory.limit_in_bytes": "1000000\n"})
    assert memory_available(tmp_path) == 1_000_000


def test_features_are_read_in_the_order_of_the_list(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": "model name\t: A CPU\nflags\t\t: fpu amx_tile avx2 avx2x amx_int8\n"})
    assert devices.cpu_features(tmp_path) == ("avx2", "amx_tile", "amx_int8")
    assert devices.cpu_model(tmp_path) == "A CPU"
    assert devices.cpu_features(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(("features", "floats"), [(("avx2", "avx512f"), 16), (("avx2",), 8), ((), 8)])
def test_a_vector_holds_as_many_floats_as_its_bits_do(
    features: tuple[str, ...], floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector of 512 bits is used, else at least 256 are counted on."""
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    assert devices.kernel_unit() == floats


@pytest.mark.parametrize(
    ("machine", "features", "bits"),
    [
        ("x86_64", ("avx2",), 7),
        ("x86_64", ("avx2", "avx512f"), 7),
        ("x86_64", (), 7),
        ("AMD64", ("avx2",), 7),
        ("x86_64", ("avx2", "avx_vnni"), 8),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), 8),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"), 8),
        ("aarch64", (), 8),
    ],
)
def test_int8_weights_have_fewer_bits_where_sums_would_saturate(
    machine: str, features: tuple[str, ...], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    assert devices.int8_weight_bits() == bits


def test_gpus_are_read_from_the_drivers_words() -> None:
    text = "NVIDIA L4, 23034 MiB\nNVIDIA A100, SXM, 81920 MiB\nGB10, [N/A]\n"
    assert devices.read_gpus(text) == (
        Gpu("NVIDIA L4", 23034 * 2**20),
        Gpu("NVIDIA A100, SXM", 81920 * 2**20),
        Gpu("GB10", None),
    )
    assert devices.read_gpus("") == ()


def test_gpus_are_those_of_a_driver_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = devices.nvidia_gpus.__wrapped__
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask() == ()
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA L4, 23034 MiB"\n')
    program.chmod(0o755)
    assert ask() == (Gpu("NVIDIA L4", 23034 * 2**20),)
    program.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed because it could not reach the driver"\nexit 9\n')
    assert ask() == ()


def test_devices_that_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    build = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    held = {"openvino": ("CPU", "GPU.0", "GPU.1"), "onnxruntime": build}
    monkeypatch.setattr(devices, "held_by", held.__getitem__)
    assert devices.devices_of("openvino") == ("cpu", "gpu.0", "gpu.1")
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: ())
    assert devices.devices_of("onnxruntime") == ("cpu",)
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: (Gpu("NVIDIA L4", None),))
    assert devices.devices_of("onnxruntime") == ("cpu", "cuda", "tensorrt")


TWO_AT_FIRST = """
import os, sys, threading
import numpy as np
from pathlib import Path
from objectives.serving.engines import open_engine

engines = [open_engine("openvino", Path(sys.argv[1]), "cpu", 1) for _ in range(4)]
start, answers = threading.Barrier(4), []

def ask(engine):
    start.wait()
    answers.append(float(engine.run({"x": np.ones(5, np.float32)}).sum()))

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=ask, args=(engine,), daemon=True) for engine in engines]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(answers)
"""


def test_the_first_requests_of_several_openvino_replicas_may_come_at_once(tmp_path: Path) -> None:
    """A fresh process is used; without the tie to numpy made beforehand they waited for each other for ever."""
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("x", "scores")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["scores"])], "g", floats[:1], floats[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "model.onnx"))
    command = [sys.executable, "-c", TWO_AT_FIRST, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str([5.0] * 4)
