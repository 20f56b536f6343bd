"""`undertow extract`: what tuning changed in a model, as a LoRA."""

from pathlib import Path
from typing import Annotated

import typer

from undertow.checkpoints.files.destination import require_destination, require_elsewhere
from undertow.cli.model_option import MODEL_HELP, complete_model, find_model
from undertow.cli.named_files import require_model
from undertow.cli.notes import Notes
from undertow.cli.terminal import SafeConsole
from undertow.cli.train_lora import FormatName
from undertow.lookup import counted
from undertow.shortage import size_in_words


def extract(
    base: Annotated[
        str,
        typer.Argument(
            help=f"The model that was tuned. {MODEL_HELP}", autocompletion=complete_model, callback=find_model
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(help="What became of it.", autocompletion=complete_model, callback=find_model)
    ],
    destination: Annotated[Path, typer.Argument(help="A new file, which ends in .safetensors.")],
    rank: Annotated[int, typer.Option(min=1, help="Of each layer's update, at most: how much the LoRA can hold.")] = 32,
    format: Annotated[FormatName, typer.Option(help="Names in the file: sd-scripts', or PEFT's.")] = "kohya",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Extract a LoRA: what tuning changed in a model, as a small file that acts on the model from before.

    Says which share of the change the file holds, and what else differs: biases, norms and the VAE are in no LoRA. Of a
    model without text encoders the U-Net alone is compared.
    """
    require_elsewhere("DESTINATION", destination, [base, tuned])
    require_destination(destination, "ldm", overwrite=overwrite)
    require_model(base)
    require_model(tuned)
    from undertow.adapters.lora.beside import differences_beside, without_text
    from undertow.adapters.lora.extraction import as_lora, extract_lora, left_out_in_words, networks_of
    from undertow.adapters.lora.write import write_lora
    from undertow.loading import load

    console, notes = SafeConsole(), Notes()
    with console.status(f"loading {base}") as status:
        before, after = (load(source, quantize="none").model for source in (base, tuned))
        status.update("comparing every layer")
        beside, apart = tuple(differences_beside(before, after)), without_text(before, after)
        of_base, of_tuned = (networks_of(model, text=not apart) for model in (before, after))
        found = extract_lora(of_base, of_tuned, rank, beside=beside)
    write_lora(as_lora(found, before, after, destination.stem), destination, format=format)
    size, most = size_in_words(destination.stat().st_size), max(found.ranks)
    ranks = f"rank {most}" if min(found.ranks) == most else f"ranks {min(found.ranks)} to {most}"
    layers = f"{counted(len(found.ranks), 'layer')} of {ranks}"
    holds = f"{layers}, {size}; it holds {found.kept:.1%} of their change (squared)"
    console.print(f"wrote {destination}: {holds}", soft_wrap=True, markup=False, highlight=False)
    left_out = left_out_in_words(found.left_out) if found.left_out else ""
    for note in filter(None, (apart, left_out, *beside)):
        notes.add(note)
    if narrow := sum(held < rank for held in found.ranks):
        notes.add(f"--rank {rank} is more than {counted(narrow, 'layer')} can have, whose change is held exactly")
    notes.tell(SafeConsole(stderr=True))
