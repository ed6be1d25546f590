"""Where a setting comes from, and how a wrong one is told."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from trimtab.server.settings import InvalidSettings, ServerSettings, Settings, explained, load_settings


def refused_line(text: str, words: str, folder: Path) -> str:
    """The one line, with these words, that a configuration is refused with."""
    path = folder / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as refused:
        load_settings(path)
    told = str(refused.value)
    assert words in told
    assert "\n" not in told
    return told


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "trimtab.yaml"
    path.write_text("server: {port: 1111, host: 0.0.0.0, keep_alive: 3}\nengine: {max_rows: 7}\n", encoding="utf-8")
    return path


def test_command_line_over_environment_over_file_over_default(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SERVER__PORT", "2222")
    monkeypatch.setenv("TRIMTAB_SERVER__KEEP_ALIVE", "4")
    settings = load_settings(config, {"server": {"port": 3333}})
    assert settings.server.port == 3333
    assert settings.server.keep_alive == 4
    assert settings.server.host == "0.0.0.0"
    assert settings.server.shutdown_timeout == ServerSettings().shutdown_timeout
    assert settings.engine.max_rows == 7


def test_kubernetes_variables_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("TRIMTAB_SERVER_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("TRIMTAB_SERVICE_HOST", "10.0.0.1")
    assert load_settings().server == ServerSettings()


def test_nested_limits_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SERVER__LIMITS__MAX_N", "5")
    assert load_settings().server.limits.max_n == 5


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("TRIMTAB_SERVER__PROT", "unknown setting server.prot: did you mean 'port'?"),
        ("TRIMTAB_SRVER__PORT", "TRIMTAB_SRVER__PORT; did you mean 'server'?"),
        ("TRIMTAB_SERVER__LIMITS__MAXN", "server.limits.maxn: did you mean 'max_n'?"),
        ("TRIMTAB_ENGINE__DTIPE", "engine.dtipe: did you mean 'dtype'?"),
        ("TRIMTAB_SERVER__PORT", "setting server.port: input should be a valid integer"),
        ("TRIMTAB_SERVER", "TRIMTAB_SERVER__PORT"),
    ],
)
def test_a_wrong_variable_is_one_clear_line(variable: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(InvalidSettings) as refused:
        load_settings()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: {prot: 1}", "did you mean 'port'?"),
        ("servr: {port: 1}", "did you mean 'server'?"),
        ("server: {port: 99999}", "server.port"),
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    refused_line(text, words, tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot read"):
        load_settings(tmp_path / "none.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]


def test_every_printed_value_tells_where_it_comes_from(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SERVER__KEEP_ALIVE", "4")
    monkeypatch.setenv("TRIMTAB_SERVER__LIMITS__MAX_N", "5")
    printed = explained(config, {"server": {"port": 3333}}).splitlines()
    expected = (
        "  port: 3333  # command line",
        "  keep_alive: 4.0  # environment",
        "    max_n: 5  # environment",
        "    max_pairs: 1024  # default",
        f"  host: 0.0.0.0  # {config}",
        f"  max_rows: 7  # {config}",
        "  shutdown_timeout: 30.0  # default",
    )
    for line in expected:
        assert line in printed
    values = [line for line in printed if not line.rstrip().endswith(":")]
    assert all("  # " in line for line in values)


def test_what_is_printed_with_origins_is_yaml_for_the_same_settings(tmp_path: Path) -> None:
    written = tmp_path / "written.yaml"
    preset = {"decoding": {"strategy": "best_of_n", "n": 2, "reward": "brevity"}, "description": "a: b # c\nd"}
    key = {"sha256": "0" * 64, "policy": "strict"}
    policy = {"limits": {"rows": 3}, "sampling": {"temperature": [0.0, 1.0]}}
    values = {"presets": {"yes": preset, "1": {}}, "keys": {"ann": key}, "policies": {"strict": policy}}
    written.write_text(yaml.safe_dump(values), encoding="utf-8")
    printed = tmp_path / "printed.yaml"
    printed.write_text(explained(written), encoding="utf-8")
    assert load_settings(printed).model_dump(mode="json") == load_settings(written).model_dump(mode="json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("presets: {a: {decode: {}}}", "presets.a.decode"),
        ("presets: {a: {sampling: {temperature: 9}}}", "presets.a.sampling"),
        ("keys: {ann: {}}", "keys.ann"),
        ("keys: {ann: {key: secret}}", "keys.ann.key"),
        ("keys: {ann: {sha256: secret}}", "keys.ann.sha256"),
        ("admin_key: secret", "admin_key"),
        ("policies: {p: {strategy: [x]}}", "policies.p.strategy"),
        ("policies: {p: {strategies: [best_of_m]}}", "best_of_n"),
    ],
)
def test_wrong_presets_policies_and_keys_are_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    assert "secret" not in refused_line(text, words, tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/policy.md", "docs/operations.md", "docs/auto.md"])
def test_configurations_in_the_documents_are_right(page: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?m)^    (?:presets|policies|keys):\n(?:    .*\n|\n(?=    ))+", text)
    assert blocks
    for block in blocks:
        path = tmp_path / "block.yaml"
        values = yaml.safe_load(textwrap.dedent(block))
        policies = values.get("policies", {})
        named = {values.get("default_policy"), *(key.get("policy") for key in values.get("keys", {}).values())}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        load_settings(path)
        if policies:
            assert named - {None} <= policies.keys()
