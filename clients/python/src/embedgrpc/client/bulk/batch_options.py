"""The options of a run over batch files of OpenAI's API, as far as the files decide them."""

import dataclasses

from embedgrpc.client.bulk.batch_requests import BATCH_FORMAT, ID, KEPT
from embedgrpc.client.bulk.inputs import Inputs
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.run_options import RunOptions


def for_batch_files(options: RunOptions) -> RunOptions:
    """Return the options for batch files: their columns are those of the format.

    Raises:
        UsageError: An option asks for what such files cannot hold.
    """
    if options.output_format not in ("", BATCH_FORMAT):
        raise UsageError(
            f"{BATCH_FORMAT} is answered in the same format, not {options.output_format}"
        )
    if options.id_column or options.keep != []:
        raise UsageError(f"{BATCH_FORMAT} has no --id-column and no --keep: lines keep their ids")
    for name in ("encoding", "representations"):
        if options.embed.get(name, "float32") not in ("float32", ["dense"]):
            raise UsageError(f"{BATCH_FORMAT} holds dense vectors of float32: leave out --{name}")
    changes = {"output_format": BATCH_FORMAT, "text_column": "text", "id_column": ID, "keep": KEPT}
    return dataclasses.replace(options, **changes)  # type: ignore[arg-type] # of several types


def as_requested(options: RunOptions, inputs: Inputs) -> RunOptions:
    """Return the options with the model and the dimensions that the requests name.

    Raises:
        UsageError: They differ, and no option decides.
    """
    requested = inputs.requested()
    models = {options.model or model for model, _ in requested}
    dimensions = {options.embed.get("dimensions") or size for _, size in requested}
    if len(models) > 1:
        raise UsageError(f"the requests name {len(models)} models: choose one with --model")
    if len(dimensions) > 1:
        raise UsageError("the requests name several dimensions: choose with --dimensions")
    embed = dict(options.embed)
    (size,) = dimensions
    if size:
        embed["dimensions"] = size
    return dataclasses.replace(options, model=models.pop(), embed=embed)
