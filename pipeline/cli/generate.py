"""`slipway generate`: the engine loop without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("generate")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prompt", "texts", multiple=True, help="a text to complete; may be repeated")
@click.option(
    "--prompt-ids", "id_lists", multiple=True, help="token ids to complete, as in 5,17,9; may be repeated"
)
@click.option(
    "--audio",
    "audio_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="a .wav or .npy file to transcribe; may be repeated",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="an image, for models that see; may be repeated, once for each place in the prompts",
)
@click.option(
    "--begin-with",
    "beginning",
    help="what completions of an encoder-decoder begin with, such as a language  [default: as the checkpoint says]",
)
@click.option("--max-tokens", type=int, default=32, show_default=True, help="tokens to generate at most")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token"
)
@click.option("--top-k", type=int, default=0, show_default=True, help="sample among the k likeliest; 0: all")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="then among the likeliest that sum to p"
)
@click.option(
    "--min-p", type=float, default=0.0, show_default=True, help="no token below this share of the first"
)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1: none")
@click.option(
    "--seed", type=int, help="the same seed gives the same tokens, whatever the company  [default: drawn]"
)
@click.option("--ignore-eos", is_flag=True, help="go on past the model's end tokens")
@click.option("--threads", type=click.IntRange(min=0), help="0: all cores  [default: as built]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a prompt and line")
def command(
    folder: Path,
    texts: tuple[str, ...],
    id_lists: tuple[str, ...],
    audio_files: tuple[Path, ...],
    images: tuple[Path, ...],
    beginning: str | None,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Complete prompts with the engine built in DIR; all of them run as one batch in flight.

    The text of a single prompt is written as it comes.
    Results come in the order of the prompts: texts first, then token ids, then audio. Exit code 1 when one ended in
    an error. Of an encoder-decoder, prompts are what its encoder reads. Images take the places that the prompts have
    for them (<image>), in order.
    """
    import json
    import sys

    from model_repo.runtime.request import SamplingParams
    from pipeline.generate import generate, parse_ids, to_dict

    prompts: list[str | tuple[int, ...] | Path] = [
        *texts,
        *(parse_ids(text) for text in id_lists),
        *audio_files,
    ]
    streams = len(prompts) == 1 and not as_json
    pieces: list[str] = []

    def stream(text: str) -> None:
        """Writes each piece of a single prompt's text when it comes, the first after the prompt."""
        click.echo(("" if pieces else _shown(prompts[0])) + text, nl=False)
        pieces.append(text)

    completions = generate(
        folder,
        prompts,
        SamplingParams(**sampling),
        threads,
        stream if streams else None,
        images,
        beginning,
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        if as_json:
            click.echo(json.dumps(to_dict(completion), ensure_ascii=False))
            continue
        click.echo("" if streams else f"{_shown(prompt)}{completion.text}")
        first = completion.seconds_to_first_token
        rate = f"first after {first:.3f} s" if first is not None else completion.error or "no token"
        click.echo(
            f"[{len(completion.token_ids)} tokens in {completion.seconds:.3f} s, {rate}, "
            f"{completion.finish_reason}]",
            err=True,
        )
    if any(completion.error is not None for completion in completions):
        sys.exit(1)


def _shown(prompt: str | tuple[int, ...] | Path) -> str:
    if isinstance(prompt, Path):
        return f"{prompt}: "
    return prompt if isinstance(prompt, str) else str(list(prompt))
