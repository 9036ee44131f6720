"""The `cavsam` command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cavsam.errors import CavSamError, InvalidReference
from cavsam.evaluation import evaluate
from cavsam.images import Mask, read_image, read_mask, write_mask
from cavsam.options import add_method_arguments, add_source_arguments, announce, recipe_of, sources_of
from cavsam.shell import add_completion, add_version, completion_script, until_reader_leaves
from cavsam.types import Reference

DONE, SOME_FAILED, REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 when some targets failed, or 2 when nothing could be done."""
    # threads that spin while they wait starve each other on shared cores; only heeded before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    return until_reader_leaves(lambda: run_command("cavsam", parser.parse_args(arguments)))


def run_command(name: str, options: argparse.Namespace) -> int:
    """Run a parsed command; what goes wrong becomes a sentence on stderr and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options))
    except CavSamError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        raise  # whoever read what we print went away
    except OSError as error:
        # a full disk, or a folder that is not ours
        place = error.filename or "A file"
        print(f"{name}: {place}: {error.strerror or error}; make room or choose another folder.", file=sys.stderr)
        return REFUSED
    except (RuntimeError, MemoryError) as error:
        # mostly a GPU without memory left, before any target was begun
        logging.getLogger("cavsam").debug("the computation failed", exc_info=True)
        print(f"{name}: The computation failed ({error}); try --device cpu or a smaller recipe.", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line of every subcommand."""
    parser = argparse.ArgumentParser(prog="cavsam", description=__doc__)
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    segment = commands.add_parser("segment", help="segment targets after one annotated reference image")
    segment.add_argument("reference", metavar="REFERENCE", help="image with a known object")
    segment.add_argument("mask", metavar="MASK", help="its mask: bright where the object is, same size")
    segment.add_argument("targets", metavar="TARGET", nargs="+", help="images to segment")
    segment.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for masks and results.json")
    segment.add_argument("--class-name", metavar="TEXT", default="object", help="what the object is (default: object)")
    add_method_arguments(segment)
    segment.set_defaults(run=run_segment)

    explain = commands.add_parser("explain", help="segment one target and show what happened inside, as one HTML page")
    explain.add_argument("reference", metavar="REFERENCE", help="image with a known object")
    explain.add_argument("mask", metavar="MASK", help="its mask: bright where the object is, same size")
    explain.add_argument("target", metavar="TARGET", help="image to segment")
    explain.add_argument("--out", metavar="FILE", type=Path, required=True, help="the page, such as report.html")
    explain.add_argument("--class-name", metavar="TEXT", default="object", help="what the object is (default: object)")
    add_method_arguments(explain)
    explain.set_defaults(run=run_explain)

    evaluate_parser = commands.add_parser("evaluate", help="measure the modes on the paper's sets, where they lie")
    evaluate.add_arguments(evaluate_parser)
    evaluate_parser.set_defaults(run=evaluate.run)

    download = commands.add_parser("download", help="fetch the models ahead of their first use")
    add_source_arguments(download)
    download.set_defaults(run=run_download)

    completion = add_completion(commands, parser)
    completion.set_defaults(run=lambda options: print(completion_script(parser, options.shell)) or DONE)
    return parser


def run_download(options: argparse.Namespace) -> int:
    """Fetch both models and say where they lie."""
    from cavsam.weights.loading import download

    for path in download(sources_of(options)):
        print(path)
    return DONE


def run_segment(options: argparse.Namespace) -> int:
    """Segment every target, write masks and results.json."""
    recipe, sources = recipe_of(options, options.mode), sources_of(options)
    reference = _read_reference(options.reference, options.mask, options.class_name)
    outputs = _output_files(options.targets, options.out, [options.reference, options.mask])
    announce(sources, recipe)

    from tqdm import tqdm

    from cavsam.pipeline import CavSam

    model = CavSam.from_pretrained(sources, device=options.device, recipe=recipe)
    results = []
    with tqdm(total=len(options.targets) + 1, unit="image", disable=None) as bar:
        bar.set_description("reference")
        adapted = model.adapt([reference], class_name=options.class_name)
        bar.update()
        bar.set_description("targets")
        for result in model.segment(adapted, options.targets):
            target, output = options.targets[result.index], outputs[result.index]
            error = result.error
            if error is None:
                error = _write(result.masks.get(options.class_name, np.zeros(result.size, dtype=bool)), output)
            if error is not None:
                tqdm.write(f"cavsam: {target}: {error}", file=sys.stderr)
            results.append(
                {
                    "target": target,
                    "mask": None if error else str(output),
                    "score": None if error else result.scores[options.class_name],
                    "seconds": round(result.seconds, 3),
                    "error": error,
                }
            )
            # after every target, so that an interrupted run keeps what it has
            _write_json(results, options.out / "results.json")
            bar.update()
    return SOME_FAILED if any(entry["error"] for entry in results) else DONE


def run_explain(options: argparse.Namespace) -> int:
    """Segment one target with a trace and write the page that shows it."""
    recipe, sources = recipe_of(options, options.mode), sources_of(options)
    reference = _read_reference(options.reference, options.mask, options.class_name)
    target = read_image(options.target)
    _check_output_file(options.out, [options.reference, options.mask, options.target])
    announce(sources, recipe)

    from tqdm import tqdm

    from cavsam.observe.explain import Context, render
    from cavsam.observe.trace import Trace
    from cavsam.pipeline import CavSam

    model = CavSam.from_pretrained(sources, device=options.device, recipe=recipe)
    trace = Trace()
    with tqdm(bar_format="{desc} ({elapsed})", disable=None) as bar:

        def tell(step: str, done: int, total: int) -> None:
            bar.set_description_str(f"{step} {done}/{total}")

        adapted = model.adapt([reference], class_name=options.class_name, progress=tell, trace=trace)
        reference_steps = len(trace.steps)
        (result,) = model.segment(adapted, [target], progress=tell, trace=trace)
    if result.error:
        raise CavSamError(result.error)
    names = Path(options.reference).name, Path(options.target).name
    device = str(model.tracker.device)
    context = Context(reference, target, *names, result, recipe, sources, device, reference_steps)
    _write_text(render(trace, context), options.out)
    return DONE


def _read_reference(image: str, mask: str, label: str) -> Reference:
    if not label.strip():
        raise InvalidReference("The class name is empty; leave --class-name out or say what the object is.")
    return Reference(read_image(image), {label: read_mask(mask)})


def _output_files(targets: Sequence[str], folder: Path, inputs: Sequence[str]) -> list[Path]:
    """One file per target, `<stem>.png`; a stem that comes again gets a number. Makes the folder.

    Raises:
        CavSamError: the folder cannot be written, or a mask would overwrite one of the inputs.
    """
    _make_folder(folder)
    stems = [Path(target).stem for target in targets]
    names: list[str] = []
    for stem in stems:
        name, number = stem, 2
        while name in names or (name != stem and name in stems):
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    outputs = [folder / f"{name}.png" for name in names]
    precious = {Path(source).resolve() for source in [*targets, *inputs]}
    for output in outputs:
        if output.resolve() in precious:
            raise CavSamError(f"The mask {output} would overwrite an input image; choose another --out.")
    return outputs


def _check_output_file(path: Path, inputs: Sequence[str]) -> None:
    """Make the folder of an output file; raises `CavSamError` where it cannot be written or is one of the inputs."""
    if path.is_dir():
        raise CavSamError(f"{path} is a folder; name a file for --out, such as {path / 'report.html'}.")
    if path.resolve() in {Path(source).resolve() for source in inputs}:
        raise CavSamError(f"The page {path} would overwrite an input image; choose another --out.")
    _make_folder(path.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # found out now, and not after the models have worked
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CavSamError(f"The folder {folder} cannot be written ({error.strerror}); choose another --out.") from error


def _write(mask: Mask, path: Path) -> str | None:
    """Write a mask; why it could not be written, or None."""
    try:
        write_mask(mask, path)
    except OSError as error:
        return f"The mask {path} cannot be written ({error.strerror or error}); make room or choose another --out."
    return None


def _write_json(value: Any, path: Path) -> None:
    _write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def _write_text(text: str, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise CavSamError(f"{path} cannot be written ({error.strerror}); make room or choose another --out.") from error


if __name__ == "__main__":
    sys.exit(main())
