"""The flags that choose an agent: each kind opens, plays, and says what is missing."""

import asyncio
import sys
from collections import Counter
from dataclasses import replace

import pytest

from agents.base import Agent
from agents.tiny import TinyConfig, make_tiny
from benchmarks.agent_options import AgentOptions, open_agent, read_mixture
from benchmarks.commands.bench import Bench
from benchmarks.commands.collect import Collect
from mathenv.errors import ConfigError
from mathenv.problems import words
from mathenv.store import read_trajectories

PROBLEMS = words.load("train", count=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    shape = TinyConfig(hidden=32, layers=1, heads=1, intermediate=32)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", config=shape)


def first_turn(options):
    async def play(agent: Agent):
        question = PROBLEMS[0].question
        async with agent.episode(question, sample=0, seed=0) as episode:
            return await episode.act(question), episode.tokens()

    with open_agent(options, PROBLEMS) as opened:
        action, tokens = asyncio.run(play(opened.agent))
        return opened, action, tokens


def test_a_served_model_plays_as_the_same_model_does_here(tiny, serve):
    shared = {"model": str(tiny), "max_turn_tokens": 8, "system": "Use Python."}
    here, action, tokens = first_turn(AgentOptions("transformers", **shared))
    with serve(tiny) as url:
        far = AgentOptions("openai", base_url=url, **shared)
        opened, far_action, far_tokens = first_turn(far)
        chat = AgentOptions("openai", base_url=url, api="chat", max_turn_tokens=8)
        chatting, reply, none = first_turn(chat)
    assert far_action == action
    assert far_tokens.ids == tokens.ids
    assert opened.agent.name == here.agent.name == "model"
    assert opened.details["system"] == here.details["system"] == "Use Python."
    assert opened.details["api"] == "tokens"
    assert none is None
    assert chatting.details["api"] == "chat"
    assert isinstance(reply.text, str)


def test_a_dialect_takes_the_place_of_the_models_template(tiny):
    plain = AgentOptions("transformers", model=str(tiny), max_turn_tokens=4)
    given = AgentOptions("transformers", model=str(tiny), max_turn_tokens=4, dialect="gemma2")
    (_, _, own), (opened, _, same) = first_turn(plain), first_turn(given)
    assert same.ids == own.ids
    assert opened.details["dialect"] == "gemma2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AgentOptions("openai"), "needs --base-url"),
        (AgentOptions("openai", base_url="http://localhost:1/v1"), "openai needs --model"),
        (AgentOptions("vllm"), "vllm needs --model"),
        (AgentOptions("transformers"), "transformers needs --model"),
        (
            AgentOptions("openai", base_url="http://localhost:1/v1", api="chat", dialect="chatml"),
            "no --dialect",
        ),
    ],
)
def test_what_is_missing_is_said(options, message):
    with pytest.raises(ConfigError, match=message), open_agent(options, PROBLEMS):
        pass


@pytest.mark.parametrize("kind", ["transformers", "vllm", "openai"])
def test_several_greedy_samples_are_refused(kind):
    options = AgentOptions(kind, model="m", base_url="http://localhost:1/v1", temperature=0.0)
    with pytest.raises(ConfigError, match="would all be the same"):
        with open_agent(options, PROBLEMS, samples=2):
            pass


def test_an_unknown_dialect_is_refused(tiny):
    options = AgentOptions("transformers", model=str(tiny), dialect="latin")
    with pytest.raises(ConfigError, match="no dialect is called 'latin'"):
        with open_agent(options, PROBLEMS):
            pass


# --- mixtures


@pytest.fixture
def mixture(tmp_path):
    def write(text):
        file = tmp_path / "mixture.toml"
        file.write_text(text)
        return file

    return write


def test_a_mixture_is_a_table_per_agent_over_the_flags(mixture):
    file = mixture(
        """
        [current]
        samples = 20
        model = "a/step-300"

        [previous]
        samples = 10
        model = "a/step-200"
        temperature = 0.8
        max_turn_tokens = 64
        stop_strings = ["Observation:"]
        """
    )
    flags = AgentOptions("vllm", dtype="bfloat16", max_tokens=1024)
    (current, twenty), (previous, ten) = read_mixture(file, flags)
    assert (twenty, ten) == (20, 10)
    assert current == replace(flags, name="current", model="a/step-300")
    assert previous == replace(
        flags,
        name="previous",
        model="a/step-200",
        temperature=0.8,
        max_turn_tokens=64,
        stop_strings=("Observation:",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no agent"),
        ("samples = 3", "expected Member"),
        ("[a]\nsample = 3", "sample"),
        ('[a]\nagent = "sglang"', r"\[a\] no agent is called 'sglang': use oracle"),
        ('[a]\ntemperature = "hot"', "temperature"),
        ('[a]\nname = "b"', r"\[a\] is the name"),
        ("[a]\nsamples = 0", "at least 1"),
        ("[a", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_mixture_is_named_with_the_file(mixture, text, message):
    with pytest.raises(ConfigError, match=rf"(?s)mixture\.toml.*{message}"):
        read_mixture(mixture(text), AgentOptions())


def test_a_mixture_is_collected_into_one_folder(tiny, mixture, tmp_path):
    """Agent by agent, each with its own samples; again, it is finished; changed, it is refused."""
    text = """
        [warm]
        samples = 3
        temperature = 1.5

        [greedy]
        temperature = 0.0

        [teacher]
        agent = "oracle"
        """
    who = AgentOptions("transformers", model=str(tiny), max_turn_tokens=6)
    sizes = {"out": tmp_path / "out", "limit": 2, "concurrency": 4}
    file = mixture(text)
    Collect("words", mixture=file, who=who, **sizes).run()
    found = list(read_trajectories(tmp_path / "out"))
    counts = Counter(t.agent for t in found)
    assert counts == {"warm": 6, "greedy": 2, "teacher": 2}
    assert len({t.tokens.ids for t in found if t.agent == "warm"}) == 6
    assert all(t.reward == 1 for t in found if t.agent == "teacher")
    before = (tmp_path / "out" / "trajectories.jsonl").read_bytes()
    Collect("words", mixture=file, who=who, **sizes).run()
    assert (tmp_path / "out" / "trajectories.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"holds another run.*agent was"):
        Collect("words", mixture=file, who=replace(who, top_p=0.5), **sizes).run()
    with pytest.raises(ConfigError, match="leave out --n"):
        Collect("words", mixture=file, who=who, n=2, **sizes).run()


# --- one's own

OWN = """
from contextlib import asynccontextmanager, contextmanager

from agents.base import Action


class Loud:
    def __init__(self, options):
        self.name, self.answer = options.name or "loud", options.temperature

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield self

    async def act(self, observation):
        return Action(rf"\\boxed{{{self.answer}}}")

    def tokens(self):
        return None


@contextmanager
def opened(options):
    yield Loud(options)
    print("closed")


silent = str
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder, with a module `own_agent` that leaves again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_agent.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_agent", None)


def test_a_class_in_the_current_folder_is_called_with_the_flags(own):
    flags = AgentOptions("own_agent:Loud", temperature=0.25, model="m")
    opened, action, tokens = first_turn(flags)
    assert (opened.agent.name, action.text, tokens) == ("loud", r"\boxed{0.25}", None)
    assert opened.details["model"] == "m"
    named, action, _ = first_turn(AgentOptions("own_agent:Loud", name="mine"))
    assert (named.agent.name, action.text) == ("mine", r"\boxed{0.0}"), "one sample is greedy"


def test_a_run_is_not_continued_by_other_code(own):
    bench = Bench("words", limit=2, out=own / "runs", who=AgentOptions("own_agent:Loud"))
    bench.run()
    bench.run()
    (own / "own_agent.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(ConfigError, match="code_sha256"):
        bench.run()


def test_what_is_made_may_be_a_context_manager(own, capsys):
    opened, action, _ = first_turn(AgentOptions("own_agent:opened"))
    assert (opened.agent.name, action.text) == ("loud", r"\boxed{0.0}")
    assert capsys.readouterr().out == "closed\n"


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("loud", "no agent is called 'loud': use oracle, .*, or MODULE:CLASS"),
        ("own_agents:Loud", "cannot be loaded: No module named 'own_agents'"),
        ("own_agent:Quiet", "own_agent:Quiet cannot be loaded: .*Quiet"),
        ("own_agent:silent", "which is no agent"),
        ("own_agent:", "no agent is called 'own_agent:'"),
    ],
)
def test_what_is_no_agent_is_said(own, agent, message):
    with pytest.raises(ConfigError, match=message), open_agent(AgentOptions(agent), PROBLEMS):
        pass


def test_an_installed_package_adds_an_agent(own, mixture):
    info = own / "their_agents-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-agents\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mathenv.agents]\nloud = own_agent:Loud\n")
    sys.path.append(str(own))
    opened, action, _ = first_turn(AgentOptions("loud"))
    assert (opened.agent.name, action.text) == ("loud", r"\boxed{0.0}")
    [(member, samples)] = read_mixture(mixture('[a]\nagent = "loud"\nsamples = 2'), AgentOptions())
    assert (member.agent, samples) == ("loud", 2)
