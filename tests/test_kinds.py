"""Kinds of networks that people bring: each is sparsified, followed and stored right, or refused by name."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import delib
from delib.distillation import Objective, Recipe, distill
from delib.evolution import CRITERIA, Cycle, Suffix, allocate, evolve
from delib.layerwise import compress, finalize, quantize
from delib.nn import (
    agree,
    fitting,
    float32_bytes,
    folded,
    mse,
    norm_pairs,
    sensitivities,
    sparsity,
    unfolded,
    weight_layers,
)

QUICK = Cycle(population=4, share=0.3)


def inputs_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Weights that are computed.


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def computed(kind: str) -> nn.Module:
    layer = nn.Conv2d(3, 4, 3) if "conv" in kind else nn.Linear(6, 5)
    match kind.split()[0]:
        case "weight_norm":
            parametrizations.weight_norm(layer)
        case "old_weight_norm":
            nn.utils.weight_norm(layer)
        case "spectral_norm":
            parametrizations.spectral_norm(layer)
        case "old_spectral_norm":
            nn.utils.spectral_norm(layer)
        case "orthogonal":
            parametrizations.orthogonal(layer)
        case "pruned":
            prune.random_unstructured(layer, "weight", 0.3)
        case "bias":
            parametrize.register_parametrization(layer, "bias", Halved())
        case _:
            parametrize.register_parametrization(layer, "weight", Halved())
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    "kind",
    [
        *("weight_norm", "old_weight_norm conv", "spectral_norm", "old_spectral_norm", "orthogonal", "pruned conv"),
        *("own", "own conv", "bias"),
    ],
)
def test_computed_weights_are_refused_by_name(kind: str) -> None:
    network = nn.Sequential(OrderedDict(first=nn.Linear(6, 6), second=computed(kind))).eval()
    with pytest.raises(ValueError, match=r"'second'.*remove_parametrizations"):
        evolve(network, inputs_of(8, 6), 0.5)
    with pytest.raises(ValueError, match="'second'"):
        quantize(network)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(nn.LazyLinear(4), "no values"), (nn.Linear(4, 4, device="meta"), "no values"), (None, "real floating")],
)
def test_layers_without_real_values_are_refused_by_name(layer: nn.Module | None, reason: str) -> None:
    layer = layer or nn.Linear(4, 4, dtype=torch.complex64)
    with pytest.raises(ValueError, match=f"'1'.*{reason}"):
        evolve(nn.Sequential(nn.Linear(4, 4), layer), inputs_of(8, 4), 0.5)


# Batch norms: folded where that changes nothing, and nowhere else.


class InPlace(nn.Module):
    """What happens to a convolution's output before its norm, or beside it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kept = how, None
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        match self.how:
            case "y += 1":
                y += 1
            case "relu_":
                F.relu_(y)
            case "view":
                y[:, 0].zero_()
            case "later":
                z = self.norm(y)
                y.add_(1)
                return z + y
            case "answer":
                return self.norm(y), y
            case "two norms":
                return self.norm(y) + self.other(y)
            case "norm twice":
                return self.norm(y) + self.norm(self.conv(2 * x))
            case "mean":
                return self.norm(y) * y.mean()
            case "size":
                return self.norm(y) * y.shape[2] / y.size(3)
            case "identity":
                return self.norm(nn.Identity()(y))
        return self.norm(y)


class Shared(nn.Module):
    """One convolution, or one norm, in two places."""

    def __init__(self, one: str) -> None:
        super().__init__()
        self.one, self.c, self.d = one, nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        if one == "weight":
            self.d.weight = self.c.weight

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.c, self.c) if self.one == "conv" else (self.c, self.d)
        return self.a(first(x)) + (self.a if self.one == "norm" else self.b)(second(2 * x))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c2(F.relu(self.n2(self.c1(F.relu(self.n1(x))))))


class Doubling(nn.BatchNorm2d):
    """A norm that does more than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


IMAGES, ROWS = (4, 3, 8, 8), (8, 5, 6)
NORMS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {  # and how many pairs there are
    **{how: (InPlace(how), IMAGES, 0) for how in ("y += 1", "relu_", "view", "later", "answer", "two norms", "mean")},
    "norm twice": (InPlace("norm twice"), IMAGES, 0),
    **{how: (InPlace(how), IMAGES, 1) for how in ("plain", "size", "identity")},
    "relu module": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)), IMAGES, 0),
    **{f"shared {one}": (Shared(one), IMAGES, 0) for one in ("conv", "norm", "weight")},
    "pre-activation": (PreActivation(), IMAGES, 1),
    "no affine": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGES, 1),
    "no statistics": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), IMAGES, 0),
    "no bias": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), IMAGES, 1),
    "doubling": (nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), IMAGES, 1),
    "linear": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), (8, 6), 1),
    "linear, rows": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), ROWS, 0),
    "linear, rows, other width": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5)), ROWS, 0),
    "one dimension": (nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4)), ROWS, 1),
    "three dimensions": (nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), (2, 3, 4, 4, 4), 1),
}


@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_norms_are_folded_only_where_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    network, shape, many = copy.deepcopy(NORMS[name])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.running_mean, module.weight, module.bias):
                _ = None if tensor is None else nn.init.normal_(tensor)
            _ = None if module.running_var is None else nn.init.uniform_(module.running_var, 0.5, 2)
    network.train()  # a user may forget; no statistic changes for it
    before = copy.deepcopy(network.state_dict())
    x = inputs_of(*shape)
    pairs = norm_pairs(network, x)
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    network.eval()
    flat = folded(network, pairs)
    assert len(pairs) == many
    assert agree(flat(x), network(x))
    assert agree(unfolded(flat, network, pairs)(x), network(x))


# Layers that are used without a call, or not at all.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.b = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if not self.training else (self.b(y), self.aux(y))


@pytest.mark.parametrize(("make", "layer"), [(Attention, "attention.out_proj"), (Auxiliary, "aux")])
def test_layers_that_are_never_called_are_left_alone_or_refused_by_name(make: type[nn.Module], layer: str) -> None:
    torch.manual_seed(0)
    network, x = make().eval(), inputs_of(40, 5, 8)
    kept = network.get_submodule(layer).weight.clone()
    with pytest.warns(UserWarning, match=rf"left dense.*{layer}"):
        student = evolve(network, x, 0.5, QUICK, divergence=mse).student
    assert torch.equal(student.get_submodule(layer).weight, kept)
    evolved = {name: module for name, module in weight_layers(student).items() if name != layer}
    assert sparsity(student, evolved) == pytest.approx(0.5, abs=0.02)
    for refused in (
        lambda: evolve(network, x, {layer: 0.5}, QUICK, divergence=mse),
        lambda: compress(network, x, {layer: 0.5}),
    ):
        with pytest.raises(ValueError, match=rf"'{layer}' is never called"):
            refused()
    assert allocate(network, x, 0.3, divergence=mse)[layer] == 0


def test_the_layers_of_a_transformer_encoder_are_sparsified() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 4))
    goals = {f"0.layers.{i}.linear{k}": 0.5 for i in (0, 1) for k in (1, 2)}
    student = evolve(network.eval(), inputs_of(30, 5, 8), goals, QUICK, divergence=mse).student
    for name in goals:
        assert sparsity(student, {name: student.get_submodule(name)}) == 0.5
    student, _ = compress(network, inputs_of(30, 5, 8), goals)
    for name in goals:
        assert sparsity(student, {name: student.get_submodule(name)}) == 0.5


class Functional(nn.Module):
    """A layer that is called once and whose weight is used once more, transposed, without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.act, self.out = nn.Linear(8, 5), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(F.linear(self.act(self.down(x)), self.down.weight.t())) + x)


def check_suffix(network: nn.Module, name: str, x: Tensor) -> None:
    layer = network.get_submodule(name)
    with torch.no_grad(), Suffix(network, layer, x) as suffix:
        values = layer.weight.clone()
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
        followed = suffix()
    with torch.no_grad():
        assert agree(followed, network(x), 1e-6)
        layer.weight.copy_(values)


def test_a_weight_that_is_used_once_more_without_a_call_is_followed() -> None:
    torch.manual_seed(0)
    check_suffix(Functional().eval(), "down", inputs_of(6, 8))


# Shared and tied weights.


class Tied(nn.Module):
    """An embedding and a head with one weight; the head is what can be sparsified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(50, 12), nn.Linear(12, 12), nn.Linear(12, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)).tanh()).mean(1)


class OneModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b, self.out = self.a, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()).tanh())


class TwoModules(OneModule):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight


class SameMemory(OneModule):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(8, 8)
        self.b.weight.data = self.a.weight.data


def tied(kind: str) -> tuple[nn.Module, Tensor, tuple[str, str]]:
    torch.manual_seed(0)
    if kind == "embedding":
        tokens = torch.randint(0, 50, (60, 6), generator=torch.Generator().manual_seed(1))
        return Tied().eval(), tokens, ("embedding.weight", "head.weight")
    make = {"one module": OneModule, "two modules": TwoModules, "same memory": SameMemory}[kind]
    return make().eval(), inputs_of(60, 8), ("a.weight", "b.weight")


@pytest.mark.filterwarnings("error:left dense")
@pytest.mark.parametrize("kind", ["embedding", "one module", "two modules", "same memory"])
def test_tied_weights_have_one_mask_few_levels_and_are_stored_once(kind: str) -> None:
    network, x, (one, other) = tied(kind)
    student = evolve(network, x, 0.6, QUICK, divergence=mse).student
    layers = weight_layers(student)
    assert len(layers) == 2
    assert sparsity(student) == pytest.approx(0.6, abs=0.01)
    distill(student, network, x, Recipe(steps=5), objective=Objective(mse))
    assert sparsity(student) == pytest.approx(0.6, abs=0.01)
    state = student.state_dict()
    assert torch.equal(state[one], state[other])
    for quantized in (quantize(student, 3), finalize(student, {}, 3)):
        assert quantized[one] is quantized[other]
        tensor = quantized[one]
        assert len(tensor.codebook) <= 8
        data = delib.encode(quantized)
        alone = {name: tensor for name, tensor in quantized.items() if name != other}
        assert len(data) < len(delib.encode(alone)) + 100
        held = delib.decode(data)
        assert held[one] is held[other]
        values = held.network(like=network).state_dict()
        assert torch.equal(values[one], values[other])
        assert tensor.scales is not None or values[one].unique().numel() <= 9
    assert float32_bytes(student) == 4 * sum({t.data_ptr(): t.numel() for t in state.values()}.values())


@pytest.mark.parametrize("kind", ["embedding", "one module", "two modules", "same memory"])
def test_earlier_cycles_of_tied_weights_are_what_they_were(kind: str) -> None:
    network, x, (one, other) = tied(kind)
    halfway = evolve(network, x, 0.3, Cycle(population=2, share=1.0), divergence=mse).student.state_dict()
    evolved = evolve(network, x, 0.3, Cycle(population=2, share=1.0), divergence=mse)
    state = evolved.at_cycle(1).state_dict()
    assert torch.equal(state[one], halfway[one])
    assert torch.equal(state[one], state[other])
    assert torch.equal(evolved.at_cycle(0).state_dict()[other], network.state_dict()[other])


@pytest.mark.parametrize("kind", ["embedding", "one module", "two modules", "same memory"])
def test_the_suffix_follows_tied_weights(kind: str) -> None:
    network, x, _ = tied(kind)
    for name in weight_layers(network):
        check_suffix(network, name, x[:6])


# Tensors inside objects.


@dataclass(frozen=True)
class Frozen:
    hidden: Tensor
    note: str = ""


class Slots:
    __slots__ = ("hidden",)

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Holder:
    def __init__(self, hidden: Tensor) -> None:
        self.parts = {"hidden": [hidden]}
        self.itself = self

    @property
    def hidden(self) -> Tensor:
        return self.parts["hidden"][0]


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As the usual libraries have it: a dict whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else super().__getattribute__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)


def default(hidden: Tensor) -> Any:
    held = defaultdict(list)
    held["hidden"] = hidden
    return held


WRAPPERS: dict[str, tuple[Any, Any]] = {
    "dataclass": (Frozen, lambda held: held.hidden),
    "object": (Holder, lambda held: held.hidden),
    "model output": (lambda hidden: ModelOutput(hidden=hidden), lambda held: held.hidden),
    "defaultdict": (default, lambda held: held["hidden"]),
    "nested": (lambda hidden: [{"a": (Frozen(hidden), 1)}], lambda held: held[0]["a"][0].hidden),
}


class Passing(nn.Module):
    """Blocks without children that hand their tensors on inside objects."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        wrap, unwrap = WRAPPERS.get(kind, (Slots, lambda held: held.hidden))

        class Wrapping(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return wrap(x)

        class Unwrapping(nn.Module):
            def forward(self, held: Any) -> Tensor:
                return unwrap(held).tanh()

        self.first, self.wrap, self.unwrap, self.last = nn.Linear(8, 8), Wrapping(), Unwrapping(), nn.Linear(8, 3)
        self.answer = wrap

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.last(self.unwrap(self.wrap(self.first(x)))))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_tensors_inside_objects_are_followed(kind: str) -> None:
    torch.manual_seed(0)
    network, x = Passing(kind).eval(), inputs_of(40, 8)
    for name in ("first", "last"):
        check_suffix(network, name, x)
    student = evolve(network, x, 0.5, QUICK).student
    assert sparsity(student) == 0.5
    distill(student, network, x, Recipe(steps=3))


def test_tensors_in_objects_that_cannot_be_looked_into_are_refused() -> None:
    torch.manual_seed(0)
    network, x = Passing("slots").eval(), inputs_of(40, 8)
    network.answer = lambda hidden: hidden
    with pytest.raises(ValueError, match=r"layer 'first' .* cannot be followed"):
        evolve(network, x, 0.5, QUICK)


# No signal, no word.


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.memory, self.head = kind(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0].mean(1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_refused_by_name_unless_others_are_named(kind: type[nn.Module]) -> None:
    network, x = Recurrent(kind).eval(), inputs_of(30, 4, 8)
    with pytest.raises(ValueError, match=f"'memory' of type {kind.__name__}"):
        evolve(network, x, 0.5, QUICK)
    student = evolve(network, x, {"head": 0.5}, QUICK).student
    assert sparsity(student, {"head": student.head}) == 0.5


def test_the_default_divergence_sees_a_regressor_and_kl_is_refused_for_it() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).eval(), inputs_of(60, 6)
    evolved = evolve(network, x, 0.5, QUICK)
    assert evolved.history.divergence.min() > 0
    with pytest.raises(ValueError, match=r"divergence is 0\.0 .* name a divergence"):
        evolve(network, x, 0.5, QUICK, divergence=delib.nn.kl)


def test_the_default_divergence_goes_by_the_outputs() -> None:
    a, b = inputs_of(7, 5), inputs_of(7, 5, seed=1)
    assert torch.equal(fitting(a, b), delib.nn.kl(a, b))
    assert torch.allclose(fitting(a.softmax(1), b.softmax(1)), delib.nn.kl(a, b), rtol=1e-4)
    assert torch.allclose(fitting(a[:, :1], b[:, :1]), mse(a[:, :1], b[:, :1]) / b[:, :1].square().mean())
    both = fitting({"p": a, "q": (a[None],)}, {"p": b, "q": (b[None],)})
    assert torch.allclose(both, delib.nn.kl(a, b) + mse(a, b) / b.square().mean())
    assert fitting(a, a) == fitting((a[None],), (a[None],)) == 0
    with pytest.raises(ValueError, match="no floating-point tensors"):
        fitting(torch.ones(3, dtype=torch.long), torch.ones(3, dtype=torch.long))


# What gave tracebacks.


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(self.embedding(x)))).mean(1)


@pytest.mark.filterwarnings("ignore:left dense")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_takes_token_ids(criterion: str) -> None:
    torch.manual_seed(0)
    network, tokens = Text().eval(), torch.randint(0, 30, (40, 6))
    student = evolve(network, tokens, 0.5, Cycle(population=4, share=0.3, criterion=CRITERIA[criterion])).student
    assert sparsity(student) == pytest.approx(0.5, abs=0.02)
    compress(network, tokens, {"body": 0.5}, divergence=fitting)


@pytest.mark.parametrize("compensate", [False, True])
def test_weights_may_lie_in_memory_in_any_order(compensate: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    plain = nn.Sequential(*layers).eval()
    strided = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    strided[5].weight.data = strided[5].weight.data.t().contiguous().t()
    x, cycle = inputs_of(20, 3, 9, 9), Cycle(population=4, share=0.3, compensate=compensate)
    one, other = (evolve(network, x, 0.5, cycle, divergence=mse).student for network in (plain, strided))
    assert sparsity(one) == pytest.approx(0.5, abs=0.01)
    for name, layer in weight_layers(one).items():
        assert torch.equal(layer.weight != 0, other.get_submodule(name).weight != 0)


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_state_that_is_no_tensor_stays_with_the_network() -> None:
    network = nn.Sequential(Extra(8, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    evolved = evolve(network, inputs_of(20, 8), 0.5, QUICK)
    assert sparsity(evolved.at_cycle(1)) > 0
    held = delib.decode(delib.encode(delib.quantize(evolved.student))).network(like=network)
    assert held.state_dict()["0._extra_state"] == {"version": 1}


def test_a_compiled_network_is_evolved_and_a_scripted_one_refused() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), inputs_of(20, 8)
    compiled = torch.compile(network, backend="eager")
    student = evolve(compiled, x, 0.5, QUICK).student
    assert torch.equal(student[0].weight, evolve(network, x, 0.5, QUICK).student[0].weight)
    assert set(quantize(compiled)) == set(network.state_dict())
    assert sparsity(compress(compiled, x, {"0": 0.5})[0]) == pytest.approx(1 / 3, abs=0.01)
    assert set(allocate(compiled, x, 0.3)) == {"0", "2"}
    with pytest.raises(ValueError, match="TorchScript"):
        evolve(torch.jit.trace(network, x), x, 0.5, QUICK)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), training=True)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.a(y)


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (Noisy(), inputs_of(20, 8), "differently each time"),
        (TwoInputs(), inputs_of(20, 8), "does not take the inputs.*missing 1 required"),
        (TwoInputs(), (inputs_of(20, 8), inputs_of(20, 8)), "one tensor .* got tuple"),
        (nn.Linear(8, 4), inputs_of(20, 7), "does not take the inputs.*shapes cannot be multiplied"),
    ],
)
def test_networks_that_cannot_be_asked_are_refused_in_one_line(network: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evolve(network, inputs, 0.5, QUICK)
    assert "\n" not in str(caught.value)


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised whenever it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def test_layers_that_compute_something_else_are_not_reconstructed() -> None:
    network = nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.raises(ValueError, match="'0', a Standardised, answers with something else"):
        compress(network, inputs_of(20, 3, 8, 8), {"0": 0.5})
    assert sparsity(evolve(network, inputs_of(20, 3, 8, 8), 0.5, QUICK).student) == pytest.approx(0.5, abs=0.01)


def test_sensitivities_are_those_of_the_outputs_themselves_where_the_next_module_works_in_place() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)]
    network = nn.Sequential(*layers).eval()
    in_place = copy.deepcopy(network)
    in_place[1].inplace = in_place[3].inplace = True
    x = inputs_of(30, 2, 8, 8)
    one, other = (sensitivities(n, weight_layers(n), x, fitting) for n in (network, in_place))
    for name, rows in one.items():
        assert torch.allclose(rows, other[name], rtol=1e-4)


def test_a_recovery_that_revives_the_dead_claims_no_sparsity_that_is_not_there() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()

    def revive(student: nn.Module, teacher: nn.Module, *, seed: int) -> None:
        for parameter in student.parameters():
            parameter.data.add_(0.01)

    evolved = evolve(network, inputs_of(40, 8), 0.5, QUICK, recovery=revive)
    assert sparsity(evolved.student) == evolved.sparsities[-1] == 0.5
