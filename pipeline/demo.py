"""`make demo`: both demo models built, served by one real tritonserver, and talked to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from .builder import build
from .publish import publish
from .recipe import Recipe
from .serve import Server, interrupt_on_sigterm, server

if TYPE_CHECKING:
    from .client import Chunk
    from .stages import Progress

DECODER, ENCODER = "demo", "minilm"
OPENING = "The old man"
PROMPTS = (
    "The old man",
    "It was a dark evening, and",
    "She looked at her sister and said",
    "The captain of the ship",
    "My dear friend,",
    "In the garden there was",
    "The soldiers marched",
    '"I cannot believe it," said',
)
SAMPLING: dict[str, Any] = {"temperature": 0.65, "top_k": 40, "repetition_penalty": 1.15}
SENTENCES = (
    "A ship sailed across the stormy sea.",
    "The boat crossed the ocean in bad weather.",
    "She baked bread in the kitchen.",
    "Fresh loaves came out of the oven.",
)
NEW_TOKENS = 64


@dataclass(frozen=True)
class Told:
    """One streamed completion."""

    prompt: str
    chunks: tuple[Chunk, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens generated."""
        return sum(chunk.num_output_tokens for chunk in self.chunks)

    @property
    def seconds_to_first_token(self) -> float:
        """From sending the request to the first response."""
        return self.chunks[0].seconds


def run_demo(output: Path, progress: Progress | None = None, svg: Path | None = None) -> None:
    """Builds both models below `output`, serves them from `output`/repository and shows what they do.

    `svg` gets a picture of what was printed. Raises what `build`, `emit` and `server` raise.
    """
    interrupt_on_sigterm()
    console = Console(record=svg is not None, highlight=False, width=100 if svg else None)
    begin = time.perf_counter()
    repository = _one_repository(output, progress)
    with server(repository) as running:
        ready = time.perf_counter() - begin
        console.print(
            f"[bold]tritonserver[/] serves {DECODER} and {ENCODER} on {running.http} and {running.grpc}\n"
        )
        alone = _stream_to(console, running)
        together, seconds = _eight_at_once(running)
        _show_together(console, together)
        _show_similarities(console, running)
        _show_figures(console, ready, alone, together, seconds)
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        console.save_svg(str(svg), title="make demo")


def _one_repository(output: Path, progress: Progress | None) -> Path:
    """Builds what changed; both engines go into one model repository."""
    from model_repo.emit import emit

    recipes = {name: Recipe.for_model(name) for name in (DECODER, ENCODER)}
    folders = [
        (name, build(recipe, output / name, progress=progress).folder) for name, recipe in recipes.items()
    ]
    repository, staged = output / "repository", output / ".staging-repository"
    emit(folders, staged, recipes[DECODER].serve)
    publish(staged, repository)
    return repository


def _stream_to(console: Console, running: Server) -> Told:
    """One completion, printed as it comes."""
    from .client import stream

    console.print(f"[bold]{OPENING}[/]", end="")
    chunks = []
    for chunk in stream(running.grpc, DECODER, text_input=OPENING, max_tokens=NEW_TOKENS, seed=7, **SAMPLING):
        console.print(chunk.text, end="", markup=False, soft_wrap=True)
        chunks.append(chunk)
    console.print("\n")
    return Told(OPENING, tuple(chunks))


def _eight_at_once(running: Server) -> tuple[list[Told], float]:
    """All prompts at the same time, each on a stream of its own; seconds for all of them."""
    from .client import stream

    def tell(numbered: tuple[int, str]) -> Told:
        seed, prompt = numbered
        chunks = stream(
            running.grpc,
            DECODER,
            text_input=prompt,
            max_tokens=NEW_TOKENS,
            seed=seed,
            ignore_eos=True,
            **SAMPLING,
        )
        return Told(prompt, tuple(chunks))

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        begin = time.perf_counter()
        told = list(pool.map(tell, enumerate(PROMPTS)))
        return told, time.perf_counter() - begin


def _show_together(console: Console, together: Sequence[Told]) -> None:
    table = Table("prompt", "goes on", title=f"{len(together)} streams at once", title_justify="left")
    table.add_column("first token", justify="right")
    for told in together:
        beginning = " ".join(told.text.split())[:42]
        table.add_row(told.prompt, f"{beginning} ...", f"{told.seconds_to_first_token * 1000:.0f} ms")
    console.print(table)


def _show_similarities(console: Console, running: Server) -> None:
    from .client import embed

    embeddings = embed(running.grpc, ENCODER, SENTENCES)
    table = Table("cosine similarity", title=f"embeddings of {ENCODER}", title_justify="left")
    for number in range(len(SENTENCES)):
        table.add_column(str(number + 1), justify="right")
    for number, (sentence, row) in enumerate(zip(SENTENCES, embeddings @ embeddings.T, strict=True)):
        table.add_row(f"{number + 1} {sentence}", *(f"{value:.2f}" for value in row))
    console.print(table)


def _show_figures(
    console: Console, ready: float, alone: Told, together: Sequence[Told], seconds: float
) -> None:
    table = Table("", "1 stream", f"{len(together)} streams", title="measured", title_justify="left")
    first = [told.seconds_to_first_token for told in together]
    alone_seconds = alone.chunks[-1].seconds
    table.add_row(
        "tokens/s",
        f"{alone.num_tokens / alone_seconds:.0f}",
        f"{sum(told.num_tokens for told in together) / seconds:.0f}",
    )
    table.add_row(
        "time to first token (median)",
        f"{alone.seconds_to_first_token * 1000:.0f} ms",
        f"{median(first) * 1000:.0f} ms",
    )
    console.print(table)
    console.print(f"Serving {ready:.1f} s after the start.")
