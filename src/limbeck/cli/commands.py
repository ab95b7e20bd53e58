"""The commands: what they take; what they do is imported when they are called."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck import __version__

from .output import complain, rendered, say, say_json, stdout_kept

__all__ = ["app"]

app = typer.Typer(
    name="limbeck",
    help="Turn a big model into a small one that ships, and prove what was kept and what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name (limbeck list), or a .yaml file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Set an option, such as stages.student.epochs=3; may be given again.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of the progress.")]


def _version(asked: bool) -> None:
    if asked:
        say(f"limbeck {__version__}")
        raise typer.Exit


@app.callback()
def _limbeck(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """What every command shares."""


@app.command()
def run(
    recipe: RecipeName,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder; runs/NAME unless given.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe: train, distil, export, quantize, check, measure, report. What is done already is reused."""
    from .running import run_and_tell

    run_and_tell(recipe, sets or [], out, json=json, quiet=quiet)


@app.command()
def check(
    recipe: RecipeName,
    sets: Sets = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Put one batch through everything too, and name what silently ruins a distillation; faults exit with 2.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="With --dry: the run whose trained teachers are asked; runs/NAME unless given.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check everything about a recipe that can be checked without training."""
    from .checking import check_and_tell

    code = check_and_tell(recipe, sets or [], out, dry=dry, json=json, quiet=quiet)
    if code:
        raise typer.Exit(code)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the built-in recipes, and every part by its slot."""
    from limbeck.pipeline import catalog

    parts, recipes = catalog.parts(), catalog.recipes()
    if json:
        say_json({"recipes": recipes, "parts": {slot: {part.name: part.doc for part in parts if part.slot == slot} for slot in {p.slot: 0 for p in parts}}})
        return
    from .showing import listing

    say(rendered(listing(recipes, parts)))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A part, such as response.kd or models.cnn, or a built-in recipe.")], json: Json = False
) -> None:
    """Show a part (what it is, its paper, options and needs) or a built-in recipe's YAML."""
    from limbeck.pipeline import catalog

    found = catalog.describe(name)
    if isinstance(found, str):
        if json:
            say_json({"recipe": name, "yaml": found})
        else:
            say(found.rstrip())
        return
    if json:
        say_json(found.as_dict())
        return
    from .showing import part_page

    say(rendered(part_page(found)))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors that complete and check YAML by one."""
    from limbeck.pipeline import catalog

    say_json(catalog.schema())


@app.command()
def report(runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")], json: Json = False) -> None:
    """Write report.html from a run's files, anew."""
    from limbeck.report import write

    written = [str(write(folder)) for folder in runs]
    if json:
        say_json({"reports": written})
    else:
        say("\n".join(written))


@app.command()
def compare(
    recipe: RecipeName,
    methods: Annotated[str, typer.Option("--methods", metavar="all|A,B", help="Objectives by name; all that apply unless given.")] = "all",
    seeds: Annotated[int, typer.Option(min=2, help="Paired runs of each method.")] = 5,
    factors: Annotated[str, typer.Option(metavar="F,F", help="What each method's usual weight is multiplied by when it is tuned on validation.")] = "0.1,1,10",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process with one thread.")] = 1,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The comparison's folder; runs/NAME-compare unless given.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on a recipe's student: same steps, same tuning budget, paired seeds, tested against plain distillation and none."""
    from .comparing import compare_and_tell

    compare_and_tell(recipe, methods, seeds, factors, jobs, sets or [], out, json=json, quiet=quiet)


@app.command()
def measure(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Stages' folders, such as runs/digits/stages/int8; ratios are to the first.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of each model.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of measurement for each model.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the throughput.")] = 32,
    json: Json = False,
) -> None:
    """Measure the size and speed of artifacts side by side, and print it; nothing is written."""
    from .measuring import measure_and_tell

    measure_and_tell(artifacts, threads=threads, seconds=seconds, batch=batch, json=json)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A stage's folder, such as runs/digits/stages/student.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUTS...", help="Image files, or .npy and .npz of raw images.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show of each.")] = 1,
    json: Json = False,
) -> None:
    """Say which class each image is, and how probable that is."""
    from limbeck.pipeline.predict import predict as ask

    with stdout_kept():
        found = ask(artifact, inputs)
    if json:
        say_json({"artifact": str(artifact), "predictions": [one.as_dict() for one in found]})
        return
    for one in found:
        ranked = sorted(one.probabilities.items(), key=lambda pair: -pair[1])[:top]
        say(f"{one.input}{'' if one.index is None else f'[{one.index}]'}  {'  '.join(f'{name} {share:.1%}' for name, share in ranked)}")


@app.command()
def clean(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run's folder; every one under runs/ unless given.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    json: Json = False,
) -> None:
    """List what runs keep beside their results (shelved stages, unfinished work), and remove it with --yes."""
    from limbeck.pipeline.clean import clean as remove
    from limbeck.pipeline.clean import leftovers, runs_under

    from .figures import file_size

    folders = runs_under(Path("runs")) if run is None else [run]
    found = [one for folder in folders for one in (remove(folder) if yes else leftovers(folder))]
    total = sum(one.bytes for one in found)
    if json:
        say_json({"removed": yes, "bytes": total, "leftovers": [{"path": str(one.path), "what": one.what, "bytes": one.bytes} for one in found]})
        return
    for one in found:
        say(f"{file_size(one.bytes):>8}  {one.path}  {one.what}")
    if not found:
        say("nothing to clean")
    elif yes:
        say(f"{file_size(total):>8}  removed")
    else:
        say(f"{file_size(total):>8}  in all")
        complain("limbeck clean --yes removes these; finished stages stay", prefix="")
