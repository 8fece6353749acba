"""A machine that loads models from a Hub, each time in a new process."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.warm_python import Done, run_warm

PROGRAM = """
import json, sys
from pathlib import Path
from embedgrpc.models.graphs import graph
from embedgrpc.models.folder.routes import read_routes
from embedgrpc.models.sources import source
from embedgrpc.models.errors import ModelError
for name in sys.argv[2:]:
    try:
        files = source.resolve(name)
        for route in read_routes(files).by_route.values():
            graph.prepare(files, route, cache_dir=Path(sys.argv[1]))
    except ModelError as error:
        kind = type(error).__name__
        print(json.dumps({"error": str(error), "kind": kind}), flush=True)
    else:
        print(json.dumps({"folder": str(files.folder), "revision": files.revision}), flush=True)
"""


@dataclass
class Host:
    """A machine with a cache, environment variables, and a Hub."""

    folder: Path
    cache_dir: Path
    url: str
    errors: str = field(default="", init=False)

    def load(self, *sources: str, **variables: str) -> list[dict[str, str]]:
        """Load models one after the other in one new process."""
        done = self.run(PROGRAM, *sources, **variables)
        self.errors = done.err
        return [json.loads(line) for line in done.out.splitlines()]

    def run(self, program: str, *sources: str, **variables: str) -> Done:
        """Run a program that gets the cache and models."""
        environment = self.environment(variables)
        done = run_warm(program, self.cache_dir, *sources, environment=environment)
        assert done.code == 0, done
        return done

    def load_one(self, source: str, **variables: str) -> dict[str, str]:
        """Load one model."""
        (result,) = self.load(source, **variables)
        return result

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables of a process on this machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**kept, "HF_HOME": str(self.home), "HF_ENDPOINT": self.url, **variables}

    @property
    def home(self) -> Path:
        """The folder of the Hub's library."""
        return self.folder / "hf"
