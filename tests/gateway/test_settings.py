import subprocess
import sys
from dataclasses import fields

import pytest

from swift_rm.cli.main import build_parser
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.request.settings_sources import read_settings

NEEDED = {"model": "m", "reward_model": "r"}


def read(given=None, file=None, **environment):
    return read_settings({**NEEDED, **(given or {})}, None if file is None else str(file), environment)


@pytest.fixture
def write(tmp_path):
    def write(text, name="serve.yaml"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


def test_a_flag_counts_before_a_variable_before_the_file_before_the_default(write):
    file = write("port: 1\nmax-n: 2\nqueue: 3\n")
    found = read({"port": 11}, file, SWIFT_RM_SERVE_PORT="12", SWIFT_RM_SERVE_MAX_N="13", HOME="/x")
    assert (found.port, found.max_n, found.queue, found.retries) == (11, 13, 3, 2)
    assert read(SWIFT_RM_SERVE_CONFIG=str(file)).queue == 3
    assert read(None, write("queue: 4", "other.yaml"), SWIFT_RM_SERVE_CONFIG=str(file)).queue == 4


def test_values_have_their_types_in_a_file_and_in_variables(write):
    found = read(None, write("timeout_s: 7\ndrain-s: 1e1\npage: off\nany_model:\nport: '81'\nname: '7'\nmax_body_kib: 1_000\n"))
    assert (found.timeout_s, found.drain_s, found.page, found.any_model) == (7.0, 10.0, False, False)
    assert (found.port, found.name, found.max_body_kib) == (81, "7", 1000)
    assert isinstance(found.timeout_s, float)
    found = read(SWIFT_RM_SERVE_PAGE="No", SWIFT_RM_SERVE_LOG_CONTENT="1", SWIFT_RM_SERVE_TIMEOUT_S="2.5", SWIFT_RM_SERVE_PORT="")
    assert (found.page, found.log_content, found.timeout_s, found.port) == (False, True, 2.5, 8000)
    assert read(None, write("")) == read(None, write("# nothing\n")) == read()


def test_models_may_be_folders(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    found = read_settings({}, str(write("model: ~/lm\nreward_model: ../rm\n")), {})
    assert (found.model, found.reward_model) == ("/home/me/lm", str(tmp_path.parent / "rm"))
    found = read_settings({"model": "./lm"}, str(write("model: x\nreward_model: a/hub-id\n")), {})
    assert (found.model, found.reward_model) == ("./lm", "a/hub-id")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "must be a mapping of settings to values, such as 'port: 8000', got list"),
        ("port: [", "serve.yaml is no YAML"),
        (b"model: \xff\n", "serve.yaml is no YAML"),
        ("[" * 5000, "serve.yaml is no YAML"),
        ("a: !!python/object/apply:os.system [x]\n", "serve.yaml is no YAML"),
        ("prot: 1\n", "serve.yaml: 'prot' is no setting of serve: did you mean port?"),
        ("7: 1\n", "serve.yaml: '7' is no setting of serve: `swift-rm serve --help` lists them"),
        ("port: true\n", "serve.yaml: port must be a whole number, got True"),
        ("port: 8000.5\n", "serve.yaml: port must be a whole number, got 8000.5"),
        ("page: 2\n", "serve.yaml: page must be true or false, got 2"),
        ("timeout_s: soon\n", "serve.yaml: timeout_s must be a number, got 'soon'"),
        ("revision: 1234567\n", "serve.yaml: revision must be text (in quotes, where it looks like a number), got 1234567"),
        ("max-n: 0\n", "serve.yaml: max-n must be from 1 to 4,096, got 0"),
        ("timeout_s: .nan\n", "serve.yaml: timeout_s must be from 0.001 to 1,000,000.0, got nan"),
        ("log_level: loud\n", "serve.yaml: log_level must be one of debug, info, warning, error, got 'loud'"),
        ("any_model: yes\n", "serve.yaml: any_model goes with --upstream"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(write, text, said):
    with pytest.raises(ValueError) as raised:
        read(None, write(text))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        ({}, {"SWIFT_RM_SERVE_PROT": "1"}, "SWIFT_RM_SERVE_PROT is no setting of serve: did you mean SWIFT_RM_SERVE_PORT?"),
        ({}, {"SWIFT_RM_SERVE_PORT": "tcp://10.0.0.1:1"}, "SWIFT_RM_SERVE_PORT must be a whole number, got 'tcp://10.0.0.1:1'"),
        ({}, {"SWIFT_RM_SERVE_PAGE": "maybe"}, "SWIFT_RM_SERVE_PAGE must be true or false, got 'maybe'"),
        ({}, {"SWIFT_RM_SERVE_PORT": "65536"}, "SWIFT_RM_SERVE_PORT must be from 0 to 65,535, got 65536"),
        ({"max_n": 4097}, {"SWIFT_RM_SERVE_MAX_N": "3"}, "--max-n must be from 1 to 4,096, got 4097"),
        ({"model": ""}, {}, "serve needs a --model"),
        ({"reward_model": ""}, {}, "serve needs a --reward-model"),
        ({"host": ""}, {}, "--host must be an address"),
        ({"upstream": "http://x/v1", "device": "cpu"}, {}, "--device applies to a local model"),
    ],
)
def test_what_is_wrong_elsewhere_is_said_with_the_flag_or_variable(given, environment, said):
    with pytest.raises(ValueError) as raised:
        read(given, **environment)
    assert said in str(raised.value)


def test_a_file_that_is_not_there_is_misuse(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(None, tmp_path / "none.yaml")


def test_every_setting_has_a_flag_and_its_line_of_help_and_only_what_is_given_is_read():
    (serve,) = [a.choices["serve"] for a in build_parser()._actions if a.dest == "command"]
    flags = {action.dest: action for action in serve._actions}
    for one in fields(Settings):
        action = flags[one.name]
        assert action.option_strings[0] == f"--{one.name.replace('_', '-')}"
        assert one.metadata["help"] in action.help
    assert "(default 100000)" in flags["max_prompt_chars"].help
    assert "(default 5)" in flags["batch_wait_ms"].help
    assert "(default yes)" in flags["page"].help
    assert not [name for name in ("model", "max_tokens", "log_content") if "(default " in flags[name].help]
    assert set(flags) == {"help", "config", *(one.name for one in fields(Settings))}
    given = build_parser().parse_args(["serve", "--no-page", "--port", "0", "--drain-s", "2"])
    assert vars(given) == {"command": "serve", "page": False, "port": 0, "drain_s": 2.0}


def test_help_is_quick_because_it_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['swift-rm', 'serve', '--help']\n"
        "from swift_rm.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = ['torch', 'transformers', 'fastapi', 'uvicorn', 'pydantic', 'prometheus_client', 'httpx2', 'numpy', 'yaml']\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--reward-model" in done.stdout
    assert "SWIFT_RM_SERVE_MAX_N=16" in done.stdout


def test_a_missing_package_is_one_sentence(monkeypatch):
    from swift_rm.gateway.process import serving

    monkeypatch.setattr(serving, "PACKAGES", ("uvicorn", "no_such_package"))
    with pytest.raises(ImportError, match=r"serving needs no_such_package: pip install \"swift-rm\[serve\]\""):
        serving.serve(Settings(**NEEDED))


@pytest.mark.parametrize("token", ["short", "has a space in it", "t\u00f6ken-t\u00f6ken", "with\ttab-in-it", "a\x7fbcdefghi"])
def test_a_token_that_cannot_be_is_refused_without_showing_it(monkeypatch, token):
    from swift_rm.gateway.process.serving import token_of

    monkeypatch.setenv("MINE", token)
    with pytest.raises(ValueError, match="the token in MINE must have at least 8 ASCII characters") as raised:
        token_of(Settings(**NEEDED, token_env="MINE"))
    assert token not in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "::ffff:10.0.0.1"])
def test_whoever_is_not_alone_needs_a_token(monkeypatch, host):
    from swift_rm.gateway.process.serving import token_of

    monkeypatch.delenv("SWIFT_RM_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"set a token, such as export SWIFT_RM_TOKEN=\"\$\(openssl rand -hex 24\)\""):
        token_of(Settings(**NEEDED, host=host))
    monkeypatch.setenv("SWIFT_RM_TOKEN", " 0123456789\n")
    assert token_of(Settings(**NEEDED, host=host)) == "0123456789"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_alone_needs_none(monkeypatch, host):
    from swift_rm.gateway.process.serving import token_of

    monkeypatch.setenv("SWIFT_RM_TOKEN", " ")
    assert token_of(Settings(**NEEDED, host=host)) is None
