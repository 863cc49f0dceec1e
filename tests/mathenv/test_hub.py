"""The hub is asked once; without a connection what is on this machine will do."""

import pytest

from mathenv import hub
from mathenv.errors import ConfigError

library = pytest.importorskip("huggingface_hub", reason="comes with the extra train")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):
    """Let the hub answer with an error, or with nothing wrong."""

    def answer(error: Exception | None) -> None:
        def repo_info(self, repository, *, repo_type, timeout):
            assert timeout <= 10
            if error is not None:
                raise error

        monkeypatch.setattr(library.HfApi, "repo_info", repo_info)
        hub.reachable.cache_clear()

    yield answer
    hub.reachable.cache_clear()


def refused(kind: str) -> Exception:
    error: Exception = getattr(library.errors, kind).__new__(getattr(library.errors, kind))
    return error


def test_what_the_hub_says(answers) -> None:
    answers(None)
    assert hub.reachable("owner/name", "model")
    answers(ConnectionError("Name or service not known"))
    assert not hub.reachable("owner/name", "model")
    answers(refused("RepositoryNotFoundError"))
    with pytest.raises(ConfigError, match="the hub has no model called 'owner/name'"):
        hub.reachable("owner/name", "model")
    answers(refused("GatedRepoError"))
    with pytest.raises(ConfigError, match="accept its terms"):
        hub.reachable("owner/name", "model")


def test_models_without_a_connection(answers, tmp_path, monkeypatch) -> None:
    location = pytest.importorskip("agents.models.location")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step-30").mkdir()
    answers(None)
    assert location.check_model("owner/name") == {}
    answers(ConnectionError())
    with pytest.raises(ConfigError, match=r"no folder owner/name.*cannot be asked"):
        location.check_model("owner/name")
    with pytest.raises(ConfigError, match=r"no folder step-3 \(did you mean 'step-30'\?\), and"):
        location.check_model("step-3")
    monkeypatch.setattr(library, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert location.check_model("owner/name") == {"local_files_only": True}


def test_a_path_asks_nobody(answers, tmp_path, monkeypatch) -> None:
    location = pytest.importorskip("agents.models.location")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "step-30").mkdir(parents=True)
    (tmp_path / "runs" / "step-30" / "config.json").touch()
    answers(AssertionError("the hub was asked"))
    monkeypatch.setattr(location, "reachable", None)
    wrong = ("runs/step-3", "./x", "../x", "/x", "~/x", "a/b/c", "a b", "x:y", "runs/", "-x")
    for path in wrong:
        with pytest.raises(ConfigError, match=r"there is no folder|is not a model folder"):
            location.check_model(path)
    with pytest.raises(ConfigError, match="these in it are: step-30"):
        location.check_model("runs")
    with pytest.raises(ConfigError, match=r"runs/step-3 \(did you mean 'step-30'\?\)"):
        location.check_model("runs/step-3")
    assert location.check_model("runs/step-30") == {}


def test_settings_are_as_before_after_a_time_offline() -> None:
    pytest.importorskip("datasets", reason="an extra")
    before = library.constants.HF_HUB_OFFLINE
    with hub.offline():
        assert library.constants.HF_HUB_OFFLINE
    assert before == library.constants.HF_HUB_OFFLINE
