"""`embedgrpc key new`: what it prints is what the server reads."""

import datetime as dt
import tomllib

import pytest

from embedgrpc.cli.commands import run_command
from embedgrpc.server.identity.api_keys import digest_of, parse_api_keys


def test_a_key_is_shown_once_and_its_lines_can_be_appended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The lines go to the standard output, and the key itself only to the other."""
    content, keys = "", []
    for arguments in (("team/search",), ("team/search", "--expires", "90d")):
        assert run_command(["key", "new", *arguments]) == 0
        printed = capsys.readouterr()
        content += printed.out
        line, key = printed.err.splitlines()
        assert line == "The key of team/search, which is shown only now:"
        assert key.startswith("eg_")
        assert len(key) == 46
        assert key not in printed.out
        keys.append(key)
    found = parse_api_keys(content.encode())
    assert [found[digest_of(key)].caller.name for key in keys] == ["team/search"] * 2
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2100-01-31", dt.datetime(2100, 1, 31, tzinfo=dt.UTC)),
        ("2100-01-31T12:00:00Z", dt.datetime(2100, 1, 31, 12, tzinfo=dt.UTC)),
        ("2100-01-31T12:00:00+02:00", dt.datetime(2100, 1, 31, 10, tzinfo=dt.UTC)),
    ],
)
def test_a_key_expires_when_it_should(
    capsys: pytest.CaptureFixture[str], given: str, expected: dt.datetime
) -> None:
    """A date is its beginning in UTC; a time is written in UTC."""
    assert run_command(["key", "new", "one", "--expires", given]) == 0
    (table,) = tomllib.loads(capsys.readouterr().out)["keys"]
    assert table["expires"] == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("key",), "required: COMMAND"),
        (("key", "new"), "required: name"),
        (("key", "new", "a b"), "NAME must have 1 to 256 characters"),
        (("key", "new", "a,b"), "NAME must have 1 to 256 characters"),
        (("key", "new", "one", "--expires", "2020-01-31"), "must lie in the future"),
        (("key", "new", "one", "--expires", "0d"), "must lie in the future"),
        (("key", "new", "one", "--expires", "soon"), "must be days such as 90d"),
        (("key", "new", "one", "--expires", "9999999999d"), "must be days such as 90d"),
        (("key", "new", "one", "--expires", "2100-01-31T12:00:00"), "must have a zone"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    """Nothing is printed that could be taken for a key."""
    with pytest.raises(SystemExit) as ended:
        run_command(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
