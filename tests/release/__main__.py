"""Set the version of the packages, the images and the changelog.

uv run poe release 0.1.0          before a release; then commit, and tag the commit v0.1.0
uv run poe release 0.2.0.dev0     after it, so that builds of later commits do not look like it
"""

import argparse
import datetime as dt
from pathlib import Path

from tests.release.versions import write_version

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Write the version that the command names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version")
    parser.add_argument("--date", default=dt.datetime.now(dt.UTC).date().isoformat())
    arguments = parser.parse_args()
    try:
        write_version(ROOT, arguments.version, arguments.date)
    except ValueError as error:
        parser.error(str(error))
    print(f"The version is {arguments.version}. Look at `git diff`, and commit it.")
    if "dev" not in arguments.version:
        print(f"Then tag it: git tag --annotate v{arguments.version}")
        print("Clients may depend on its contract from now on: uv run poe release-contract")


if __name__ == "__main__":
    main()
