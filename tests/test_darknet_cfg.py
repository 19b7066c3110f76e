"""Options of a darknet cfg: computed as the C program does, or refused by name; mutated files give one clear line."""

import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delib.detection.darknet import Darknet, MaxPool
from delib.detection.darknet_cfg import NEUTRAL, UNUSED, parse_cfg, read_cfg, yolov3_tiny_cfg

KINDS = ("net", "convolutional", "maxpool", "shortcut", "upsample", "route", "yolo")


def cfg(**more: str) -> str:
    """A network with every kind of layer, some of which have more options than they need, given as ``kind="a=1"``."""
    sections = {
        "net": "width=32\nheight=64\nchannels=3",
        "convolutional": "filters=18\nsize=3\npad=1\nactivation=leaky",
        "maxpool": "size=2\nstride=2",
        "shortcut": "from=-2\nactivation=linear",
        "upsample": "stride=2",
        "route": "layers=-1",
        "yolo": "mask=0,1,2\nanchors=10,14,23,27,37,58\nclasses=1\nnum=3",
    }
    order = ("net", "convolutional", "convolutional", "shortcut", "upsample", "maxpool", "route", "yolo")
    return "".join(f"[{kind}]\n{sections[kind]}\n{more.get(kind, '')}\n" for kind in order)


def build(text: str) -> Darknet:
    torch.manual_seed(0)
    return Darknet(parse_cfg(text, "my.cfg")).eval()


def outputs(text: str) -> torch.Tensor:
    with torch.no_grad():
        return build(text)(torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(1)))[0]


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r"my\.cfg") as refused:
        build(text)
    assert "\n" not in str(refused.value)
    return str(refused.value)


CHANGES = [
    *((kind, pair.partition("=")[0] + "=2") for kind in KINDS for pair in NEUTRAL.get(kind, "").split()),
    *((kind, f"{name}=1") for kind in KINDS for name in ("dontload", "dontloadscales", "numload")),
    ("yolo", "scale_x_y=1.05"),
    ("yolo", "nms_kind=diounms"),
    ("shortcut", "weights_type=per_feature"),
    ("shortcut", "weights_normalization=softmax"),
    ("upsample", "scale=0.5"),
    ("convolutional", "xnor=1"),
    ("convolutional", "share_index=0"),
    ("convolutional", "strides=2"),
    ("maxpool", "stride_x=1"),
    ("yolo", "map=coco.map"),
    ("yolo", "a_name_that_nobody_knows=0"),
    ("route", "reverse=1"),
]


@pytest.mark.parametrize(("kind", "option"), CHANGES)
def test_options_that_would_change_what_is_computed_are_refused_by_name(kind: str, option: str) -> None:
    message = refusal(cfg(**{kind: option}))
    name, value = option.split("=")
    assert name in message
    assert f"[{kind}]" in message
    assert value in message or "knows no option" in message


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_change_nothing_are_taken(kind: str) -> None:
    neutral = "\n".join(NEUTRAL.get(kind, "").split() + NEUTRAL[""].split())
    training = "\n".join(f"{name}=7" for name in UNUSED.get(kind, "").split() + UNUSED[""].split())
    text = cfg(**{kind: f"{neutral}\n{training}"})
    assert torch.equal(outputs(text), outputs(cfg()))
    assert build(text).heads == build(cfg()).heads


@pytest.mark.parametrize(
    "option", ["scale_x_y=1.0", "scale_x_y = 1 # as before", "nms_kind=greedynms", "new_coords=00"]
)
def test_neutral_values_may_be_written_in_several_ways(option: str) -> None:
    assert torch.equal(outputs(cfg(yolo=option)), outputs(cfg()))


@pytest.mark.parametrize(
    ("kind", "options", "same"),
    [
        ("yolo", "anchors=50,50,5,40,40,5\nclasses=9", ""),
        ("convolutional", "filters=36\nactivation=relu", ""),
        ("upsample", "stride=4", ""),
        ("upsample", "scale=1\nscale=3", ""),
        ("convolutional", "groups=3\ngroups=2", "groups=3"),
    ],
)
def test_of_an_option_given_twice_the_first_counts(kind: str, options: str, same: str) -> None:
    assert torch.equal(outputs(cfg(**{kind: options})), outputs(cfg(**{kind: same})))
    assert build(cfg(**{kind: options})).heads[0].anchors == ((10, 14), (23, 27), (37, 58))


def test_comments_in_any_encoding_are_read_over(tmp_path) -> None:
    path = tmp_path / "my.cfg"
    for comment in ("# größte Schärfe".encode("latin-1"), "; größte".encode(), b"# \x85 \xa0", "#\u2028x".encode()):
        path.write_bytes(b"\xef\xbb\xbf" + comment + b"\r\n" + cfg().replace("\n", "\r\n").encode())
        assert Darknet(read_cfg(path)).heads == build(cfg()).heads


def test_comments_behind_words_are_part_of_them_as_in_darknet() -> None:
    assert "activation" in refusal(cfg().replace("activation=leaky", "activation=leaky # slope 0.1", 1))
    assert "expected" in refusal(cfg().replace("[yolo]", "[yolo] # the head"))
    assert "YOLO" in refusal(cfg().replace("[yolo]", "[YOLO]"))


def test_sections_have_their_older_names() -> None:
    older = cfg().replace("[net]", "[network]").replace("[convolutional]", "[conv]").replace("[maxpool]", "[max]")
    assert torch.equal(outputs(older), outputs(cfg()))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("from=-2", "from=-2,-1", "from"),
        ("from=-2", "from=-1", ""),
        ("from=-2\nactivation=linear", "from=-2\nactivation=leaky", "linear"),
        ("layers=-1", "layers=-1,-2", "differ in height or width"),
        ("layers=-1", "layers=-1,-1", "channels"),
        ("layers=-1", "layers=4", ""),
        ("layers=-1", "layers=-1\ngroups=2\ngroup_id=2", "group_id"),
        ("layers=-1", "layers=99999999999999999999", "layers"),
        ("filters=18\nsize=3", "filters=18\nsize=3\nstride=2", "must be as many"),
        ("[route]", "[maxpool]\nsize=33\npadding=0\n[route]", "refused"),
        ("pad=1", "pad=0\npadding=1", ""),
        ("num=3", "num=2", "num"),
        ("channels=3", "channels=1", "channels must be 3"),
        ("[route]", "[route]\nlayers=0\n[yolo]\nclasses=13\nanchors=1,2\n[route]\nlayers=4", "classes must be 13"),
        ("num=3", "num=4", "num"),
        ("num=3", "", ""),
        ("mask=0,1,2\n", "", ""),
        ("37,58", "nan,58", "anchors"),
        ("37,58", "37,٣", "anchors"),
        ("37,58", "37,5_8", "anchors"),
        ("width=32\nheight=64", "width=65536\nheight=65536", "refused"),
        ("height=64", "height=0", "height"),
        ("stride=2\n\n[maxpool]", "stride=-2\n\n[maxpool]", "stride"),
    ],
)  # fmt: skip
def test_layers_are_built_if_they_fit_together(old: str, new: str, says: str) -> None:
    text = cfg().replace(old, new)
    assert text != cfg()
    if says:
        assert says in refusal(text)
    else:
        outputs(text)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_maxpool_pads_by_what_the_cfg_says(height: int, width: int, size: int, stride: int, padding: int) -> None:
    padding = min(padding, size - 1)
    rows, columns = ((side + padding - size) // stride + 1 for side in (height, width))
    if min(rows, columns) < 1:
        return
    x = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(height * 10 + width))
    # darknet, src/maxpool_layer.c: the offset is half the padding; what lies outside never wins.
    framed = np.full((height + 2 * size, width + 2 * size), -np.inf)
    framed[size : size + height, size : size + width] = x[0, 0]
    first = size - padding // 2
    tops, lefts = (range(first, first + n * stride, stride) for n in (rows, columns))
    expected = [[framed[i : i + size, j : j + size].max() for j in lefts] for i in tops]
    assert np.array_equal(MaxPool(size, stride, padding)(x)[0, 0].numpy(), np.float32(expected))


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 3]), st.sampled_from([0, 1]))
def test_convolutions_are_darknets(size: int, padding: int, stride: int, groups: int, pad: int) -> None:
    options = f"size={size}\nstride={stride}\npadding={padding}\npad={pad}\ngroups={groups}\nfilters=18"
    text = f"[net]\nwidth=6\nheight=5\nchannels=3\n[conv]\n{options}\nactivation=leaky\n[yolo]\n"
    network = build(text + "mask=0,1,2\nanchors=1,1,2,2,3,3\nclasses=1\nnum=3\n")
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = network(x[None])[0][0].numpy()
    # darknet, src/parser.c: `pad` overrules `padding`; src/convolutional_layer.c: the size of what comes out.
    p = size // 2 if pad else padding
    framed = np.pad(x.numpy(), ((0, 0), (p, p), (p, p)))
    rows, columns = (5 + 2 * p - size) // stride + 1, (6 + 2 * p - size) // stride + 1
    weight, bias = (tensor.detach().numpy() for tensor in (network.c0.weight, network.c0.bias))
    assert ours.shape == (18, rows, columns)
    for f in range(18):
        group = f * groups // 18
        seen = framed[group * (3 // groups) : (group + 1) * (3 // groups)]
        for i in range(rows):
            for j in range(columns):
                window = seen[:, i * stride : i * stride + size, j * stride : j * stride + size]
                value = (window * weight[f]).sum() + bias[f]
                assert ours[f, i, j] == pytest.approx(value if value > 0 else 0.1 * value, abs=1e-5)


VALUES = "0;1;-1;-2;-4;-9;2;3;7;16;63;255;1e9;x;999999999999999999999999;0,1;-1,8;nan;;é"
NAMES = "size;pad;padding;filters;groups;group_id;from;layers;mask;num;classes;anchors;height;activation;scale;é"


@pytest.mark.parametrize("base", [cfg(), yolov3_tiny_cfg()])
@given(st.randoms(use_true_random=False))
def test_a_mutated_cfg_is_refused_in_one_line_or_runs(base: str, chance: random.Random) -> None:
    lines = base.split("\n")
    for _ in range(chance.randint(1, 3)):
        i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                del lines[i]
            case 1:
                lines.insert(i, lines[j])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3:
                lines[i] = lines[i].split("=")[0] + "=" + chance.choice(VALUES.split(";"))
            case 4:
                lines.insert(i, f"{chance.choice(NAMES.split(';'))}={chance.choice(VALUES.split(';'))}")
        lines = lines or [""]
    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated, nothing computed
            network = Darknet(parse_cfg("\n".join(lines), "my.cfg"))
            network.decode(network(torch.empty(2, 3, *network.size)), network.size)
    except ValueError as refused:
        assert re.fullmatch(r"my\.cfg.{5,300}", str(refused))
