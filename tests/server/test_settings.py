"""Where a setting comes from, and how a wrong one is told."""

from pathlib import Path

import pytest

from trimtab.server.settings import InvalidSettings, ServerSettings, Settings, as_yaml, load_settings


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
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as refused:
        load_settings(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot read"):
        load_settings(tmp_path / "none.yaml")


def test_printed_settings_can_be_read_back(tmp_path: Path, config: Path) -> None:
    settings = load_settings(config)
    path = tmp_path / "printed.yaml"
    path.write_text(as_yaml(settings), encoding="utf-8")
    assert load_settings(path).model_dump() == settings.model_dump()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]
