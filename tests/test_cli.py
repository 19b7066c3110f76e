"""The command line: what it does, and one clear line on stderr for what it does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from delib import cli
from delib.coding import container as encode
from delib.coding.quantize import quantize_tensors
from delib.files import project_root
from delib.suite import runner
from delib.suite.runner import Result

PARAMETERS = 'profile = "quick"  # which set\nseed = 0  # of chance\nepochs = 3  # passes\nrate = 0.1  # of learning'


@pytest.fixture
def delib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process: its exit code, stdout and stderr."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["delib", *map(str, words)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return (int(code or 0), *capsys.readouterr())

    return call


def only_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The state dict in ``w.safetensors``: two sparse weights and a bias."""
    torch.manual_seed(0)
    state = {"fc1.weight": torch.randn(30, 40), "fc1.bias": torch.randn(30), "conv.weight": torch.randn(4, 2, 3, 3)}
    for weight in (state["fc1.weight"], state["conv.weight"]):
        weight[torch.rand(weight.shape) < 0.8] = 0
    save_file(state, tmp_path / "w.safetensors")
    return state


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_help_is_quick_and_lists_the_commands() -> None:
    code = "import sys\nfrom delib.cli import app\ntry: app(['--help'])\nfinally: print('torch' in sys.modules)"
    done = python(code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "False", "torch takes seconds to import"
    for command in ("run", "report", "encode", "decode", "inspect", "fetch"):
        assert f" {command} " in done.stdout


def test_the_version_is_the_package_s(delib: Any) -> None:
    assert delib("--version") == (0, f"delib {version('delib')}\n", "")


def test_the_module_is_the_command_and_its_errors_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "delib", "inspect", str(tmp_path / "none.delib")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    line = only_line(done.stderr)
    assert line.startswith("delib: ")
    assert str(tmp_path / "none.delib") in line


@pytest.mark.parametrize(("bits", "method"), [(4, "kmeans"), (2, "uniform")])
def test_a_network_goes_into_a_file_and_comes_out_quantised(
    delib: Any, tmp_path: Path, state: dict[str, torch.Tensor], bits: int, method: str
) -> None:
    source, packed, target = (tmp_path / name for name in ("w.safetensors", "w.delib", "out.safetensors"))
    code, out, _ = delib("encode", source, packed, "--bits", str(bits), "--method", method)
    size = packed.stat().st_size
    assert code == 0
    assert only_line(out) == f"{packed}: {size:,} bytes, {4 * (1200 + 30 + 72) / size:.1f} times smaller than float32"
    assert delib("decode", packed, target) == (0, f"{target}\n", "")
    decoded = load_file(target)
    assert set(decoded) == set(state)
    assert torch.equal(decoded["fc1.bias"], state["fc1.bias"])
    for name, tensor in quantize_tensors(state, bits, method).items():
        if isinstance(tensor, encode.LevelTensor):
            assert torch.equal(decoded[name], torch.from_numpy(tensor.dense()))
            assert torch.equal(decoded[name] == 0, state[name] == 0)
            assert len(decoded[name][decoded[name] != 0].unique()) <= 2**bits


def test_inspect_shows_what_is_in_a_file(delib: Any, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    delib("encode", tmp_path / "w.safetensors", tmp_path / "w.delib", "--bits", "3")
    code, out, _ = delib("inspect", tmp_path / "w.delib")
    total, header, *rows = out.strip().splitlines()
    assert code == 0
    assert header.split() == ["tensor", "shape", "sparsity", "bits", "bytes"]
    table = {row.split()[0]: row.split()[1:] for row in rows}
    sparsity = float((state["fc1.weight"] == 0).float().mean())
    assert table["fc1.weight"][:3] == ["30×40", f"{sparsity:.2%}", "3"]
    assert table["conv.weight"][0] == "4×2×3×3"
    assert table["fc1.bias"] == ["30", "32", "120"]
    size = (tmp_path / "w.delib").stat().st_size
    zeros = sum(int((state[name] == 0).sum()) for name in ("fc1.weight", "conv.weight"))
    assert total == (
        f"{size:,} bytes with header and checksum, {4 * 1302 / size:.1f} times smaller than the 5,208 of float32; "
        f"{zeros:,} of 1,272 weights are zero ({zeros / 1272:.2%})"
    )
    assert sum(int(row[-1].replace(",", "")) for row in table.values()) < size


def test_other_floats_are_said_to_come_back_as_float32(delib: Any, tmp_path: Path) -> None:
    types = {"a": torch.bfloat16, "b": torch.float16, "c": torch.float8_e4m3fn, "d": torch.float32}
    mixed = {name: torch.ones(3, 4).to(dtype) for name, dtype in types.items()}
    kept = {"norm": torch.ones(4, dtype=torch.float16), "count": torch.tensor(7)}
    save_file(mixed | kept, tmp_path / "w.safetensors")
    code, out, _ = delib("encode", tmp_path / "w.safetensors", tmp_path / "w.delib")
    assert code == 0
    said = "; tensors of bfloat16, float16, float8_e4m3fn were read as float32 and come back so"
    assert only_line(out).endswith(f" times smaller than float32{said}")
    delib("decode", tmp_path / "w.delib", tmp_path / "out.safetensors")
    decoded = load_file(tmp_path / "out.safetensors")
    assert {decoded[name].dtype for name in types} == {torch.float32}
    assert {name: decoded[name].dtype for name in kept} == {name: tensor.dtype for name, tensor in kept.items()}


@pytest.mark.parametrize("command", ["encode", "decode", "export"])
def test_a_pipe_is_refused_before_any_work(delib: Any, tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, out, err = delib(command, tmp_path / "none", tmp_path / "pipe")
    assert (code, out) == (1, "")
    assert only_line(err) == f"delib: {tmp_path / 'pipe'} is a pipe or device; name a plain file"


@pytest.mark.parametrize("command", ["decode", "inspect", "export"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_damaged_file_is_refused_by_name_and_nothing_is_written(
    delib: Any, tmp_path: Path, state: dict[str, torch.Tensor], command: str, damage: str
) -> None:
    path, target = tmp_path / "w.delib", tmp_path / "out.bin"
    delib("encode", tmp_path / "w.safetensors", path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flipped": bytes(data), "cut": data[:-9], "foreign": b"PK\x03\x04" * 40}[damage])
    code, out, err = delib(command, path, *([] if command == "inspect" else [target]))
    assert (code, out) == (1, "")
    assert only_line(err).startswith(f"delib: {path}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.delib", "w.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_by_name(delib: Any, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "w.safetensors"
    source.write_bytes(content)
    code, out, err = delib("encode", source, tmp_path / "w.delib")
    assert (code, out) == (1, "")
    assert only_line(err).startswith(f"delib: {source}: not a .safetensors file")
    assert not (tmp_path / "w.delib").exists()


def test_a_network_that_no_darknet_runtime_reads_is_not_exported(
    delib: Any, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    delib("encode", tmp_path / "w.safetensors", tmp_path / "w.delib")
    code, _, err = delib("export", tmp_path / "w.delib", tmp_path / "out.weights")
    assert code == 1
    assert "this is another network" in only_line(err)
    assert not (tmp_path / "out.weights").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["encode", "{source}", "{out}", "--method", "magic"], "'magic'; choose one of"),
        (["encode", "{out}", "{out}"], "w.delib"),
        (["fetch", "imagenet"], "no data set `imagenet`; choose from mnist"),
    ],
)
def test_wrong_words_get_one_line(
    delib: Any, tmp_path: Path, state: dict[str, torch.Tensor], words: list[str], complaint: str
) -> None:
    places = {"source": str(tmp_path / "w.safetensors"), "out": str(tmp_path / "w.delib")}
    code, out, err = delib(*(word.format(**places) for word in words))
    assert (code, out) == (1, "")
    assert complaint in only_line(err)


@pytest.mark.parametrize("words", [["encode", "a", "b", "--bits", "17"], ["report", "--profile", "huge"], ["nonsense"]])
def test_wrong_usage_exits_with_2(delib: Any, words: list[str]) -> None:
    code, out, err = delib(*words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the runner: keeps what it is called with."""
    calls: list[dict[str, Any]] = []

    def run(notebook: Any, profile: str = "quick", parameters: Any = None, **options: Any) -> Result:
        calls.append({"notebook": str(notebook), "profile": profile, "parameters": parameters, **options})
        folder = project_root() / "reports" / profile
        return Result(folder / "notebooks" / "10_toy.ipynb", folder / "records" / "10_toy.json", reused=len(calls) > 1)

    monkeypatch.setattr(runner, "run", run)
    return calls


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ([], {}),
        (["-p", "epochs", "1", "-p", "rate", "1e-3"], {"epochs": "1", "rate": "1e-3"}),
        (["-p", "epochs=1", "--parameter", "rate", "-3"], {"epochs": "1", "rate": "-3"}),
        (["-p", "targets", '{"a=b": 1}'], {"targets": '{"a=b": 1}'}),
        (["--parameter=rate=1e-3"], {"rate": "1e-3"}),
    ],
)
def test_parameters_are_pairs_of_words(
    delib: Any, runs: list[dict[str, Any]], words: list[str], parameters: dict[str, str]
) -> None:
    code, out, _ = delib("run", "10_toy", *words, "--profile", "smoke", "--force")
    assert code == 0
    assert out.splitlines()[0].startswith("done: ")
    assert out.splitlines()[1].endswith("10_toy.json")
    (call,) = runs
    assert call["parameters"] == parameters
    assert (call["profile"], call["force"], call["text"], call["into"]) == ("smoke", True, True, None)


@pytest.mark.parametrize("words", [["-p"], ["--parameter=rate"]])
def test_a_parameter_without_a_value_is_wrong_usage(delib: Any, runs: list[dict[str, Any]], words: list[str]) -> None:
    code, _, err = delib("run", "10_toy", *words)
    assert code == 2
    assert "Traceback" not in err
    assert runs == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["10_toy", "-p", "epoch", "1"], "10_toy has no parameter `epoch`; did you mean `epochs`?"),
        (["10_toy", "-p", "epochs", "1.5"], "10_toy: parameter `epochs` must be a whole number such as 3, got 1.5"),
        (["10_toy", "-p", "epochs"], "10_toy: parameter `epochs` must be a whole number such as 3, got ''"),
        (["10_tay"], "there is no notebook 10_tay; did you mean 10_toy?"),
        (["10_toy", "-p", "rate", "1", "--into", "quick"], "`quick` holds a profile's own results; give a run"),
    ],
)
def test_runs_that_cannot_be_are_refused_in_one_line(
    delib: Any, project: Any, words: list[str], complaint: str
) -> None:
    project.notebook("10_toy", parameters=PARAMETERS)
    code, out, err = delib("run", *words)
    assert (code, out) == (1, "")
    assert only_line(err).startswith(f"delib: {complaint}")
    assert not project.reports.exists()


def test_report_runs_the_sequence_and_prints_the_index_alone_on_stdout(delib: Any, project: Any) -> None:
    record = (
        "from delib.files import *\nfrom delib.suite.record import *\nimport os\n"
        'write_json(record_path(os.environ["DELIB_RUN"], "10_toy"), {!r})'
    )
    facts = dict.fromkeys(["parameters", "seed", "machine", "device", "threads", "git_revision", "versions", "data"], 0)
    project.notebook("10_toy", record.format({**facts, "seconds": 1, "metrics": {}}), parameters=PARAMETERS)
    index = project.reports / "smoke" / "index.html"
    assert delib("report", "--profile", "smoke") == (0, f"{index}\n", "10_toy (smoke) … done\n")
    assert index.is_file()
    assert delib("report", "--profile", "smoke") == (0, f"{index}\n", "10_toy (smoke) … up to date\n")
    (project.reports / "smoke" / "records" / "10_toy.json").write_text("{")
    assert delib("report", "--profile", "smoke") == (0, f"{index}\n", "10_toy (smoke) … done\n")
    (project.reports / "smoke" / "records" / "11_gone.json").write_text("{")
    code, out, err = delib("report", "--profile", "smoke")
    assert (code, out) == (1, "")
    assert "11_gone.json: not a record" in err.splitlines()[-1]


def test_report_on_broken_notebooks_is_one_line(delib: Any, project: Any) -> None:
    code, _, err = delib("report")
    assert code == 1
    assert only_line(err).startswith(f"delib: {project.root} has no notebooks; ")
    path = project.notebook("10_toy", "1 / 0", parameters=PARAMETERS)
    code, out, err = delib("report")
    assert (code, out) == (1, "")
    progress, line = err.splitlines()
    assert progress == "10_toy (quick) … stopped"
    assert line.startswith("delib: 10_toy: cell In [2] (`1 / 0`) raised ZeroDivisionError")
    path.write_text("{")
    code, out, err = delib("report")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"delib: {path}: not a notebook of format 4")


def test_the_traceback_is_there_for_who_wants_it(tmp_path: Path) -> None:
    code = f"import sys\nfrom delib.cli import main\nsys.argv = ['delib', 'inspect', {str(tmp_path / 'x')!r}]\nmain()"
    assert "Traceback" in python(code, DELIB_DEBUG="1").stderr
    assert "Traceback" not in python(code, DELIB_DEBUG="").stderr


def test_what_a_network_will_take_is_said_beforehand(delib: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = "def net(): return torch.nn.Linear(9, 5)\ndef data(): return torch.rand(20, 9)"
    (tmp_path / "planned.py").write_text(f"import torch\n{functions}")
    code, out, _ = delib("plan", "planned:net", "planned:data", "--recipe", "brief")
    assert code == 0
    assert re.fullmatch(r"about [\d.]+ minutes, and [\d.]+ GB of memory .*\n", out)
    code, _, err = delib("plan", "planned:nothing", "planned:data")
    assert (code, "planned:nothing" in only_line(err)) == (1, True)


def test_what_a_notebook_took_before_is_said_beforehand(delib: Any, project: Any) -> None:
    project.notebook("10_toy", parameters=PARAMETERS)
    code, _, err = delib("plan", "10_toy")
    assert code == 1
    assert "has not run" in only_line(err)
    path = project.reports / "reference" / "records" / "10_toy.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"metrics": {}, "parameters": {"profile": "quick"}, "seconds": 90}')
    code, out, _ = delib("plan", "10_toy")
    assert code == 0
    assert only_line(out).startswith("reports/reference took 1.5 minutes")
    path.write_text('{"metrics": {}, "parameters": [], "seconds": 90}')
    code, _, err = delib("plan", "10_toy")
    assert code == 1
    assert "not a record" in only_line(err)
