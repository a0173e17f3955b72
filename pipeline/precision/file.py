"""A graph's file converted to another, with the search on the inputs of its build."""

from __future__ import annotations

from pathlib import Path

from model_repo.runtime.errors import BadInput
from pipeline.graph import save_graph
from pipeline.parity.stepwise import comparable_graph
from pipeline.side_by_side import artifact, feeds_of

from .convert import convert
from .plan import Precision, plan
from .search import Search, search


def convert_file(
    source: Path, precision: Precision, output: Path, tolerance: float, inputs: Path | None = None
) -> Search:
    """Writes `source` in 16 bit to `output`, its weights beside it; gives what the search kept.

    A decoder's pools become no outputs: the operator writes to its inputs. Raises BadInput: not a graph, missing
    weights, nothing to convert, inputs that do not fit, an output file that is the source.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise BadInput(f"--output {output} is the graph itself; give another file")
    if output.suffix != ".onnx" or not output.parent.is_dir():
        raise BadInput(f"--output {output} is no .onnx file in a folder that exists")
    if source.is_dir():
        raise BadInput(f"{source} is a folder; give a graph in it, such as {source / 'fuse.onnx'}")
    known = artifact(source)
    model = comparable_graph(source)
    feeds = feeds_of(known.context, model, inputs)
    found = search(model, precision, feeds, tolerance)
    convert(model, plan(model, precision, found.kept))
    save_graph(model, output)
    return found
