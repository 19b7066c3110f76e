"""The command line: notebooks are run, reported, swept; networks planned, compressed, encoded, decoded, inspected."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

import delib
from delib.files import check_output
from delib.suite.runner import JOBS

Profile = Annotated[
    Literal["smoke", "quick", "paper"], typer.Option(help="smoke: seconds; quick: minutes; paper: a GPU or a night.")
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"delib {delib.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Directed Evolution for sparsifying and compressing neural networks."""


class PairCommand(TyperCommand):
    """A command whose ``-p name value`` takes two words (typer's own lists take one: ``-p name=value`` works too)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, joined = iter(args), []
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter"):
                name = next(words, None)
                if name is not None:
                    joined.append(name if "=" in name else f"{name}={next(words, '')}")
        return super().parse_args(ctx, joined)


@app.command(cls=PairCommand)
def run(
    notebook: Annotated[str, typer.Argument(help="A notebook's path, or its name in notebooks/, such as 01_mnist.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", "--parameter", metavar="NAME VALUE")] = None,
    profile: Profile = "quick",
    into: Annotated[str | None, typer.Option(help="Folder of reports/ for the results.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run even if nothing changed.")] = False,
) -> None:
    """Run one notebook. With -p, results go to reports/<profile>-custom unless --into names another folder."""
    from delib.suite import runner
    from delib.suite.progress import Progress

    given = {}
    for pair in parameter or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"`{pair}` has no value; write -p {pair} VALUE")
        given[name] = value
    result = runner.run(notebook, profile, given, into=into, text=True, force=force, progress=Progress())
    typer.echo(f"{'up to date' if result.reused else 'done'}: {result.notebook}")
    typer.echo(f"record: {result.record}")


@app.command()
def report(
    profile: Profile = "quick",
    force: Annotated[bool, typer.Option("--force", help="Run every notebook even if nothing changed.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks that run at a time.")] = JOBS,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    slides: Annotated[bool, typer.Option("--slides", help="Make slides of every notebook too.")] = False,
) -> None:
    """Run what changed of all notebooks, then compile reports/<profile>/index.html and print its path."""
    from delib.suite import report, runner
    from delib.suite.progress import Progress
    from delib.suite.record import report_folder

    if (meanwhile := report_folder("reference") / "index.html").is_file():
        typer.echo(f"to look at meanwhile: {meanwhile}", err=True)
    runner.run_all(profile, force=force, jobs=jobs, progress=Progress())
    index = report.compile_report(profile, slides=slides)
    typer.echo(str(index))
    if show:
        typer.launch(index.as_uri())


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help="A notebook's path, or its name in notebooks/, such as 01_mnist.")],
    grid: Annotated[list[str], typer.Option(metavar="NAME=A,B,C", help="Values of a parameter; may be given again.")],
    profile: Profile = "quick",
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at a time on this machine.")] = JOBS,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler, whose workers run the cells.")] = "",
    into: Annotated[str, typer.Option(help="Folder of reports/ for table and page.")] = "",
) -> None:
    """Run a notebook with every combination of values; run again, only what is missing or changed is run."""
    from delib.suite import grid as grids
    from delib.suite.progress import Progress

    values = grids.grid_of(grid)
    swept = grids.sweep(notebook, values, profile, into=into, jobs=jobs, scheduler=scheduler, progress=Progress())
    for cell, error in swept.failed.items():
        typer.echo(f"stopped: {cell}: {error}", err=True)
    typer.echo(f"{swept.done} done, {swept.reused} up to date, {len(swept.failed)} stopped")
    typer.echo(f"table: {swept.table}\n{swept.page}")
    if swept.failed:
        raise typer.Exit(1)


@app.command()
def site(
    out: Annotated[Path, typer.Argument(help="The folder to write anew.")] = Path("site"),
    run: Annotated[str, typer.Option(help="Whose report, a folder of reports/.")] = "reference",
) -> None:
    """Write a site for any static host: the report, the documents, and a page that runs Python in the browser."""
    from delib.coding import load
    from delib.data import PYODIDE_FILES
    from delib.files import project_root
    from delib.suite.site import build_site

    name, layer, block = "yolov3-tiny-s90-b4", "c13.weight", (slice(64), slice(128), 0, 0)
    tensor: Any = load(project_root() / "data" / "students" / f"{name}.delib")[layer]
    weights = tensor.dense()[block]
    whole = (127 * weights / abs(weights).max()).round().astype(int)  # three digits are enough to look at
    typer.echo(str(build_site(out, run, PYODIDE_FILES.fetch(), layer, whole.tolist())))


@app.command()
def reference() -> None:
    """Take the quick report over as reports/reference, and its numbers into README's table of claims."""
    from delib.suite import report

    typer.echo(str(report.publish_reference()))


@app.command()
def badges(address: Annotated[str, typer.Argument(help="https://github.com/OWNER/NAME.")]) -> None:
    """Put badges for Binder and Colab into the README, and notebooks that install themselves in Colab into colab/."""
    from delib.suite.badges import write_badges

    for path in write_badges(address):
        typer.echo(str(path))


@app.command()
def compress(
    network: Annotated[str, typer.Argument(help="package.module:function, torchvision:NAME, or ultralytics:FILE.")],
    inputs: Annotated[
        str, typer.Argument(help="A .npy, .npz or .safetensors file, a folder of images, or a function as above.")
    ],
    out: Annotated[Path, typer.Argument(help="The .delib file to write.", callback=check_output)],
    weights: Annotated[str, typer.Option(help="The network's state dict: .safetensors, .pt or .pth.")] = "",
    sparsity: Annotated[float, typer.Option(min=0, max=0.999, help="Share of the weights that is zeroed.")] = 0.9,
    bits: Annotated[int, typer.Option(min=1, max=16, help="Bits per survivor.")] = 4,
    recipe: Annotated[
        Literal["brief", "standard", "thorough"], typer.Option(help="500, 2,000 or 20,000 steps of distillation.")
    ] = "standard",
    steps: Annotated[int | None, typer.Option(min=0, help="As many steps instead.")] = None,
) -> None:
    """Compress a network of your own into one .delib file, which `decode` gives back for the plain network."""
    from delib.data import load_inputs, load_network
    from delib.distillation import RECIPES

    teacher, examples = load_network(network, weights), load_inputs(inputs)
    chosen = RECIPES[recipe] if steps is None else replace(RECIPES[recipe], steps=steps)
    typer.echo(_cost(teacher, examples, chosen), err=True)
    held = delib.compress(teacher, examples, sparsity, bits, recipe=chosen)
    size = held.save(out)
    ratio = held.float32_bytes / size
    typer.echo(f"{out}: {size:,} bytes, {ratio:.1f} times smaller than float32, {held.sparsity:.2%} zeros")


def _cost(network: Any, inputs: Any, recipe: Any) -> str:
    """What compressing it takes, measured on two steps."""
    from delib.distillation import cost

    seconds, memory = cost(network, inputs, recipe)
    return f"about {seconds / 60:.1f} minutes, and {memory / 1e9:.1f} GB of memory beside the libraries"


@app.command()
def encode(
    weights: Annotated[Path, typer.Argument(help="A state dict as .safetensors; its zeros are the pruned weights.")],
    out: Annotated[Path, typer.Argument(help="The .delib file to write.", callback=check_output)],
    bits: Annotated[int, typer.Option(min=1, max=16, help="Bits per survivor.")] = 4,
    method: Annotated[
        str,
        typer.Option(help="How levels are placed: kmeans, uniform, power (of two), or coded, the better of the two."),
    ] = "coded",
) -> None:
    """Quantise the survivors of every weight and write the network as one .delib file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from delib.coding import LevelTensor, quantize_tensors

    try:
        state = load(weights.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{weights}: not a .safetensors file ({error})") from None
    network = quantize_tensors(state, bits, method)
    size = network.save(out)
    # What numpy does not know, and all weights with levels, whichever floats they were.
    float32 = {name for name, t in network.items() if isinstance(t, LevelTensor) or t.dtype == "float32"}
    others = {str(state[name].dtype).removeprefix("torch.") for name in float32} - {"float32"}
    said = f"; tensors of {', '.join(sorted(others))} were read as float32 and come back so" if others else ""
    typer.echo(f"{out}: {size:,} bytes, {network.float32_bytes / size:.1f} times smaller than float32{said}")


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="A .delib file.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.", callback=check_output)],
) -> None:
    """Write the network of a .delib file as a plain state dict."""
    from safetensors.numpy import save

    from delib.files import write_bytes

    write_bytes(out, save(_dense(file)))
    typer.echo(str(out))


def _dense(file: Path) -> dict[str, Any]:
    """The plain state dict of a .delib file."""
    from delib.coding import LevelTensor, load

    return {name: t.dense() if isinstance(t, LevelTensor) else t for name, t in load(file).items()}


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A .delib file.")]) -> None:
    """Show what a .delib file holds: the total, then shape, sparsity, bits per survivor and bytes of each tensor."""
    import numpy as np

    from delib.coding import LevelTensor, load
    from delib.coding.container import sizes

    network, bytes_of, total = load(file), sizes(file.read_bytes()), file.stat().st_size
    row = "{:<28} {:>18} {:>9} {:>5} {:>12}".format
    dense, weights, zeros, rows = network.float32_bytes, 0, 0, [row("tensor", "shape", "sparsity", "bits", "bytes")]
    first: dict[int, str] = {}
    for name, tensor in network.items():
        if first.setdefault(id(tensor), name) != name:
            rows.append(row(name, f"= {first[id(tensor)]}", "", "", f"{bytes_of[name]:,}"))
            continue
        if isinstance(tensor, LevelTensor):
            array, bits = tensor.dense(), max(len(tensor.codebook) - 1, 1).bit_length()
            zero = array.size - int(np.count_nonzero(array))  # counted on the values, as a level may be zero itself
            weights, zeros, share = weights + array.size, zeros + zero, f"{zero / max(array.size, 1):.2%}"
        else:
            array, share, bits = tensor, "", 8 * tensor.itemsize
        rows.append(row(name, "×".join(map(str, array.shape)), share, bits, f"{bytes_of[name]:,}"))
    typer.echo(
        f"{total:,} bytes with header and checksum, {dense / total:.1f} times smaller than the {dense:,} of float32; "
        f"{zeros:,} of {weights:,} weights are zero ({zeros / max(weights, 1):.2%})"
    )
    typer.echo("\n".join(rows))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="A .delib file.")],
    out: Annotated[Path, typer.Argument(help="The file to write.", callback=check_output)],
    to: Annotated[
        Literal["darknet", "onnx"],
        typer.Option("--format", help="darknet: a .weights file and its .cfg, of a YOLOv3 or YOLOv3-tiny."),
    ] = "darknet",
    network: Annotated[str, typer.Option(help="For ONNX, the network that the file belongs to, as for compress.")] = "",
    inputs: Annotated[str, typer.Option(help="For ONNX, what the network takes, as for compress.")] = "",
) -> None:
    """Write the network of a .delib file in the format of another runtime."""
    if to == "darknet":
        _export_darknet(file, out)
        return
    from delib.coding import load
    from delib.data import export_onnx, load_inputs, load_network

    if not network or not inputs:
        raise typer.BadParameter("ONNX needs the network and an example of its inputs: --network and --inputs")
    export_onnx(load(file).network(like=load_network(network)), load_inputs(inputs), out)
    typer.echo(f"{out}: {out.stat().st_size:,} bytes; zeros take as much room and time as other values")


def _export_darknet(file: Path, out: Path) -> None:
    """Write it, and say how to run it there."""
    from delib.detection.zoo import export_darknet

    name, cfg = export_darknet(_dense(file), out)
    typer.echo(f"{out}: a {name} for any darknet runtime, described by {cfg}")
    typer.echo(f"darknet: darknet detector test coco.data {cfg} {out} PHOTO -thresh 0.25 -out found")
    typer.echo(f"OpenCV 4: cv2.dnn.readNetFromDarknet({str(cfg)!r}, {str(out)!r})")


@app.command()
def fetch(names: Annotated[list[str] | None, typer.Argument(help="Data sets; all if none is named.")] = None) -> None:
    """Get data sets and weights from the first source that answers, and verify them."""
    from delib.data import images, pyodide
    from delib.detection import coco, zoo

    known = images.FILE_SETS | zoo.FILE_SETS | coco.FILE_SETS | pyodide.FILE_SETS
    for name in names or [name for name, files in known.items() if not files.optional]:
        if name not in known:
            raise ValueError(f"there is no data set `{name}`; choose from {', '.join(known)}")
        typer.echo(f"{name}: {known[name].fetch()}")


@app.command()
def plan(
    what: Annotated[str, typer.Argument(help="A network as for compress, or a notebook as for run.")],
    inputs: Annotated[str, typer.Argument(help="What the network takes, as for compress; empty for a notebook.")] = "",
    weights: Annotated[str, typer.Option(help="The network's state dict, as for compress.")] = "",
    recipe: Annotated[Literal["brief", "standard", "thorough"], typer.Option(help="As for compress.")] = "standard",
    profile: Profile = "quick",
) -> None:
    """Say what compressing a network, or running a notebook, will take, from a few seconds of measuring."""
    from delib.data import load_inputs, load_network
    from delib.distillation import RECIPES

    if inputs:
        typer.echo(_cost(load_network(what, weights), load_inputs(inputs), RECIPES[recipe]))
    else:
        _plan_notebook(what, profile)


def _plan_notebook(notebook: str, profile: str) -> None:
    """What its distillation takes here, if it is a notebook of one network, and what earlier runs took."""
    from delib.data import load_inputs, load_network
    from delib.distillation import Recipe
    from delib.suite import runner
    from delib.suite.parameters import profile_parameters, read_parameters
    from delib.suite.record import past_runs

    path = runner.find_notebook(notebook)
    values = {name: parameter.default for name, parameter in read_parameters(path).items()}
    values |= profile_parameters(path, profile)
    measured = {"network", "inputs", "recipe"} <= values.keys()
    if measured:
        network = load_network(values["network"], values.get("weights", ""))
        typer.echo(_cost(network, load_inputs(values["inputs"]), Recipe(**values["recipe"])))
    past = past_runs(path.stem, profile)
    for run, seconds in past.items():
        typer.echo(f"reports/{run} took {seconds / 60:.1f} minutes; its record names the machine")
    if not measured and not past:
        raise ValueError(f"{path.stem} has not run in {profile} yet; `delib run {path.stem} --profile smoke` is brief")


def _terminated(*_: object) -> None:
    """SIGTERM tidies up as an interrupt does."""
    typer.echo("delib: terminated; the next call goes on from here", err=True)
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """The entry point: what goes wrong in our own ways becomes one line and exit code 1 (usage: 2).

    ``DELIB_DEBUG=1`` shows the traceback instead. What ends it, ends all that it began.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DELIB_DEBUG") == "1":
            raise
        typer.echo(f"delib: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)
