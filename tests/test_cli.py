"""The command line as a user meets it: a process, its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def delib(*words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"DELIB_HOME": str(home)} if home else {}) | {"COLUMNS": "100"}
    return subprocess.run([sys.executable, "-m", "delib", *words], capture_output=True, text=True, env=environment)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small state dict: a weight that is 90% zero, and a bias."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(50, 40)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.9] = 0
    path = tmp_path / "weights.safetensors"
    save_file({"fc.weight": weight, "fc.bias": np.ones(50, np.float32)}, path)
    return path


def assert_refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_help_lists_the_commands_and_does_not_load_torch() -> None:
    result = delib("--help")
    assert result.returncode == 0
    for command in ("run", "report", "encode", "decode", "inspect", "fetch"):
        assert f" {command} " in result.stdout
    code = "import sys; from delib import cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_encode_inspect_decode(weights: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "net.delib", tmp_path / "back.safetensors"
    encoded = delib("encode", str(weights), str(packed), "--bits", "3")
    assert encoded.returncode == 0, encoded.stderr
    original = load_file(weights)
    ratio = 4 * sum(t.size for t in original.values()) / packed.stat().st_size
    assert f"{packed.stat().st_size:,} bytes, {ratio:.1f} times smaller" in encoded.stdout

    table = delib("inspect", str(packed)).stdout
    sparsity = (original["fc.weight"] == 0).mean()
    row = next(line for line in table.splitlines() if line.startswith("fc.weight"))
    assert row.split()[1:4] == ["50×40", f"{sparsity:.2%}", "3"]
    assert f"{ratio:.1f} times smaller than float32" in table

    assert delib("decode", str(packed), str(back)).returncode == 0
    decoded = load_file(back)
    assert np.array_equal(decoded["fc.bias"], original["fc.bias"])
    assert np.array_equal(decoded["fc.weight"] == 0, original["fc.weight"] == 0)
    assert len(np.unique(decoded["fc.weight"])) <= 2**3 + 1


def test_files_that_are_not_what_they_should_be_are_named_in_one_line(weights: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert_refused(delib("encode", str(tmp_path / "no.safetensors"), out), "no.safetensors")
    assert_refused(delib("encode", __file__, out), "not a .safetensors file")
    assert_refused(delib("encode", str(weights), out, "--method", "best"), "kmeans")
    assert_refused(delib("decode", str(weights), out), "weights.safetensors")
    assert_refused(delib("inspect", str(weights)), "weights.safetensors")
    assert_refused(delib("fetch", "mnits"), "mnist")
    assert not (tmp_path / "out").exists()


def test_usage_errors_exit_with_2() -> None:
    for words in (["run"], ["run", "x", "--profile", "fast"], ["encode", "a", "b", "--bits", "99"], ["frobnicate"]):
        assert delib(*words).returncode == 2


def test_run_with_parameters(project: Path) -> None:
    assert_refused(delib("run", "00_first", "-p", "epohcs", "3", home=project), "did you mean `epochs`?")
    assert_refused(delib("run", "00_first", "-p", "deep", "maybe", home=project), "`deep` must be true or false")
    assert_refused(delib("run", "00_frist", home=project), "did you mean 00_first?")
    words = ["-p", "rate", "-1e-3", "--profile", "smoke", "-p", "deep", "true", "-p", "epochs=4", "--into", "mine"]
    result = delib("run", "00_first", *words, home=project)
    assert result.returncode == 0, result.stderr
    executed = project / "reports" / "mine" / "notebooks" / "00_first.ipynb"
    assert str(executed) in result.stdout
    assert "batch 1, epochs 4, rate -0.001, deep True" in executed.read_text()


def test_report_prints_the_path_of_the_index(compiled: Path) -> None:
    result = delib("report", "--profile", "smoke", home=compiled)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(compiled / "reports" / "smoke" / "index.html")
    assert result.stderr.count("up to date") == 2
