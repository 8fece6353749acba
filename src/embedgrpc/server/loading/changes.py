"""What a change of the models, and a reload of the settings, did."""

import asyncio
from dataclasses import dataclass, field


class ModelChangeError(Exception):
    """The models could not be changed, and nothing has changed; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What has changed, by the names of the models.

    Attributes:
        added: Models that were not there.
        replaced: Models that were loaded again, with other settings or files.
        removed: Models that are not there any more.
        renamed: Models with other aliases.
        closed: Done when the replaced and removed ones are closed.
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    closed: "asyncio.Future[None] | None" = field(default=None, compare=False)

    def log_fields(self) -> dict[str, str]:
        """Return what has changed, for the log."""
        return {
            name: ",".join(getattr(self, name))
            for name in ("added", "replaced", "removed", "renamed")
        }


@dataclass(frozen=True, slots=True)
class LastReload:
    """How the last reload of the settings ended.

    Attributes:
        ended_at: When, in seconds since 1970.
        problem: Why nothing has changed; empty if all went well.
        needs_restart: The settings that have changed and need a restart.
    """

    ended_at: float
    problem: str = ""
    needs_restart: tuple[str, ...] = ()
