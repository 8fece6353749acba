"""Downloads a model's files from the Hugging Face Hub, or finds them in the local cache.

The huggingface_hub library handles downloads, cache, tokens and offline mode, and reads its own
variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). This module chooses the files.
"""

import glob
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from embedgrpc.libraries.no_telemetry import disable_telemetry
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.progress import reporter
from embedgrpc.models.sources.config_files import (
    ADAPTER_NAME,
    CARD_BYTES_MAX,
    CARD_NAME,
    CONFIG_NAME,
    HEADS,
    MODULES_NAME,
    ROUTER_NAMES,
    ROUTER_TYPES,
    ROUTERS_DEPTH_MAX,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
    is_settings_name,
    read_module_folders,
)
from embedgrpc.models.sources.hub_errors import Named, explain, explain_absence
from embedgrpc.models.sources.weight_file import choose_adapter_weights
from embedgrpc.models.tensors.layer_weights import LAYER_WEIGHTS

# The modules with small weights, which are downloaded before the backbone's.
_LAYERS = ("Dense", "LayerNorm")
logger = logging.getLogger(__name__)


class HubRepository:
    """One commit of a repository.

    Attributes:
        name: ORG/NAME.
        commit: The commit.
        folder: The snapshot in the cache, where downloaded files are.
    """

    def __init__(self, named: Named, *, repository: str, revision: str) -> None:
        """Resolve a revision, and download all files but the backbone's weights.

        Args:
            named: What the user named, for messages.
            repository: ORG/NAME.
            revision: A branch, a tag or a commit; empty for the default branch.

        Raises:
            ModelError: The repository or the revision does not exist or is not allowed, the Hub
                cannot be reached and the cache lacks the files, or the cache cannot be written.
        """
        disable_telemetry()
        # Imported late: this takes longer than reading a model's settings.
        import huggingface_hub  # noqa: PLC0415 - see above
        from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415 - see above

        self._hub = huggingface_hub
        self._named = named
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
        """The files of the repository, downloaded or not."""
        return frozenset(self.sizes)

    def has(self, name: str) -> bool:
        """Whether the repository has a file, downloaded or not."""
        return name in self.sizes

    def fetch(self, names: Iterable[str]) -> None:
        """Download files of the repository that are not in the cache yet.

        Args:
            names: Relative to the repository's root.

        Raises:
            ModelError: The download fails, or a file in the cache has the wrong size.
        """
        wanted = list(names)
        missing = [name for name in wanted if not (self.folder / name).exists()]
        if missing and self._offline:
            here = self.folder.exists()
            raise explain_absence(self._named, ", ".join(missing) if here else self.name)
        if missing:
            size = sum(self.sizes.get(name, 0) for name in missing)
            extra = {"repository": self.name, "files": len(missing), "bytes": size}
            logger.info("downloading", extra=extra)
            # A name may contain wildcard characters.
            self._download([glob.escape(name) for name in missing], size)
        for name in wanted:
            self._check(name)

    def fetch_adapter(self) -> tuple[str, str] | None:
        """Download the adapter of a repository that has no model of its own.

        Returns:
            The repository and the revision of its base model, the latter mostly empty; None if the
            repository has a model.

        Raises:
            ModelError: It does not say what its base model is, or the download fails.
        """
        if self.has(CONFIG_NAME) or not self.has(ADAPTER_NAME):
            return None
        self.fetch_adapter_weights()
        config = JsonObject.read(self.folder / ADAPTER_NAME, self.folder)
        base = config.text("base_model_name_or_path", default="")
        if not base:
            raise config.wrong("base_model_name_or_path", "the repository of the base model")
        return base, config.text("revision", default="")

    def fetch_adapter_weights(self) -> None:
        """Download the weights of the adapter in the repository, if they are there.

        Raises:
            ModelError: The download fails.
        """
        weights = choose_adapter_weights(self.has)
        if weights is not None:
            self.fetch([weights])

    @property
    def pinned_source(self) -> str:
        """A source of exactly this commit."""
        return f"hf:{self.name}@{self.commit}"

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The bytes of each file of the repository."""
        listed = self._read_listing()
        if listed is None and not self._offline:
            # A download also caches the commit's listing, which never changes.
            self._download([CONFIG_NAME, MODULES_NAME, ADAPTER_NAME])
            listed = self._read_listing()
        if listed is not None:
            return listed
        # An older release of the library, or a read-only file system: there is no listing.
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    def _resolve(self, revision: str) -> Any:
        try:
            return self._hub.HfApi().resolve_revision(
                self.name, revision=revision or None, local_files_only=self._offline
            )
        except Exception as error:
            raise explain(error, self._named) from error

    def _read_listing(self) -> Mapping[str, int] | None:
        try:
            entries = self._hub.get_cached_repo_tree(self.name, revision=self._revision)
        except self._hub.errors.CachedRepoTreeNotFoundError:
            return None
        return {entry.path: entry.size for entry in entries}

    def _fetch_description(self) -> None:
        """Download all files but the backbone's weights, which may be large.

        The other files are checked before the weights are downloaded.
        """
        is_adapter = bool(self._named.base)
        needed = ADAPTER_NAME if is_adapter else CONFIG_NAME
        roots = [name for name in (CONFIG_NAME, MODULES_NAME, ADAPTER_NAME) if self.has(name)]
        if self.sizes and (needed not in roots if is_adapter else not roots):
            raise ModelError(
                f"{self._named.subject}: the repository has no {needed} at commit {self.commit}, so"
                f" it contains no {'adapter' if is_adapter else 'model that can be served'}"
            )
        self.fetch(roots or [needed])
        folders = self._find_module_folders()
        names = []
        for name in self.sizes:
            folder, _, file = name.rpartition("/")
            if folder not in ("", *folders) or not is_settings_name(file):
                continue
            better = f"{folder}/{TOKENIZER_NAME}".lstrip("/")
            if file != VOCABULARY_NAME or not self.has(better):
                names.append(name)
        modules = [folder for folder in read_module_folders(self.folder, kinds=_LAYERS) if folder]
        weights = [[f"{folder}/{name}" for name in LAYER_WEIGHTS] for folder in modules]
        for group in (*weights, *HEADS):
            names += [name for name in group if self.has(name)][:1]
        if 0 < self.sizes.get(CARD_NAME, 0) <= CARD_BYTES_MAX:
            names.append(CARD_NAME)
        self.fetch(names)

    def _find_module_folders(self) -> tuple[str, ...]:
        """Return the folders of all modules; the files that say the routes are downloaded."""
        for _ in range(ROUTERS_DEPTH_MAX):
            # Those in the routes of a router are known once its file is there.
            routers = read_module_folders(self.folder, kinds=ROUTER_TYPES)
            names = [f"{folder}/{name}".lstrip("/") for folder in routers for name in ROUTER_NAMES]
            self.fetch([name for name in names if self.has(name)])
        return read_module_folders(self.folder)

    def _download(self, patterns: Sequence[str], size: int = 0) -> None:
        what = f"downloading {self.name}"
        try:
            self._hub.snapshot_download(
                self.name,
                revision=self._revision,
                allow_patterns=list(patterns),
                tqdm_class=_progress_class(what, size),
            )
        except Exception as error:
            raise explain(error, self._named) from error
        finally:
            reporter.report(what, size, size)

    def _check(self, name: str) -> None:
        path = self.folder / name
        if not path.exists():
            # The library does not fail if the Hub does not answer and parts are cached.
            raise explain_absence(self._named, name)
        size, wanted = path.stat().st_size, self.sizes.get(name)
        if wanted is not None and size != wanted:
            raise ModelError(
                f"{path} has {size} of {wanted} bytes: delete {path.resolve()}, and run "
                f"`{self._named.pull}`"
            )


def _progress_class(what: str, size: int) -> type[Any]:
    """Return a progress bar for the library that draws nothing and reports the bytes instead."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # noqa: PLC0415 - lazy there

    class Progress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # The library has two more bars: of files, and of bytes before decompression.
            self._counts_bytes = options.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]  # untyped library

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                self.n += n or 0
                reporter.report(what, int(self.n), size)

    return Progress
