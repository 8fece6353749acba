import argparse
import contextlib
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
from pydantic.fields import FieldInfo

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.models.kinds import Truncation
from embedgrpc.server.settings.configuration import (
    Configuration,
    SettingsError,
    flag_name,
    variable_name,
)
from embedgrpc.server.settings.latency_modes import LATENCY_MODES, BatchThreads
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.logs import HumanFormatter, JsonFormatter

FIXTURES = Path(__file__).parents[2] / "fixtures"
FIELDS = Settings.model_fields
# Settings that need each other.
TLS_FIELDS = {"tls_certificate_file", "tls_key_file", "tls_client_ca_file", "tls_client_auth"}
PLAIN_FIELDS = sorted(
    FIELDS.keys() - {"models", "caller_weights", "http_allowed_origins"} - TLS_FIELDS
)
# Settings of several words; the tests set one.
LISTS = {"jwt_audience", "jwt_algorithms", "public", "metrics_names"}
# Settings that mean nothing without a port for HTTP.
HTTP_FIELDS = {"http_allowed_origins", "openai_token_ids"}
_TLS = {
    "EMBEDGRPC_TLS_CERTIFICATE_FILE": "server.pem",
    "EMBEDGRPC_TLS_KEY_FILE": "server.key",
    "EMBEDGRPC_TLS_CLIENT_CA_FILE": "ca.pem",
}
_ISSUER = {"EMBEDGRPC_JWT_ISSUER": "https://issuer.example"}
_TOKENS = {**_ISSUER, "EMBEDGRPC_JWT_AUDIENCE": "some", "EMBEDGRPC_JWKS_FILE": "keys.json"}
_FETCHED = {**_ISSUER, "EMBEDGRPC_JWT_AUDIENCE": "some", "EMBEDGRPC_JWKS_URL": "https://some/keys"}
# Settings that mean nothing without others, and the variables of those.
NEEDED: dict[str, dict[str, str]] = {
    "metrics_names": {"EMBEDGRPC_METRICS_ADDRESS": "127.0.0.1:0"},
    **{name: {"EMBEDGRPC_HTTP_ADDRESS": "127.0.0.1:0"} for name in HTTP_FIELDS},
    "request_burst": {"EMBEDGRPC_REQUESTS_PER_S": "5"},
    "token_burst": {"EMBEDGRPC_TOKENS_PER_MIN": "5"},
    "certificate_callers_file": _TLS,
    "jwt_issuer": _TOKENS,
    "jwt_audience": _TOKENS,
    "jwks_file": _TOKENS,
    "jwks_url": _FETCHED,
    "jwks_ca_file": _FETCHED,
}
EMBEDGRPC = str(Path(sys.executable).parent / "embedgrpc")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EMBEDGRPC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Set what the setting of the test needs."""
    setting = request.getfixturevalue("setting")
    for name, value in NEEDED.get(setting, {}).items():
        if name != variable_name(setting):
            monkeypatch.setenv(name, value)


def resolve(*arguments: str) -> Configuration:
    """Resolves the settings as a command does."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_configuration(parser.parse_args(arguments))


def refusal(*arguments: str) -> list[str]:
    """Return the lines of the error."""
    with pytest.raises(SettingsError) as refused:
        resolve(*arguments)
    return str(refused.value).splitlines()


def run(
    *arguments: str, variables: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the installed command without the variables of this process."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(variables or {})}
    return subprocess.run(
        [EMBEDGRPC, *arguments], env=env, capture_output=True, text=True, check=False
    )


def write(folder: Path, text: str) -> Path:
    """Writes a configuration file."""
    path = folder / "embedgrpc.toml"
    path.write_text(text, "utf-8")
    return path


def other_value(setting: str) -> Any:
    """A value that is allowed and not the default."""
    info = FIELDS[setting]
    special = {
        "address": "unix:/run/embedgrpc.sock",
        "http_address": "unix:/run/http.sock",
        "health_address": "unix:/run/embedgrpc.sock",
        "metrics_address": "unix:/run/metrics.sock",
        "tei_model": "all-MiniLM-L6-v2",
        "unix_socket_mode": "0660",
        "caller_metadata": "x-forwarded-client-cert",
        "drain_delay_s": 1.0,
        "spin_duration_us": 50,
        "pin_threads": False,
        "jwt_issuer": "https://other.example",
        "jwt_audience": "other",
        "jwt_algorithms": "ES384",
        "jwt_name_claim": "azp",
        "access_log": "all",
        "jwt_rights_claim": "rights",
        "jwks_url": "https://other.example/keys",
        "public": "metrics",
        "metrics_names": "tei",
    }
    if setting in special:
        return special[setting]
    if info.annotation is Path or setting.endswith("_file"):
        return "/var/cache/embedgrpc"
    if get_origin(info.annotation) is Literal:
        return next(one for one in get_args(info.annotation) if one != info.default)
    return not info.default if isinstance(info.default, bool) else info.default + 1


def as_flags(setting: str, value: Any) -> list[str]:
    """The flags that set a setting."""
    flag = flag_name(setting)
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]


def found(configuration: Configuration, setting: str) -> tuple[Any, str]:
    """A setting as it came out, and where it came from."""
    value = configuration.settings.model_dump(mode="json")[setting]
    if setting in LISTS:
        (value,) = value
    return value, configuration.origins[setting]


@pytest.mark.usefixtures("needed")
@pytest.mark.parametrize("setting", PLAIN_FIELDS)
def test_every_setting_has_a_flag(setting: str) -> None:
    """Every setting has a flag of its name."""
    value = other_value(setting)
    flags = as_flags(setting, value)
    assert found(resolve(*flags), setting) == (value, flag_name(setting))


@pytest.mark.usefixtures("needed")
@pytest.mark.parametrize("setting", PLAIN_FIELDS)
def test_every_setting_has_a_variable(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting has a variable of its name."""
    value = other_value(setting)
    name = f"EMBEDGRPC_{setting.upper()}"
    monkeypatch.setenv(name, str(value))
    assert found(resolve(), setting) == (value, name)
    assert resolve().unknown_variables == {}


@pytest.mark.usefixtures("needed")
@pytest.mark.parametrize("setting", PLAIN_FIELDS)
def test_every_setting_has_a_key(setting: str, tmp_path: Path) -> None:
    """Every setting has a key of its name in the file."""
    value = other_value(setting)
    path = write(tmp_path, f"{setting} = {json.dumps(value)}\n")
    assert found(resolve("--config", str(path)), setting) == (value, str(path))


def test_defaults_are_told_as_such() -> None:
    """Without flags, variables or a file everything has its default, and says so."""
    configuration = resolve()
    assert configuration.settings == Settings()
    assert configuration.origins == dict.fromkeys(FIELDS, "default")


@pytest.mark.parametrize("place", ["flag", "variable", "table", "list"])
def test_weights_of_callers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """Weights are NAME=WEIGHT with commas between, or a table of the file; names may hold a =."""
    arguments: list[str] = []
    if place == "flag":
        arguments = ["--caller-weights", "team-a=2.5,CN=b=1"]
    elif place == "variable":
        monkeypatch.setenv("EMBEDGRPC_CALLER_WEIGHTS", "team-a=2.5, CN=b=1")
    else:
        table = '{ team-a = 2.5, "CN=b" = 1 }' if place == "table" else '["team-a=2.5", "CN=b=1"]'
        path = write(tmp_path, f"caller_weights = {table}\n")
        arguments = ["--config", str(path)]
    assert resolve(*arguments).settings.caller_weights == {"team-a": 2.5, "CN=b": 1.0}


@pytest.mark.parametrize("weights", ["a=0", "a=-1", "a=1001", "=1", "a", "a=x", "a=nan"])
def test_wrong_weights_are_refused(weights: str) -> None:
    """A weight is a number above 0, of a caller that has a name."""
    assert refusal("--caller-weights", weights)[0].startswith("caller_weights")


@pytest.mark.parametrize("place", ["flag", "flags", "variable", "list", "text"])
def test_allowed_origins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """They are a repeated flag, a list of the file, or separated by commas."""
    monkeypatch.setenv("EMBEDGRPC_HTTP_ADDRESS", "127.0.0.1:0")
    origins = ("https://app.example.com", "http://[::1]:3000")
    joined = ", ".join(origins)
    arguments: list[str] = []
    match place:
        case "flag":
            arguments = ["--http-allowed-origins", joined]
        case "flags":
            arguments = [part for one in origins for part in ("--http-allowed-origins", one)]
        case "variable":
            monkeypatch.setenv("EMBEDGRPC_HTTP_ALLOWED_ORIGINS", joined)
        case _:
            value = json.dumps(origins if place == "list" else joined)
            path = write(tmp_path, f"http_allowed_origins = {value}\n")
            arguments = ["--config", str(path)]
    assert resolve(*arguments).settings.http_allowed_origins == origins


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://*.example.com",
        "https://a b",
        "null",
        "*,https://app.example.com",
    ],
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """A browser would never send it, so it would silently allow nothing; or it is ambiguous."""
    assert refusal("--http-allowed-origins", origin)[0].startswith("http_allowed_origins")


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("http_allowed_origins", "https://app.example.com", ""),
        ("openai_token_ids", "model", "refuse"),
    ],
)
def test_settings_of_a_port_that_is_not_there(name: str, value: str, default: str) -> None:
    """They are refused by name, where they would change something."""
    assert refusal(flag_name(name), value) == [
        f"{name} needs http_address: without it there is no HTTP port"
    ]
    assert resolve(flag_name(name), default).settings == Settings()
    resolve(flag_name(name), value, "--http-address", "127.0.0.1:0")


def test_each_setting_of_the_http_port_is_known() -> None:
    """A new one stands among those that need the port."""
    named = {name for name in FIELDS if name.startswith(("http_", "openai_"))}
    assert named - {"http_address"} == HTTP_FIELDS


@pytest.mark.parametrize("place", ["flags", "variables", "list", "text"])
def test_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """Files are a repeated flag, a list of the file, or separated by commas."""
    files = {"tls_certificate_file": ("a.pem", "b.pem"), "tls_key_file": ("a.key", "b.key")}
    authority = {"tls_client_ca_file": "ca.pem", "tls_client_auth": "require"}
    arguments: list[str] = []
    match place:
        case "flags":
            for name, paths in files.items():
                arguments += [part for one in paths for part in (flag_name(name), one)]
            for name, value in authority.items():
                arguments += [flag_name(name), value]
        case "variables":
            for name, paths in files.items():
                monkeypatch.setenv(variable_name(name), ", ".join(paths))
            for name, value in authority.items():
                monkeypatch.setenv(variable_name(name), value)
        case _:
            lines = [
                f"{name} = {json.dumps(paths if place == 'list' else ','.join(paths))}\n"
                for name, paths in files.items()
            ]
            lines += [f"{name} = {json.dumps(value)}\n" for name, value in authority.items()]
            arguments = ["--config", str(write(tmp_path, "".join(lines)))]
    settings = resolve(*arguments).settings
    assert settings.model_dump(include=TLS_FIELDS) == files | authority


_PAIR = ("--tls-certificate-file", "a.pem", "--tls-key-file", "a.key")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("--tls-key-file", "a.key"),
            "tls_certificate_file names 0 files and tls_key_file 1: each certificate needs its key",
        ),
        (
            (*_PAIR, "--tls-certificate-file", "b.pem"),
            "tls_certificate_file names 2 files and tls_key_file 1: each certificate needs its key",
        ),
        (_PAIR * 65, "tls_certificate_file names 65 files; the limit is 64"),
        (
            ("--tls-client-ca-file", "ca.pem"),
            "tls_client_ca_file needs tls_certificate_file and tls_key_file",
        ),
        (
            (*_PAIR, "--tls-client-auth", "request"),
            "tls_client_auth request needs tls_client_ca_file",
        ),
        (
            (*_PAIR, "--tls-client-ca-file", "ca.pem", "--tls-client-auth", "request"),
            (
                "tls_client_auth request: gRPC cannot ask for a certificate that a client may omit;"
                " use require, or leave out tls_client_ca_file to ask for none"
            ),
        ),
        (
            (*_PAIR, "--address", "unix:/run/one", "--http-address", "unix:/run/two"),
            "tls_certificate_file is set, but every address is a Unix socket, which has no TLS",
        ),
    ],
)
def test_tls_settings_that_do_not_fit(arguments: tuple[str, ...], problem: str) -> None:
    """They are refused, for otherwise a port would be open without what was asked for."""
    assert refusal(*arguments) == [problem]


_ISSUED = ("--jwt-issuer", "https://issuer.example", "--jwt-audience", "some")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("--certificate-callers-file", "callers.toml"),
            "certificate_callers_file needs tls_client_ca_file",
        ),
        (("--jwks-url", "https://some/keys"), "jwks_url needs jwt_issuer"),
        (("--jwks-file", "keys.json"), "jwks_file needs jwt_issuer"),
        (("--jwt-audience", "some"), "jwt_audience needs jwt_issuer"),
        (_ISSUED[:2], "jwt_issuer needs jwt_audience"),
        (_ISSUED, "jwt_issuer needs jwks_file or jwks_url, one of them"),
        (
            (*_ISSUED, "--jwks-file", "keys.json", "--jwks-url", "https://some/keys"),
            "jwt_issuer needs jwks_file or jwks_url, one of them",
        ),
        (
            (*_ISSUED, "--jwks-file", "keys.json", "--jwks-ca-file", "ca.pem"),
            "jwks_ca_file needs jwks_url",
        ),
        (
            (*_ISSUED, "--jwks-url", "https://some/keys", "--jwt-algorithms", "RS256,HS256"),
            "jwt_algorithms HS256 needs jwks_file: it uses a secret",
        ),
    ],
)
def test_settings_of_callers_that_do_not_fit(arguments: tuple[str, ...], problem: str) -> None:
    """They are refused: else a port would be open without what was asked for."""
    assert refusal(*arguments) == [problem]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--jwks-url", "http://some/keys"),
        ("--jwks-url", "file:///keys.json"),
        ("--jwks-url", "https://user:secret@some/keys"),
        ("--jwt-algorithms", "none"),
        ("--jwt-algorithms", ""),
        ("--public", "models"),
    ],
)
def test_values_of_callers_that_are_not_allowed(flag: str, value: str) -> None:
    """Keys come over HTTPS, tokens are signed, and what is public can be named."""
    assert refusal(flag, value)[0].startswith(flag.removeprefix("--").replace("-", "_"))


@pytest.mark.parametrize(("flag", "variable", "file"), list(product([True, False], repeat=3)))
def test_flags_win_over_variables_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, flag: bool, variable: bool, file: bool
) -> None:
    """Each source wins over those below it, and only where it says something."""
    arguments = ["--lanes", "4"] if flag else []
    if variable:
        monkeypatch.setenv("EMBEDGRPC_LANES", "3")
    if file:
        path = write(tmp_path, "lanes = 2\nmax_inputs = 7\n")
        arguments += ["--config", str(path)]
    lowest = (2, str(tmp_path / "embedgrpc.toml")) if file else (0, "default")
    expected = (4, "--lanes") if flag else (3, "EMBEDGRPC_LANES") if variable else lowest
    configuration = resolve(*arguments)
    assert found(configuration, "lanes") == expected
    assert configuration.settings.max_inputs == (7 if file else 1024)


def test_empty_variable_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing, as templates do, is one that is not set."""
    monkeypatch.setenv("EMBEDGRPC_LANES", "")
    monkeypatch.setenv("EMBEDGRPC_MODELS", "")
    monkeypatch.setenv("EMBEDGRPC_CONFIG", "")
    assert resolve().settings == Settings()


def test_file_is_named_by_variable_or_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The flag's file is read in place of the variable's."""
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("lanes = 2\n")
    second.write_text("max_inputs = 3\n")
    monkeypatch.setenv("EMBEDGRPC_CONFIG", str(first))
    assert found(resolve(), "lanes") == (2, str(first))
    configuration = resolve("--config", str(second))
    assert found(configuration, "lanes") == (0, "default")
    assert found(configuration, "max_inputs") == (3, str(second))


@pytest.mark.parametrize(
    ("setting", "value", "limit"),
    [
        ("lanes", "-1", "must be a whole number from 0 to 64"),
        ("lanes", "65", "must be a whole number from 0 to 64"),
        ("lanes", "many", "must be a whole number"),
        ("lanes", "1.5", "must be a whole number"),
        ("device", "tpu", "must be auto, cpu or cuda"),
        ("address", "localhost", "must be HOST:PORT or unix:PATH"),
        ("reflection", "perhaps", "must be true or false"),
        ("max_unary_s", "0", "must be a number above 0 and at most 3600"),
        ("max_unary_s", "nan", "must be a number above 0 and at most 3600"),
        ("latency_mode", "turbo", "must be efficient, balanced or fastest"),
        ("spin_duration_us", "-1", "must be a whole number from 0 to 100000"),
        ("drain_delay_s", "inf", "must be a number from 0 to 600"),
        ("unix_socket_mode", "0999", "must be an octal mode"),
        ("readiness", "most", "must be default, all or any"),
        ("log_level", "trace", "must be debug, info, warning or error"),
    ],
)
def test_bad_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: str, limit: str
) -> None:
    """A refusal names the setting, where it came from, the limit and the value."""
    path = write(tmp_path, f"{setting} = {json.dumps(value)}\n")
    (line,) = refusal("--config", str(path))
    assert line.startswith(f"{setting} ({path}): ")
    assert limit in line
    assert line.endswith(f"not {value!r}")
    monkeypatch.setenv(variable_name(setting), value)
    (line,) = refusal("--config", str(path))
    assert line.startswith(f"{setting} ({variable_name(setting)}): ")
    assert limit in line
    assert line.endswith(f"not {value!r}")


def bounds_of(info: FieldInfo) -> list[tuple[float, float]]:
    """The limits of a number, each with a value just beyond it."""
    limits: list[tuple[float, float]] = []
    for one in info.metadata:
        match one:
            case annotated_types.Ge(ge=limit):
                limits.append((float(str(limit)), float(str(limit)) - 1))
            case annotated_types.Gt(gt=limit):
                limits.append((float(str(limit)), float(str(limit))))
            case annotated_types.Le(le=limit):
                limits.append((float(str(limit)), float(str(limit)) + 1))
    return limits


@pytest.mark.parametrize(
    "setting",
    [name for name, info in FIELDS.items() if info.annotation in (int, float, float | None)],
)
def test_every_number_is_bounded(setting: str) -> None:
    """Each number has a least and a greatest value, and is refused beyond either."""
    bounds = bounds_of(FIELDS[setting])
    assert len(bounds) == 2
    for limit, beyond in bounds:
        (line,) = refusal(f"{flag_name(setting)}={beyond:.0f}")
        assert line.startswith(f"{setting} ({flag_name(setting)}): ")
        assert f"{limit:.0f}" in line


def test_every_bad_value_is_told() -> None:
    """Two mistakes are two lines, so that one attempt finds both."""
    lines = refusal("--lanes", "-1", "--max-inputs", "0")
    assert [line.partition(" ")[0] for line in lines] == ["lanes", "max_inputs"]


def test_window_smaller_than_a_message() -> None:
    """A stream's window must have room for one message of it."""
    (line,) = refusal("--max-stream-batch-inputs", "10", "--max-stream-in-flight-inputs", "9")
    assert line == "max_stream_batch_inputs 10 is more than max_stream_in_flight_inputs 9"


def test_a_stop_must_fit_into_its_time() -> None:
    """The durations of the parts of a shutdown are added up, and refused if they are too long."""
    (line,) = refusal("--drain-delay-s", "6", "--shutdown-grace-s", "20.5")
    assert line == (
        "a shutdown may take 30.5 s: drain_delay_s 6, shutdown_grace_s 20.5 and 4 for the rest;"
        " that is more than shutdown_timeout_s 30"
    )
    Settings(drain_delay_s=6, shutdown_grace_s=20)
    Settings(drain_delay_s=6, shutdown_grace_s=20.5, shutdown_timeout_s=30.5)
    (line,) = refusal("--address", "0.0.0.0:1", "--shutdown-grace-s", "21.5")
    assert "a shutdown may take 30.5 s: drain_delay_s 5," in line


@pytest.mark.parametrize(
    ("address", "drain_s"),
    [
        ("127.0.0.1:50051", 0),
        ("127.0.0.2:50051", 0),
        ("localhost:50051", 0),
        ("[::1]:50051", 0),
        ("unix:/run/embedgrpc.sock", 0),
        ("0.0.0.0:50051", 5),
        ("[::]:50051", 5),
        ("10.1.2.3:50051", 5),
        ("some-host:50051", 5),
    ],
)
def test_a_server_on_a_network_waits_for_load_balancers(address: str, drain_s: float) -> None:
    """Only where no other machine can call, a stop begins at once; a value that is set wins."""
    assert Settings(address=address).drain_time_s == drain_s
    assert Settings(address=address, drain_delay_s=0).drain_time_s == 0
    assert Settings(address=address, drain_delay_s=1.5).drain_time_s == 1.5


def test_a_latency_mode_decides_what_is_not_set() -> None:
    """How long threads spin, and whether they have cores of their own."""
    assert Settings().batch_threads == LATENCY_MODES["balanced"] == BatchThreads(100, True)
    for mode, threads in LATENCY_MODES.items():
        assert Settings(latency_mode=mode).batch_threads == threads
        told = Settings(latency_mode=mode, spin_duration_us=7)
        assert told.batch_threads == BatchThreads(7, threads.pin_threads)
        for pin_threads in (False, True):
            told = Settings(latency_mode=mode, pin_threads=pin_threads)
            assert told.batch_threads == BatchThreads(threads.spin_duration_us, pin_threads)


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    """A key that sets nothing is a mistake in the file."""
    path = write(tmp_path, "max_input = 5\n")
    (line,) = refusal("--config", str(path))
    assert line.startswith(f"max_input ({path}): ")
    assert line.endswith("there is no such setting; did you mean max_inputs?")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"lanes: 4\n", "is not TOML"),
        (b"lanes = \xff\n", "is not TOML"),
    ],
)
def test_unreadable_file_is_told(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """A file that is not there or not TOML is named in one line."""
    path = tmp_path / "embedgrpc.toml"
    if content is not None:
        path.write_bytes(content)
    (line,) = refusal("--config", str(path))
    assert line.startswith(f"{path}: {problem}")


def test_folder_is_no_file(tmp_path: Path) -> None:
    """A folder instead of the file is reported."""
    assert refusal("--config", str(tmp_path)) == [f"{tmp_path}: cannot be read: Is a directory"]


def served(configuration: Configuration) -> list[tuple[str, str]]:
    """The models' names and sources."""
    return [(model.name, model.source) for model in configuration.settings.models]


def test_models_by_flags() -> None:
    """Each --model adds one, with or without an id."""
    flags = ["--model", "mini=./models/minilm", "--model", "package:files/model", "--model", "./x/"]
    configuration = resolve(*flags)
    assert served(configuration) == [
        ("mini", "./models/minilm"),
        ("files", "package:files/model"),
        ("x", "./x/"),
    ]
    assert configuration.origins["models"] == "--model"


def test_models_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable holds models separated by commas; a flag replaces them all."""
    monkeypatch.setenv("EMBEDGRPC_MODELS", "a=./one, ./two,")
    configuration = resolve()
    assert served(configuration) == [("a", "./one"), ("two", "./two")]
    assert configuration.origins["models"] == "EMBEDGRPC_MODELS"
    assert served(resolve("--model", "./three")) == [("three", "./three")]


def test_models_on_several_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas between endpoints do not separate models."""
    monkeypatch.setenv("EMBEDGRPC_MODELS", "a=./one,b=triton:h:1,[::1]:2/m:3,triton+tls:h:1/n")
    assert served(resolve()) == [
        ("a", "./one"),
        ("b", "triton:h:1,[::1]:2/m:3"),
        ("n", "triton+tls:h:1/n"),
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            "triton:h/m",
            "'h' is not HOST:PORT",
        ),
        ("triton:h:1", "the form is triton:"),
    ],
)
def test_bad_endpoints_are_told(model: str, problem: str) -> None:
    """A source that names no server is refused before anything is loaded."""
    (line,) = refusal("--model", model)
    assert line.startswith("models.0.source (--model): ")
    assert problem in line


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('source = "./a"\nfiles = "./b"', "does not run on Triton"),
        ('source = "triton:h:1/m"\nfiles = "triton:h:1/m"', "files must name a folder"),
        ('source = "./a"\nfallback = "./b"', "does not run on Triton"),
        ('source = "triton:h:1/m"\nfallback = "triton:h:1/m"', "fallback must name a folder"),
    ],
)
def test_files_are_for_triton_alone(tmp_path: Path, keys: str, problem: str) -> None:
    """The settings files and fallback are refused where they would mean nothing."""
    (line,) = refusal("--config", str(write(tmp_path, f"[[models]]\n{keys}\n")))
    assert problem in line


def test_models_by_file(tmp_path: Path) -> None:
    """The file gives a model as a table with all of its settings, or in the short form."""
    text = """
    [[models]]
    source = "./one"
    id = "a"
    aliases = ["b", "c"]
    default_truncation = "NONE"
    escape_special_tokens = true
    """
    model = resolve("--config", str(write(tmp_path, text))).settings.models[0]
    assert (model.name, model.aliases) == ("a", ("b", "c"))
    assert model.default_truncation is Truncation.NONE
    assert model.escape_special_tokens
    short = write(tmp_path, 'models = ["a=./one", "./two"]\n')
    assert served(resolve("--config", str(short))) == [("a", "./one"), ("two", "./two")]


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("a=", "models.0.source"),
        ("", "models.0.source"),
        ("x" * 129 + "=./one", "models.0.id"),
    ],
)
def test_bad_model_is_named(model: str, place: str) -> None:
    """A model without a source, or with a name that no request could hold, is refused."""
    (line,) = refusal("--model", model)
    assert line.startswith(f"{place} (--model): ")


def test_bad_model_table_is_named(tmp_path: Path) -> None:
    """A mistake in a model's table is reported with the position of the table."""
    path = write(tmp_path, '[[models]]\nsource = "./one"\n[[models]]\nid = "b"\nsauce = "./two"\n')
    lines = refusal("--config", str(path))
    assert [line.partition(": ")[0] for line in lines] == [
        f"models.1.source ({path})",
        f"models.1.sauce ({path})",
    ]


@pytest.mark.parametrize("models", [["./a/m", "./b/m"], ["x=./a", "x=./b"], ["m=./a", "./b/m/"]])
def test_two_models_with_one_name(models: list[str]) -> None:
    """Requests could not tell them apart: the refusal names both and the way out."""
    flags = [part for model in models for part in ("--model", model)]
    (line,) = refusal(*flags)
    assert line.startswith("two models are called ")
    assert all(model.rpartition("=")[2] in line for model in models)
    assert "give one another id with ID=SOURCE" in line


def test_alias_may_not_be_taken(tmp_path: Path) -> None:
    """Nor may an alias be another model's name."""
    path = write(
        tmp_path, '[[models]]\nsource = "./a"\n[[models]]\nsource = "./b"\naliases = ["a"]\n'
    )
    (line,) = refusal("--config", str(path))
    assert line.startswith("two models are called 'a': ./a and ./b")


def test_check_prints_a_file_that_can_be_read_again(tmp_path: Path) -> None:
    """`check` prints every setting as TOML with its origin, models included, and exits with 0."""
    model = FIXTURES / "bert-cls"
    path = write(
        tmp_path,
        f"""
        lanes = 2
        caller_weights = {{ "CN=b" = 2 }}
        [[models]]
        source = "{model}"
        aliases = ["b"]
        prompts = {{ "q" = "find \\"it\\": " }}
        weight_type = "int8"
        """,
    )
    variables = {"EMBEDGRPC_MAX_INPUTS": "9", "EMBEDGRPC_MAX_INPUT": "9", "EMBEDGRPC_TARGET": "x:1"}
    done = run("check", "--config", str(path), "--no-reflection", variables=variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line.removeprefix("# ").split()[0] for line in lines if line} >= FIELDS.keys() - {
        "models"
    }
    assert f"lanes = 2  # {path}" in lines
    assert "max_inputs = 9  # EMBEDGRPC_MAX_INPUTS" in lines
    assert "reflection = false  # --reflection" in lines
    assert 'address = "127.0.0.1:50051"  # default' in lines
    first, second, *_ = done.stderr.splitlines()
    assert first.endswith("MAX_INPUT sets nothing; did you mean EMBEDGRPC_MAX_INPUTS?")
    assert second.startswith("embedgrpc: clients can occupy up to")
    again = resolve("--config", str(write(tmp_path, done.stdout))).settings
    assert again.models[0].name == "bert-cls"
    assert again.lanes == 2
    assert again.max_inputs == 9
    assert again.caller_weights == {"CN=b": 2.0}
    assert again.models[0].prompts == {"q": 'find "it": '}
    assert again.models[0].weight_type == "int8"


def test_keys_of_one_model_by_flags() -> None:
    """A key belongs to the model before it; without any it belongs to the default model."""
    flags = ["--model", "./one", "--model-max-tokens", "7", "--model", "b=./two"]
    more = ["--model-weight-type", "int8", "--model-prompts", "q=a=b", "--model-prompts", "d="]
    one, two = resolve(*flags, *more, "--model-aliases", "c,d").settings.models
    assert (one.max_tokens, one.weight_type, one.aliases) == (7, "float32", ())
    assert (two.name, two.max_tokens, two.weight_type) == ("b", None, "int8")
    assert (two.prompts, two.aliases) == ({"q": "a=b", "d": ""}, ("c", "d"))
    (default,) = resolve("--model-weight-type", "int8").settings.models
    assert default == DEFAULT_MODEL.model_copy(update={"weight_type": "int8"})
    (line,) = refusal("--model-weight-type", "int8", "--model", "./one")
    assert line == "--model-weight-type: put it after the --model it is for"


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--lanes", "-1"], "embedgrpc: lanes (--lanes): "),
        (["--config", "/nonexistent.toml"], "embedgrpc: /nonexistent.toml: cannot be read"),
        (["--model", "a=./x", "--model", "a=./y"], "embedgrpc: two models are called 'a'"),
    ],
)
def test_bad_settings_end_the_command(command: str, arguments: Sequence[str], line: str) -> None:
    """Wrong settings end a command with 2 and one line on stderr."""
    done = run(command, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_unknown_flag_is_a_usage_error() -> None:
    """A flag that does not exist ends a command with 2."""
    done = run("serve", "--max-input-s", "5")
    assert done.returncode == 2
    assert "no option '--max-input-s'; did you mean --max-inputs?" in done.stderr


@pytest.mark.parametrize("arguments", [["serve", "--lanes", "-1"], ["check"]])
def test_settings_need_no_model_library(arguments: list[str]) -> None:
    """Settings are checked before slow imports."""
    program = (
        "import sys; from embedgrpc.cli.main import main; code = main(sys.argv[1:]);"
        " sys.exit(9 if {'onnxruntime', 'onnx', 'grpc'} & sys.modules.keys() else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, check=False
    )
    assert done.returncode == (2 if arguments[0] == "serve" else 0)


def test_help_names_every_flag_and_default() -> None:
    """`serve --help` lists every flag with its default."""
    done = run("serve", "--help")
    assert done.returncode == 0
    assert all(f"  {flag_name(setting)}" in done.stdout for setting in FIELDS)
    assert done.stdout.count("(default:") >= len(FIELDS)


def record_of(**extra: object) -> logging.LogRecord:
    """A log record of two minutes past midnight on 1 March 2026, UTC."""
    record = logging.LogRecord("embedgrpc.test", logging.INFO, "", 0, "model %s", ("ready",), None)
    record.created = 1772323320.25
    record.__dict__.update(extra)
    return record


def test_json_line_has_event_and_extras() -> None:
    """A line is one JSON object: time, level, logger, event and what was added."""
    line = JsonFormatter().format(record_of(model="a\nb", path=Path("/x"), seconds=1.5))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-03-01T00:02:00.250+00:00",
        "level": "info",
        "logger": "embedgrpc.test",
        "event": "model ready",
        "model": "a\nb",
        "path": "/x",
        "seconds": 1.5,
    }


def failed_record() -> logging.LogRecord:
    """A record of an exception that was caught."""
    record = record_of(model="a")
    try:
        int("what failed")
    except ValueError:
        record.exc_info = sys.exc_info()
    return record


def test_json_line_has_the_stack() -> None:
    """An exception's stack is a field of the same line."""
    line = JsonFormatter().format(failed_record())
    assert "\n" not in line
    assert json.loads(line)["stack"].endswith("'what failed'")


def test_human_line_has_event_and_extras() -> None:
    """A readable line has time, level, event and fields; a stack follows."""
    line = HumanFormatter().format(record_of(model="a", seconds=1.5))
    assert line.endswith("info    model ready model=a duration=1.5s")
    assert line[2] == line[5] == ":"
    first, *stack = HumanFormatter().format(failed_record()).splitlines()
    assert first.endswith("model ready model=a")
    assert stack[-1].startswith("ValueError: ")
    given = HumanFormatter().format(record_of(stack="line 1\nline 2"))
    assert given.endswith("model ready\nline 1\nline 2")


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ({"obstacle": 'no "GPU" here'}, ' obstacle="no \\"GPU\\" here"'),
        ({"path": "a\nb"}, ' path="a\\nb"'),
        ({"weight_bytes": 90868376}, " weight=86.66MiB"),
        ({"bytes": 512}, " size=512B"),
        ({"longest_ms": 3}, " longest=3ms"),
        ({"grace_s": 20.0}, " grace=20s"),
        ({"threads": 2, "aliases": "", "revision": None}, " threads=2"),
        ({"failed": False}, " failed=False"),
    ],
)
def test_fields_are_readable(field: dict[str, object], shown: str) -> None:
    """Texts with spaces are quoted, numbers have units, and empty fields are left out."""
    assert HumanFormatter().format(record_of(**field)).partition("model ready")[2] == shown


LOG_PROGRAM = """
import logging, sys
from embedgrpc.server.telemetry import logs
logs.configure(sys.argv[1], sys.argv[2])
logging.getLogger("a").info("quiet")
logging.getLogger("b").warning("loud", extra={"size": 3})
"""


@pytest.mark.parametrize("log_format", ["auto", "json"])
def test_pipes_get_json_lines(log_format: str) -> None:
    """Where stderr is no terminal, `auto` writes JSON; less severe lines are left out."""
    done = subprocess.run(
        [sys.executable, "-c", LOG_PROGRAM, "warning", log_format],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    assert {"event": "loud", "size": 3}.items() <= json.loads(line).items()


def on_terminal(program: str, *arguments: str, **variables: str) -> str:
    """Run a program whose stderr is a terminal; return what that shows."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", program, *arguments]
    environment = {"TERM": "xterm", **os.environ, **variables}
    subprocess.run(command, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = b""
    # Linux reports the end of a terminal as an error.
    with contextlib.suppress(OSError):
        while read := os.read(ours, 65_536):
            shown += read
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_terminals_get_readable_lines() -> None:
    """Where stderr is a terminal, `auto` writes readable lines, coloured unless NO_COLOR is set."""
    plain = on_terminal(LOG_PROGRAM, "info", "auto", NO_COLOR="1")
    assert [line[9:] for line in plain.splitlines()] == ["info    quiet", "warning loud size=3"]
    coloured = on_terminal(LOG_PROGRAM, "info", "auto", NO_COLOR="")
    assert "\x1b[33mwarning\x1b[0m loud" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured)[9:22] == plain[9:22]


BAR_PROGRAM = """
import logging, sys, time
from embedgrpc.models.progress import reporter
from embedgrpc.server.telemetry import logs
logs._BAR_AFTER_S = -1
logs.configure("info", "human")
handler = logging.getLogger().handlers[0]
with reporter.task("building", 1000):
    reporter.advance(500)
    handler.flush()
    logging.info("a line")
    handler.flush()
handler.flush()
"""


def test_a_progress_bar_does_not_tear_lines() -> None:
    """The bar is erased before a line is written, drawn again below it, and gone at the end."""
    shown = on_terminal(BAR_PROGRAM, NO_COLOR="1")
    bar = "building [###############...............] 50% 500B of 1000B"
    assert shown.startswith(bar)
    line, rest = shown.removeprefix(bar).split("\n")
    assert re.fullmatch(r"\r\x1b\[K\d\d:\d\d:\d\d info    a line", line)
    assert rest == f"{bar}\r\x1b[K"


@pytest.mark.parametrize(
    ("burst", "rate"), [("request_burst", "requests_per_s"), ("token_burst", "tokens_per_min")]
)
def test_a_burst_needs_a_rate(burst: str, rate: str) -> None:
    """A burst alone would be ignored."""
    (line,) = refusal(flag_name(burst), "5")
    assert line.endswith(f"{burst} needs {rate}")
    assert getattr(resolve(flag_name(burst), "5", flag_name(rate), "5").settings, burst) == 5
