"""Networks and inputs of one's own, by the command line: compressed, looked at, decoded into the plain network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from delib.data import export_onnx, hold_out, load_inputs, load_network
from delib.nn import tensors_in

MODULE = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

def inputs():
    return torch.rand(50, 3, 8, 8)

def number():
    return 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_from_a_function_to_a_file_and_back_into_the_plain_network(folder: Path) -> None:
    def delib(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "delib", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    np.save("x.npy", np.random.default_rng(0).random((60, 3, 8, 8), np.float32))
    network = load_network("mine:small")
    network[1].running_mean.uniform_()  # type: ignore[operator, union-attr]
    save_file(network.state_dict(), "w.safetensors")
    words = ["compress", "mine:small", "x.npy", "out.delib", "--weights", "w.safetensors"]
    said = delib(*words, "--recipe", "brief", "--steps", "60")
    zeros = re.search(r"times smaller than float32, ([\d.]+)% zeros", said)
    assert zeros and float(zeros[1]) >= 90
    assert f"weights are zero ({zeros[1]}%)" in delib("inspect", "out.delib")
    delib("decode", "out.delib", "back.safetensors")
    plain = load_network("mine:small")
    plain.load_state_dict(load_file("back.safetensors"))
    weights = torch.cat([plain[i].weight.detach().flatten() for i in (0, 4)])  # type: ignore[index, union-attr]
    assert (weights == 0).float().mean() >= 0.899
    delib("export", "out.delib", "out.onnx", "--format", "onnx", "--network", "mine:small", "--inputs", "x.npy")
    inputs = load_inputs("x.npy")
    answers = onnxruntime.InferenceSession("out.onnx").run(None, {"input": inputs.numpy()})
    assert np.allclose(plain(inputs).detach().numpy(), answers[0], atol=1e-5)


def test_inputs_of_every_form_are_read(folder: Path) -> None:
    values = np.random.default_rng(0).random((5, 3, 4, 6), np.float32)
    np.save("a.npy", values)
    np.savez("b.npz", inputs=values, labels=np.arange(5))
    save_file({"only": torch.from_numpy(values)}, "c.safetensors")
    for name in ("a.npy", "b.npz", "c.safetensors"):
        assert np.array_equal(load_inputs(name).numpy(), values)
    assert load_inputs("mine:inputs").shape == (50, 3, 8, 8)
    (folder / "images").mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    assert np.allclose(load_inputs("images").numpy(), pixels.transpose(0, 3, 1, 2) / 255)


def test_torchvisions_networks_are_known_by_name(folder: Path) -> None:
    torch.manual_seed(0)
    wanted = models.squeezenet1_1()
    torch.save(wanted.state_dict(), "w.pt")
    network = load_network("torchvision:squeezenet1_1", "w.pt")
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mine", "package.module:function"),
        ("mine:large", "could not be imported"),
        ("nowhere:small", "could not be imported"),
        ("torchvision:resnet19", "no network 'resnet19'"),
        ("mine:number", "no torch.nn.Module"),
    ],
)
def test_what_names_no_network_is_refused_in_one_line(folder: Path, network: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_network(network)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("nothing", "no such file"),
        ("mine:number", "one tensor"),
        ("two.npz", "a, b; call the array"),
        ("bad.npy", "not a .npy"),
        ("empty", "no images"),
        ("sizes", "differ in size"),
    ],
)
def test_what_names_no_inputs_is_refused_in_one_line(folder: Path, inputs: str, message: str) -> None:
    np.savez("two.npz", a=np.ones(3), b=np.ones(3))
    Path("bad.npy").write_bytes(b"nothing of the kind")
    for name in ("empty", "sizes"):
        Path(name).mkdir()
    for side in (4, 5):
        Image.new("RGB", (side, 4)).save(f"sizes/{side}.png")
    with pytest.raises(ValueError, match=message) as caught:
        load_inputs(inputs)
    assert "\n" not in str(caught.value)


def test_values_of_another_network_and_hostile_files_are_refused(folder: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path("ran"),)

    torch.save({"state_dict": Runs()}, "hostile.pt")
    save_file(nn.Linear(2, 2).state_dict(), "other.safetensors")
    for file in ("hostile.pt", "other.safetensors"):
        with pytest.raises(ValueError, match="no file of tensors by name that belong to this network") as caught:
            load_network("mine:small", file)
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_ultralytics_networks_are_known_by_file(folder: Path) -> None:
    network = load_network("ultralytics:yolov8n.yaml")
    assert [tensor.shape[:2] for tensor in network(torch.rand(2, 3, 64, 64))] == [(2, 144)] * 3  # one output per level


@pytest.mark.parametrize("count", [0, 5, 6])
def test_what_is_held_out_leaves_inputs_to_learn_from(count: int) -> None:
    learned, held = hold_out(torch.arange(5), 2)
    assert (learned.tolist(), held.tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(ValueError, match="leave some"):
        hold_out(torch.arange(5), count)


class Answers(nn.Module):
    """A network that answers with a dict, of convolutions, attention and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.conv(x)).flatten(2).mT
        return {"tokens": self.attention(x), "mean": x.mean(1)}


@pytest.mark.parametrize("make", [Answers, lambda: load_network("mine:small"), lambda: models.resnet18(num_classes=5)])
def test_onnx_runtime_answers_as_the_network_does(folder: Path, make: Callable[[], nn.Module]) -> None:
    network = make().eval()
    export_onnx(network, torch.rand(3, 3, 8, 8), "network.onnx")
    inputs = torch.rand(7, 3, 8, 8)  # more than the file was made with
    theirs = onnxruntime.InferenceSession("network.onnx").run(None, {"input": inputs.numpy()})
    for ours, other in zip(tensors_in(network(inputs)), theirs, strict=True):
        assert np.allclose(ours.detach().numpy(), other, atol=1e-5)


def test_what_onnx_cannot_hold_is_refused_in_one_line(folder: Path) -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.sort(x.numpy()))

    with pytest.raises(ValueError, match="cannot export a Sorts") as caught:
        export_onnx(Sorts(), torch.rand(3, 4), "network.onnx")
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*network.onnx*"))
