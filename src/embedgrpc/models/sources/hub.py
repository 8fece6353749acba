"""Brings a model's files from the Hugging Face Hub, or from its cache on this machine.

Downloads, the cache, tokens and offline mode are those of the huggingface_hub library, with the
variables that it reads (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). What is decided here is
which files of a repository are needed.
"""

import glob
import logging
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from embedgrpc.libraries.no_telemetry import disable_telemetry
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import read_json
from embedgrpc.models.sources.hub_errors import explain, explain_absence
from embedgrpc.models.tensors.layer_weights import LAYER_WEIGHTS
from embedgrpc.models.tensors.token_heads import HEAD_SUFFIXES, MULTI_VECTOR_NAME, SPARSE_NAME

_CONFIG_NAME = "config.json"
_MODULES_NAME = "modules.json"
# Small files, each read where it is there, in the root and in the folders of modules.
_SETTINGS = (
    _CONFIG_NAME,
    _MODULES_NAME,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Of each group the first that is there. The backbone's own weights are asked for later, by what
# chooses among them.
HEAD_NAMES = tuple(
    f"{name}{suffix}" for name in (SPARSE_NAME, MULTI_VECTOR_NAME) for suffix in HEAD_SUFFIXES
)
_HEADS = tuple(
    tuple(f"{name}{suffix}" for suffix in HEAD_SUFFIXES)
    for name in (SPARSE_NAME, MULTI_VECTOR_NAME)
)


logger = logging.getLogger(__name__)


class HubRepository:
    """One state of a repository: what it holds, and the folder where what was asked for lies.

    Attributes:
        name: ORG/NAME.
        commit: Which state it is.
        folder: Where its files lie, once they are brought.
    """

    def __init__(self, source: str, *, repository: str, revision: str) -> None:
        """Finds the state that a revision names, and brings the files that describe the model.

        Args:
            source: As the user named the model, for messages.
            repository: ORG/NAME.
            revision: A branch, a tag or a commit; empty for the default branch.

        Raises:
            ModelError: The repository or the revision does not exist or is not allowed, the Hub
                cannot be reached and the cache lacks the files, or the cache cannot be written.
        """
        disable_telemetry()
        # Late, as it takes longer to load than a model's settings take to read.
        import huggingface_hub  # noqa: PLC0415 - see above
        from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415 - see above

        self._hub = huggingface_hub
        self._source = source
        self.name = repository
        self._offline = huggingface_hub.is_offline_mode()
        self._revision = self._resolve(revision)
        self.commit = self._revision.resolved
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE).expanduser().resolve()
        place = cache / repo_folder_name(repo_id=repository, repo_type="model")
        self.folder = place / "snapshots" / self.commit
        self._fetch_description()

    @property
    def names(self) -> frozenset[str]:
        """The files that the repository holds, be they here or not."""
        return frozenset(self.sizes)

    def has(self, name: str) -> bool:
        """Tells whether the repository holds a file, be it here or not."""
        return name in self.sizes

    def fetch(self, names: Iterable[str]) -> None:
        """Brings files that the repository holds; those that are here already cost nothing.

        Args:
            names: Relative to the repository's root.

        Raises:
            ModelError: They cannot be had, or a file that is here is not as long as it should be.
        """
        wanted = list(names)
        missing = [name for name in wanted if not (self.folder / name).exists()]
        if missing and self._offline:
            here = self.folder.exists()
            raise explain_absence(self._source, ", ".join(missing) if here else self.name)
        if missing:
            size = sum(self.sizes.get(name, 0) for name in missing)
            extra = {"repository": self.name, "files": len(missing), "bytes": size}
            logger.info("downloading", extra=extra)
            # Names may hold what patterns take for wildcards.
            self._download([glob.escape(name) for name in missing])
        for name in wanted:
            self._check(name)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The bytes of each file of the repository."""
        listed = self._read_listing()
        if listed is None and not self._offline:
            # The listing is kept as a side effect, and it belongs to a commit for ever.
            self._download([_CONFIG_NAME, _MODULES_NAME])
            listed = self._read_listing()
        if listed is not None:
            return listed
        # Filled by a release of the library that kept no listings, or on a read-only file system.
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    def _resolve(self, revision: str) -> Any:
        try:
            return self._hub.HfApi().resolve_revision(
                self.name, revision=revision or None, local_files_only=self._offline
            )
        except Exception as error:
            raise explain(error, self._source) from error

    def _read_listing(self) -> Mapping[str, int] | None:
        try:
            entries = self._hub.get_cached_repo_tree(self.name, revision=self._revision)
        except self._hub.errors.CachedRepoTreeNotFoundError:
            return None
        return {entry.path: entry.size for entry in entries}

    def _fetch_description(self) -> None:
        """Brings all but the backbone's weights: these may be large, and the rest may be wrong."""
        roots = [name for name in (_CONFIG_NAME, _MODULES_NAME) if self.has(name)]
        if not roots and self.sizes:
            raise ModelError(
                f"model source {self._source!r}: the repository has no {_CONFIG_NAME} at commit "
                f"{self.commit}: it holds no model that can be served"
            )
        self.fetch(roots or [_CONFIG_NAME])
        folders = read_module_folders(self.folder)
        names = [name for name in self.sizes if _is_settings(name, ("", *folders))]
        # The first module is the backbone, wherever it lies.
        modules = [folder for folder in folders[1:] if folder]
        weights = [[f"{folder}/{name}" for name in LAYER_WEIGHTS] for folder in modules]
        for group in (*weights, *_HEADS):
            names += [name for name in group if self.has(name)][:1]
        self.fetch(names)

    def _download(self, patterns: Sequence[str]) -> None:
        try:
            self._hub.snapshot_download(
                self.name,
                revision=self._revision,
                allow_patterns=list(patterns),
                tqdm_class=_progress_class(),
            )
        except Exception as error:
            raise explain(error, self._source) from error

    def _check(self, name: str) -> None:
        path = self.folder / name
        if not path.exists():
            # The library takes what there is where the Hub does not answer.
            raise explain_absence(self._source, name)
        size, wanted = path.stat().st_size, self.sizes.get(name)
        if wanted is not None and size != wanted:
            raise ModelError(
                f"{path} has {size} of {wanted} bytes: delete {path.resolve()}, and run "
                f"`embedgrpc pull {self._source}`"
            )


def _progress_class() -> type[Any]:
    """The library's progress bar, on terminals only: its own shows in log files as well."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # noqa: PLC0415 - lazy there

    class Progress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # None: where the output is no terminal.
            super().__init__(*arguments, **{"disable": None, **options})  # type: ignore[no-untyped-call]  # untyped library

    return Progress


def read_module_folders(root: Path) -> tuple[str, ...]:
    """The folders that modules.json names; what is wrong with it is told by its reader.

    Args:
        root: The model's folder.

    Raises:
        ModelError: The file cannot be read.
    """
    path = root / _MODULES_NAME
    modules = read_json(path, root) if path.exists() else []
    if not isinstance(modules, list):
        return ()
    folders = [module.get("path", "") for module in modules if isinstance(module, dict)]
    return tuple(folder.strip("/") for folder in folders if isinstance(folder, str))


def _is_settings(name: str, folders: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    parent = "" if path.parent == PurePosixPath() else str(path.parent)
    return parent in folders and is_settings_name(path.name)


def is_settings_name(name: str) -> bool:
    """Tells whether a file of this name says what a model is, in the folder of a module."""
    return any(fnmatchcase(name, pattern) for pattern in _SETTINGS)
