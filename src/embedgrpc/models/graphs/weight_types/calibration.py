"""Measures the activations of a float32 graph on a few texts.

Only the precision of the int8 graph depends on them: the range of each token is measured while
the graph runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.probe import run_sequences
from embedgrpc.models.sources.weight_file import WeightFile
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# Many scripts and kinds of text, since any model's tokens may come. ASCII, as escapes, for the
# same reason as the trial texts of the validation.
_TEXTS = (
    "hello",
    "How do I reset the password of my account?",
    "Skin friction on the flat plate fell by 20 % (p < 0.05) at Mach numbers from 1.6 to 3.2.",
    "In the spring, the two old friends walked along the river and spoke about their children.",
    "def main(argv): return [int(x) for x in argv[1:] if x.isdigit()]  # ids, not names",
    "La bibliothe\u0300que ouvre a\u0300 neuf heures. El ni\u00f1o ley\u00f3 tres libros.",
    "Der Zug nach M\u00fcnchen hat heute leider zwanzig Minuten Versp\u00e4tung.",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002 \u6771\u4eac\u90fd\u3002 \uc548\ub155",
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u0645\u0631\u062d\u0628\u0627",
)
# Keeps memory small: all activations of a text are held at once.
_TOKENS_MAX = 64
_CALIBRATED_NAME = "calibrated.onnx"


def measure_activations(
    graph_path: Path,
    names: Sequence[str],
    weight_file: WeightFile,
    properties: ModelProperties,
) -> Mapping[str, FloatArray]:
    """Return the values of some activations for the tokens of a few texts.

    Args:
        graph_path: The graph; its weights lie beside it, and its folder can be written to.
        names: The activations, float32 [..., channels].
        weight_file: The file that the graph was made from, for messages.
        properties: The model's properties.

    Returns:
        For each name float32 [tokens, channels].

    Raises:
        ModelError: The tokenizer cannot be read, or the graph cannot be run.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    made = {output for node in model.graph.node for output in node.output}
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name in made
    )
    path = graph_path.with_name(_CALIBRATED_NAME)
    path.write_bytes(model.SerializeToString())
    tokenizer = Tokenizer.load(properties)
    limit = min(_TOKENS_MAX, properties.max_tokens)
    sequences = [
        tokenizer.build_sequence(ids, max_tokens=limit, truncation=properties.truncation).input_ids
        for ids in tokenizer.encode(_TEXTS)
    ]
    rows: dict[str, list[FloatArray]] = {name: [] for name in names}
    for outputs in run_sequences(path, weight_file, tuple(names), sequences):
        for name, values in zip(names, outputs, strict=True):
            rows[name].append(values.reshape(-1, values.shape[-1]))
    path.unlink()
    return {name: np.concatenate(found) for name, found in rows.items()}
