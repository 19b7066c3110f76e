"""Teachers: trained once with labels, kept under what made them, and loaded from there afterwards."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.data.images import Split
from delib.data.jitter import jittered
from delib.files import atomic_path, cache_folder, in_batch
from delib.nn.layers import channels_last


def train(
    network: nn.Module,
    data: Split,
    epochs: int,
    *,
    batch: int = 128,
    learning_rate: float = 0.1,
    jitter: float = 0.0,
    seed: int = 0,
) -> None:
    """Train in place on labelled images by cross-entropy: SGD with momentum 0.9 on one cycle of the learning rate.

    Weight decay 5e-4 keeps idle weights small, which is what makes a teacher easy to sparsify: by Adam without it,
    LeNet-300-100 is as accurate but loses twice as much at 90% sparsity. Images are ``jittered`` to the extent
    ``jitter``. ``seed`` orders the batches. The network is left in evaluation mode.
    """
    steps = epochs * (len(data) // batch)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 20), pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with channels_last(network):
        for _ in tqdm(range(epochs), desc="training the teacher", unit="epoch", disable=in_batch()):
            for part in torch.randperm(len(data), generator=generator).split(batch)[: len(data) // batch]:
                optimizer.zero_grad()
                images = jittered(data.images[part], jitter, generator)
                F.cross_entropy(network(images), data.labels[part]).backward()
                optimizer.step()
                schedule.step()
    network.eval()


def teacher(
    make: Callable[[int], nn.Module],
    data: Split,
    epochs: int,
    *,
    learning_rate: float = 0.1,
    jitter: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """The network ``make(seed)``, trained on ``data`` for ``epochs``; from the cache where it was trained before.

    The cache's key holds what determines the result: the network, the data's labels, epochs, learning rate, jitter,
    seed, torch's version, threads and the code of ``train``. A damaged cache file is trained anew; a cache that cannot
    be written to is said, and does without.
    """
    network = make(seed).eval()
    options: dict[str, Any] = {"learning_rate": learning_rate, "jitter": jitter, "seed": seed}
    path = _cached(make.__name__, network, data, epochs, options)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        train(network, data, epochs, **options)
        try:
            with atomic_path(path) as temporary:
                save_file(network.state_dict(), temporary)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"{path}: the teacher is not kept ({reason}); it is trained again next time", stacklevel=2)
    return network.eval()


def _cached(name: str, network: nn.Module, data: Split, epochs: int, options: dict[str, Any]) -> Path:
    facts = [str(network), epochs, options, len(data), torch.__version__, torch.get_num_threads()]
    facts.append(inspect.getsource(train))
    digest = hashlib.sha256(json.dumps(facts).encode() + data.labels.numpy().tobytes()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{name}-{digest}.safetensors"
