"""Teachers are trained once and then come from the cache, byte for byte."""

import pytest
import torch

import delib.data.teachers
from delib.data.classifiers import lenet300
from delib.data.images import Split
from delib.data.teachers import teacher, train


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    return tmp_path


def blobs() -> Split:
    """Ten classes, each a bright row of its own."""
    labels = torch.arange(640) % 10
    images = 0.3 * torch.rand(640, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[torch.arange(640), 0, 2 * labels] += 0.7
    return Split(images, labels)


def test_training_learns() -> None:
    network, data = lenet300(), blobs()
    train(network, data, 3, batch=32, learning_rate=0.05)
    assert float((network(data.images).argmax(1) == data.labels).float().mean()) > 0.95
    assert not network.training


def test_the_second_time_it_comes_from_the_cache(cache, monkeypatch) -> None:
    first = teacher(lenet300, blobs(), 1)
    monkeypatch.setattr(delib.data.teachers, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(delib.data.teachers.inspect, "getsource", lambda _: SOURCE)
    second = teacher(lenet300, blobs(), 1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_damaged_cache_file_is_trained_anew(cache) -> None:
    first = teacher(lenet300, blobs(), 1)
    (path,) = (cache / "teachers").iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    second = teacher(lenet300, blobs(), 1)
    assert torch.equal(first.fc1.weight, second.fc1.weight)


def test_another_seed_length_or_jitter_is_another_teacher(cache) -> None:
    for epochs, seed, jitter in ((1, 0, 0.0), (1, 1, 0.0), (2, 0, 0.0), (1, 0, 1.0)):
        teacher(lenet300, blobs(), epochs, seed=seed, jitter=jitter)
    assert len(list((cache / "teachers").iterdir())) == 4


SOURCE = delib.data.teachers.inspect.getsource(delib.data.teachers.train)
