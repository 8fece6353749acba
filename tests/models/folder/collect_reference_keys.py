"""Writes `reference_keys.json`: the keys that the reference libraries read from a model's files.

Run it with the folder that has the sources of sentence-transformers and transformers:
`python -m tests.models.folder.collect_reference_keys SITE_PACKAGES`. It parses the sources, so that
neither PyTorch nor the libraries need to be importable.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).with_name("reference_keys.json")
_ARCHITECTURES = (
    "bert", "roberta", "xlm_roberta", "camembert", "distilbert", "mpnet", "electra", "albert",
)  # fmt: skip
# Their keys are listed by architecture, as they differ more.
_FAMILIES = (
    "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "modernbert", "nomic_bert", "gte",
)  # fmt: skip
_TOKENIZERS = (*_ARCHITECTURES, "t5", "qwen2", "gemma", "deberta_v2")
# What `kwargs` of a tokenizer are taken for, in the sources.
_TAKEN = re.compile(r'(?:kwargs|init_kwargs|tokenizer_config)\.(?:pop|get|setdefault)\(\s*"(\w+)"')
# Objects that code passes, and no file can hold.
_OBJECTS = frozenset(
    {"vocab", "merges", "tokenizer", "tokenizer_object", "post_processor", "self",
     "_spm_precompiled_charsmap"}
)  # fmt: skip


def collect(folder: Path) -> dict[str, object]:
    """Return the versions and the keys of the libraries in a folder of packages."""
    return {
        "versions": {
            name: next(folder.glob(f"{name.replace('-', '_')}-*.dist-info")).name.split("-")[1][:-5]
            for name in ("sentence-transformers", "transformers")
        },
        "modules": dict(sorted(_modules(folder / "sentence_transformers"))),
        "config_sentence_transformers.json": sorted(_extras(folder / "sentence_transformers")),
        "config.json": sorted(set(_fields(folder / "transformers"))),
        "families": {
            name: sorted(set(_family(folder / "transformers", name))) for name in _FAMILIES
        },
        "tokenizer_config.json": sorted(set(_tokenizer(folder / "transformers")) - _OBJECTS),
    }


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node


def _modules(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for path in folder.rglob("modules/*.py"):
        for found in _classes(path):
            for node in found.body:
                match node:
                    case (
                        ast.AnnAssign(target=ast.Name("config_keys"), value=ast.expr() as value)
                        | ast.Assign(targets=[ast.Name("config_keys")], value=value)
                    ):
                        yield found.name, sorted(ast.literal_eval(value))


def _extras(folder: Path) -> set[str]:
    keys: set[str] = set()
    for path in folder.glob("*/model.py"):
        source = path.read_text("utf-8")
        keys.update(re.findall(r'model_config\.get\(\s*"(\w+)"', source))
        keys.update(re.findall(r'(?<!\w)config\["(\w+)"\] =', source))
        keys.update(re.findall(r'"(\w+)" in model_config', source))
    # A cross-encoder writes this one to config.json.
    return keys - {"sentence_transformers"}


def _fields(folder: Path) -> Iterator[str]:
    paths = [folder / f"models/{one}/configuration_{one}.py" for one in _ARCHITECTURES]
    for path in (*paths, folder / "configuration_utils.py"):
        for found in _classes(path):
            if not found.name.endswith("Config") or found.name.startswith("Sub"):
                continue
            for node in found.body:
                match node:
                    case ast.AnnAssign(target=ast.Name(name), annotation=kind):
                        if "ClassVar" not in ast.unparse(kind):
                            yield name


def _family(folder: Path, model_type: str) -> Iterator[str]:
    """Yield the fields of one architecture, and the keys that its code reads from older files."""
    name = model_type.removesuffix("_text")
    path = folder / f"models/{name}/configuration_{name}.py"
    for found in _classes(path):
        kind = next((one for one in found.body if _is_model_type(one, model_type)), None)
        if kind is None:
            continue
        for node in ast.walk(found):
            match node:
                case ast.AnnAssign(target=ast.Name(field)):
                    yield field
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("kwargs")), args=[ast.Constant(str(key)), *_]
                ):
                    yield key


def _is_model_type(node: ast.stmt, model_type: str) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name("model_type")], value=ast.Constant(value)):
            return value == model_type
    return False


def _tokenizer(folder: Path) -> Iterator[str]:
    for name in ("tokenization_utils_base.py", "tokenization_utils_tokenizers.py"):
        yield from _TAKEN.findall((folder / name).read_text("utf-8"))
    for one in _TOKENIZERS:
        path = folder / f"models/{one}/tokenization_{one}.py"
        for found in _classes(path) if path.exists() else ():
            for node in found.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    yield from (given.arg for given in node.args.args + node.args.kwonlyargs)


if __name__ == "__main__":
    TARGET.write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n", "utf-8")
