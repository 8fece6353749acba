import pytest

from embedgrpc.client.suggestions import SuggestingParser, quote, suggest


@pytest.fixture
def parser() -> SuggestingParser:
    """A command with a subcommand that has a required option and one with choices."""
    made = SuggestingParser(prog="tool")
    made.add_argument("--version", action="store_true")
    command = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    embed = command.add_parser("embed")
    embed.add_argument("--query", required=True)
    embed.add_argument("--encoding", choices=["float32", "int8"])
    embed.add_argument("texts", nargs="*")
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--vresion", "tool: no option '--vresion'; did you mean --version?"),
        ("embde", "tool: argument COMMAND: no 'embde'; did you mean embed? (choose from embed)"),
        ("embed --qurey=x", "tool embed: no option '--qurey'; did you mean --query?"),
        ("embed --query x --zzz", "tool embed: no option '--zzz'"),
        (
            "embed --query x --encoding itn8",
            "tool embed: argument --encoding: no 'itn8'; did you mean int8? (choose from float32, int8)",  # noqa: E501 -- one line of output
        ),
        ("embed", "tool embed: the following arguments are required: --query"),
    ],
)
def test_wrong_usage_is_one_line(
    parser: SuggestingParser, capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    """The line names the word, the nearest known one and the help; the exit code is 2."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments.split())
    assert caught.value.code == 2
    program = line.partition(":")[0]
    assert capsys.readouterr().err == f"{line} (see {program} --help)\n"


def test_right_usage_is_parsed(parser: SuggestingParser) -> None:
    """An option may be shortened, and arguments after `--` are no options."""
    parsed = parser.parse_args(["embed", "--que", "x", "--", "--texts"])
    assert (parsed.query, parsed.texts) == ("x", ["--texts"])
    assert parser.parse_args(["embed", "--query=--x", "a"]).query == "--x"


def test_only_close_words_are_suggested() -> None:
    """A word that is like none gets no suggestion."""
    assert suggest("modle", ["model", "texts"]) == "; did you mean model?"
    assert suggest("zzz", ["model", "texts"]) == ""


def test_values_are_shown_escaped_and_cut() -> None:
    """An error message holds no control characters and at most 64 characters of a value."""
    assert quote("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert quote("x" * 64) == repr("x" * 64)
    assert quote("x" * 65) == repr("x" * 61 + "...")
