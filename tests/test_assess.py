"""Running only what is behind a layer gives exactly what the whole network gives."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.data.classifiers import lenet5
from delib.evolution.assess import Suffix, assess, tentatively_zeroed
from delib.nn.divergence import kl, mse
from delib.nn.hooks import end, up_to
from delib.nn.layers import weight_layers, weight_of


class Branched(nn.Module):
    """Skips, a route, a module used twice and one that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.MaxPool2d(2)
        self.side = nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(12, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.act(self.norm(self.stem(x)))
        once = stem + self.act(self.shared(stem))
        twice = once + self.act(self.shared(once))
        low = self.down(twice)
        return self.head(torch.cat([F.interpolate(low, scale_factor=2), self.side(stem)], 1)).flatten(1)


@pytest.fixture(params=["branched", "lenet5"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if request.param == "lenet5":
        return lenet5().eval(), torch.randn(6, 1, 28, 28)
    return Branched().eval(), torch.randn(6, 3, 8, 8)


def test_the_suffix_is_exactly_the_full_forward_for_every_layer(case) -> None:
    network, inputs = case
    with torch.no_grad():
        teacher = network(inputs)
    for name, layer in weight_layers(network).items():
        generator = torch.Generator().manual_seed(1)
        candidates = torch.stack([torch.randperm(weight_of(layer).numel(), generator=generator)[:7] for _ in range(3)])
        naive = []
        for candidate in candidates:
            trial = copy.deepcopy(network)
            weight_of(trial.get_submodule(name)).view(-1)[candidate] = 0
            with torch.no_grad():
                naive.append(mse(trial(inputs), teacher))
        with Suffix(network, layer, inputs) as suffix:
            assert torch.equal(suffix(), teacher)
            assert torch.equal(assess(suffix, candidates, teacher, mse), torch.stack(naive)), name
        with torch.no_grad():
            assert torch.equal(network(inputs), teacher)  # nothing stays patched


def test_only_what_is_behind_the_layer_runs() -> None:
    network, inputs = lenet5().eval(), torch.randn(2, 1, 28, 28)
    calls: list[str] = []
    with Suffix(network, network.fc1, inputs) as suffix:
        for name in ("conv1", "conv2", "fc1", "fc2"):
            layer, forward = (
                network.get_submodule(name),
                network.get_submodule(name)._conv_forward if "conv" in name else None,
            )
            if forward is not None:
                layer._conv_forward = lambda *args, n=name, f=forward: (calls.append(n), f(*args))[1]
            else:
                layer.register_forward_hook(lambda *_, n=name: calls.append(n))
        suffix()
    assert calls == ["fc1", "fc2"]


def test_what_comes_later_but_does_not_depend_on_the_layer_is_not_run_again() -> None:
    network, inputs = Branched().eval(), torch.randn(2, 3, 8, 8)
    calls: list[str] = []
    with Suffix(network, network.side, inputs) as suffix:
        for name in ("stem", "shared", "side", "head"):
            layer = network.get_submodule(name)
            layer._conv_forward = lambda *a, n=name, f=layer._conv_forward: (calls.append(n), f(*a))[1]
        suffix()
        held = [call for calls_of in suffix._calls.values() for call in calls_of if call.needed]
    assert calls == ["side", "head"]
    assert len(held) == 2  # down's output, which is concatenated with side's, and act's, which side reads


class Wayward(nn.Module):
    """Its course depends on values; it writes into memory of its own and in place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(x)
        match self.how:
            case "course":
                c = self.third(x) if a.sum() > 0 else self.third(b)
                return b + c
            case "memory":
                joined = torch.zeros(2, *a.shape)
                joined[0], joined[1] = a, b
                return self.third(joined)
            case "in place":
                b += a
                b[:, 0].mul_(a[:, 1])
                b[:, 2] = 1
                return self.third(b) + a
            case "attribute":
                return self.third(b.detach().T.relu_().T) + a.numel() * float(b.max())
        raise AssertionError


@pytest.mark.parametrize("how", ["course", "memory", "in place", "attribute"])
@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_wayward_networks_are_followed_exactly(how: str, name: str) -> None:
    torch.manual_seed(1)
    network, inputs = Wayward(how).eval(), torch.randn(5, 4)
    layer = network.get_submodule(name)
    with torch.no_grad(), Suffix(network, layer, inputs) as suffix:
        for change in (0.0, 1.0, -3.0, 5.0):
            weight_of(layer).add_(change)
            assert torch.equal(suffix(), network(inputs))


@pytest.mark.parametrize("layers", [0, 1, 2, None])
def test_a_horizon_sees_what_the_full_network_has_there(case, layers: int | None) -> None:
    network, inputs = case
    names = list(weight_layers(network))
    seen: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        layer = network.get_submodule(name)
        until = end(network, layer, inputs, layers)
        if isinstance(network, Branched):
            path = {"stem": names, "shared": ["shared", "head"]}.get(name, names[i:])
        else:
            path = names[i:]
        assert until == (path[layers] if layers is not None and layers < len(path) else "")

        def note(module: nn.Module, args: tuple, output: Tensor) -> None:
            seen.setdefault(next(n for n in names if network.get_submodule(n) is module), output.clone())

        hooks = [network.get_submodule(n).register_forward_hook(note) for n in names]
        with torch.no_grad(), tentatively_zeroed(layer, torch.tensor([0, 3, 4])):
            seen.clear()
            whole = network(inputs)
            for hook in hooks:
                hook.remove()
            expected = seen[until] if until else whole
            assert torch.equal(up_to(network, until)(inputs), expected)
        with Suffix(up_to(network, until), layer, inputs) as suffix, tentatively_zeroed(layer, torch.tensor([0, 3, 4])):
            assert torch.equal(suffix(), expected)


def test_site_inputs_are_what_the_layer_sees() -> None:
    network, inputs = lenet5().eval(), torch.randn(3, 1, 28, 28)
    with Suffix(network, network.conv2, inputs) as suffix, torch.no_grad():
        assert torch.equal(suffix.site_inputs, network.pool1(network.conv1(inputs)))


def test_a_layer_that_never_runs_is_said_to() -> None:
    with pytest.raises(ValueError, match="never called"), Suffix(lenet5(), nn.Linear(2, 2), torch.randn(1, 1, 28, 28)):
        pass


def test_tentative_zeroing_is_undone_even_when_the_block_fails() -> None:
    layer = nn.Linear(5, 4)
    before = weight_of(layer).clone()

    def fail_inside() -> None:
        with tentatively_zeroed(layer, torch.tensor([0, 7, 19])):
            assert int((weight_of(layer) == 0).sum()) == 3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.equal(weight_of(layer), before)


def test_a_softer_temperature_lowers_the_divergence_of_logits() -> None:
    s, t = torch.randn(9, 5), torch.randn(9, 5)
    assert float(kl(s, t, 4.0)) / 16 < float(kl(s, t))
