"""Reads the prompts of a model from `config_sentence_transformers.json`."""

from collections.abc import Mapping

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.overrides import ModelOverrides

# Real models have up to a hundred prompts of a few hundred characters.
_PROMPTS_MAX = 1024
_PROMPT_CHARACTERS_MAX = 65_536
_SHOWN_CHARACTERS = 64
# Real models have up to five tasks.
_TASKS_MAX = 1024
# Names the tasks of jina-embeddings-v3, in the order of their numbers.
TASKS_KEY = "lora_adaptations"


def read_prompts(extras: JsonObject) -> Mapping[str, str]:
    """Return the prompts by name; a prompt that is null is empty.

    Raises:
        ModelError: There are too many, or one is too long or no string.
    """
    prompts = {
        name: "" if prompt is None else prompt for name, prompt in extras.table("prompts").items()
    }
    if len(prompts) > _PROMPTS_MAX:
        raise extras.wrong("prompts", f"at most {_PROMPTS_MAX}, not {len(prompts)}")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise extras.wrong(f"prompts.{name}", "a string")
        if len(name) + len(prompt) > _PROMPT_CHARACTERS_MAX:
            raise extras.wrong(
                f"prompts.{name[:_SHOWN_CHARACTERS]}",
                f"at most {_PROMPT_CHARACTERS_MAX} characters with its name, not "
                f"{len(name) + len(prompt)}",
            )
    return prompts


def read_tasks(config: JsonObject) -> Mapping[str, int]:
    """Return the numbers of a model's tasks by their names, which are names of prompts.

    Source: jina-embeddings-v3, whose adapters are chosen by their place in `lora_adaptations`.

    Raises:
        ModelError: The key holds something else than names.
    """
    names = config.values.get(TASKS_KEY) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise config.wrong(TASKS_KEY, "a list of names")
    if len(names) > _TASKS_MAX or len(set(names)) < len(names):
        raise config.wrong(TASKS_KEY, f"at most {_TASKS_MAX} different names")
    return {name: number for number, name in enumerate(names)}


def find_default_prompt_name(
    extras: JsonObject, prompts: Mapping[str, str], overrides: ModelOverrides
) -> str:
    """Return the prompt for requests that name none; empty for no prompt.

    Raises:
        ModelError: There is no prompt of this name.
    """
    if overrides.default_prompt_name is not None:
        if overrides.default_prompt_name and overrides.default_prompt_name not in prompts:
            raise ModelError(
                f"{extras.path.parent}: default_prompt_name that is set must be one of the prompts "
                f"{', '.join(prompts) or '(there are none)'}"
            )
        return overrides.default_prompt_name
    name = extras.text("default_prompt_name", default="")
    if name and name not in prompts:
        raise extras.wrong("default_prompt_name", "a key of prompts")
    return name
