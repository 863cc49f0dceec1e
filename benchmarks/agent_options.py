"""Which agent a command uses: shared flags, and a table of kinds to which one line adds one.

Kinds that need torch are imported when they are chosen.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from agents.base import Agent, SamplingParams
from agents.oracle import OracleAgent, ReplayAgent
from mathenv.errors import ConfigError, did_you_mean
from mathenv.settings import Count, NotNegative, PositiveShare, check_settings
from mathenv.store import read_trajectories
from mathenv.types import Problem

InterpreterName = Literal["local", "docker"]
MODEL_KINDS = ("transformers", "vllm", "openai")
PROBLEM_KINDS = ("oracle", "replay")  # made of a suite's problems, or of what was played on them
ENTRY_POINT_GROUP = "mathenv.agents"


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Which agent plays, and how it samples.

    Args:
        agent: `oracle` plays reference solutions (a check of everything but the model),
            `transformers` and `vllm` sample from a model in this process, `openai` from one
            behind a server, `replay` repeats stored trajectories. One of your own is
            MODULE:CLASS, found in the current folder or installed (docs/how-to/own-agent.md).
        model: folder or Hugging Face id of the model. For agent `openai` it is where the
            tokenizer comes from, and not needed with `--api chat`.
        trajectories: .jsonl file or folder to repeat (agent `replay`).
        temperature: 0 is greedy. Left out: 0 for one sample, 1 for several.
        top_p: nucleus sampling, 1 is off.
        max_turn_tokens: most tokens of one turn.
        max_tokens: most tokens of a whole trajectory, prompt and outputs included.
        device: where the model runs, e.g. cpu or cuda.
        dtype: type of the weights, e.g. float32 or bfloat16.
        max_batch: requests decoded together at most; memory grows with it.
        base_url: address of the server, e.g. http://localhost:8000/v1 (agent `openai`; the
            key comes from OPENAI_API_KEY).
        served_model: the model's name at the server. Left out: the only one that it lists.
        slots: requests that the server is sent at once. Left out: as many as there are episodes.
        api: `tokens` sends and receives token ids, as vLLM's server can; `chat` text, and
            then trajectories hold no tokens and cannot be trained on.
        dialect: how conversations are written, a name in agents/dialects.toml. Left out: the
            model's own chat template.
        tool_role: the interpreter's output is told in a `user` turn or as a `tool` message.
        system: text of a system message.
        stop_strings: texts that end a turn. Left out: the dialect's.
        name: what results call the agent. Left out: the last part of the model's path.
    """

    agent: str = "oracle"
    model: str | None = None
    trajectories: Path | None = None
    temperature: NotNegative | None = None
    top_p: PositiveShare = 1.0
    max_turn_tokens: Count = 512
    max_tokens: Count = 2048
    device: str = "cpu"
    dtype: str = "float32"
    max_batch: Count = 128
    base_url: str | None = None
    served_model: str | None = None
    slots: Count | None = None
    api: Literal["tokens", "chat"] = "tokens"
    dialect: str | None = None
    tool_role: Literal["user", "tool"] = "user"
    system: str = ""
    stop_strings: tuple[str, ...] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class Member(AgentOptions):
    """One table of a mixture's file: an agent and its samples per problem."""

    samples: Count = 1


@dataclass(frozen=True, slots=True)
class OpenAgent:
    """A ready agent. `details` identifies what its name does not, e.g. the weights.

    `least_horizon` is the number of turns its script needs (0: it has none).
    """

    agent: Agent
    details: Mapping[str, Any]
    least_horizon: int = 0


def read_mixture(file: Path, defaults: AgentOptions) -> list[tuple[AgentOptions, int]]:
    """Read a TOML file with a table per agent; return each agent's options and its samples.

    A table's name is the agent's. What it does not say is as in `defaults`, unless it names
    another kind of agent than that.

    Raises:
        ConfigError: there is no such file, or a key or value in it is wrong.
    """
    recipe = import_module("learners.recipe")
    tables = recipe.read_toml(file)
    members = recipe.structured(tables, dict[str, Member], file)
    if not members:
        raise ConfigError(f"{file} holds no agent: give each a table, such as [current]")
    mixture = []
    for name, member in members.items():
        if "name" in tables[name]:
            raise ConfigError(f"{file}: [{name}] is the name: leave out `name`")
        said = {key: getattr(member, key) for key in tables[name] if key != "samples"}
        try:
            _check_kind(member.agent)
        except ConfigError as error:
            raise ConfigError(f"{file}: [{name}] {error}") from None
        same_kind = said.get("agent", defaults.agent) == defaults.agent
        base = defaults if same_kind else AgentOptions()
        mixture.append((replace(base, name=name, **said), member.samples))
    return mixture


def identify(options: AgentOptions, samples: int) -> dict[str, Any]:
    """Return what identifies an agent that is not open: what it is, not where it runs."""
    found: dict[str, Any] = {"kind": options.agent}
    for option in ("model", "trajectories", "base_url", "served_model"):
        if (value := getattr(options, option)) is not None:
            found[option] = str(value)
    if options.agent in MODEL_KINDS:
        found |= {"sampling": asdict(_sampling(options, samples)), **_wording(options)}
    if options.agent in ("transformers", "vllm"):
        found |= _details(options)
    if options.agent not in AGENTS:
        given = asdict(options).items() - asdict(AgentOptions()).items()
        found |= {key: str(value) for key, value in given if key not in ("agent", "name")}
        found |= _source(_factory(options.agent))
    return found


_SAMPLING = ("temperature", "top_p", "max_turn_tokens", "max_tokens")
_WORDING = ("dialect", "tool_role", "system", "stop_strings")
_HERE = ("model", *_SAMPLING, *_WORDING, "dtype", "max_batch")
_USED = {  # by our own agents, beside `agent` and `name`; one of the user's may use all
    "oracle": (),
    "replay": ("trajectories",),
    "transformers": (*_HERE, "device"),
    "vllm": _HERE,
    "openai": ("model", *_SAMPLING, *_WORDING, "base_url", "served_model", "slots", "api"),
}


def _check_used(options: AgentOptions) -> None:
    """Refuse flags that the kind of agent would ignore."""
    used = _USED.get(options.agent)
    for option in fields(AgentOptions):
        if used is None or option.name in ("agent", "name", *used):
            continue
        if getattr(options, option.name) != option.default:
            raise ConfigError(
                f"the {options.agent}{'' if options.agent == 'oracle' else ' agent'} takes no "
                f"--{option.name.replace('_', '-')}: leave it out, or choose another --agent"
            )


Opener = Callable[
    [AgentOptions, Sequence[Problem], SamplingParams], AbstractContextManager[OpenAgent]
]


@contextmanager
def open_agent(
    options: AgentOptions, problems: Sequence[Problem], *, samples: int = 1
) -> Iterator[OpenAgent]:
    """Load the agent for these problems, and free its memory after.

    Raises:
        ConfigError: a flag is missing or does not fit the kind of agent.
    """
    sampling = _sampling(options, samples)
    _check_used(options)
    opener = AGENTS.get(options.agent, _own)
    with opener(options, problems, sampling) as opened:
        yield opened


@contextmanager
def _oracle(
    options: AgentOptions, problems: Sequence[Problem], sampling: SamplingParams
) -> Iterator[OpenAgent]:
    longest = max(max(1, len(problem.solution)) for problem in problems)
    agent = OracleAgent(problems, name=options.name)
    yield OpenAgent(agent, {}, least_horizon=longest + 1)


@contextmanager
def _replay(
    options: AgentOptions, problems: Sequence[Problem], sampling: SamplingParams
) -> Iterator[OpenAgent]:
    if options.trajectories is None:
        raise ConfigError("--agent replay needs --trajectories, a .jsonl file or its folder")
    stored = list(read_trajectories(options.trajectories))
    digest = hashlib.sha256(repr([t.key for t in stored]).encode()).hexdigest()[:16]
    longest = max((len(t.turns) for t in stored), default=0)
    agent = ReplayAgent(stored, name=options.name or "replay")
    yield OpenAgent(agent, {"trajectories_sha256": digest}, least_horizon=longest)


@contextmanager
def _here(
    options: AgentOptions, problems: Sequence[Problem], sampling: SamplingParams
) -> Iterator[OpenAgent]:
    model = _model(options)
    policy = import_module("agents.policy")
    import_module("transformers.utils.logging").disable_progress_bar()
    with policy.load_policy(
        model,
        sampling,
        name=options.name or Path(model).name,
        engine=policy.EngineOptions(
            options.agent, options.device, options.dtype, options.max_batch
        ),
        rendering=_rendering(options),
    ) as agent:
        yield OpenAgent(agent, _details(options))


@contextmanager
def _openai(
    options: AgentOptions, problems: Sequence[Problem], sampling: SamplingParams
) -> Iterator[OpenAgent]:
    if options.base_url is None:
        raise ConfigError("--agent openai needs --base-url, e.g. http://localhost:8000/v1")
    server = import_module("agents.models.server").ServerOptions(
        options.base_url, options.served_model, slots=options.slots
    )
    details = {"base_url": options.base_url, "api": options.api, **_wording(options)}
    name = options.name or options.served_model or (options.model and Path(options.model).name)
    if options.api == "chat":
        if options.dialect is not None or options.tool_role != "user":
            raise ConfigError("with --api chat the server writes the conversation: no --dialect")
        opened = import_module("agents.server").connect_chat(
            server,
            sampling,
            name=name,
            system=options.system,
            stop_strings=options.stop_strings or (),
        )
    else:
        model = _model(options)
        details["tokenizer_from"] = model
        opened = import_module("agents.server").connect_policy(
            model, server, sampling, name=name, rendering=_rendering(options)
        )
    with opened as agent:
        yield OpenAgent(agent, details)


@contextmanager
def _own(
    options: AgentOptions, problems: Sequence[Problem], sampling: SamplingParams
) -> Iterator[OpenAgent]:
    """Open an agent of the user's: what MODULE:CLASS names is called with the options."""
    factory = _factory(options.agent)
    made = factory(replace(options, temperature=sampling.temperature))
    with made if hasattr(made, "__exit__") else nullcontext(made) as agent:
        if not (hasattr(agent, "episode") and isinstance(getattr(agent, "name", None), str)):
            raise ConfigError(
                f"--agent {options.agent} made {agent!r}, which is no agent: it needs a `name` "
                "and an `episode` (agents/base.py)"
            )
        yield OpenAgent(agent, identify(options, 1))


def _check_kind(name: str) -> None:
    """Raise `ConfigError` unless --agent may be `name`: ours, installed, or MODULE:CLASS."""
    installed = entry_points(group=ENTRY_POINT_GROUP).names
    if name not in {*AGENTS, *installed} and not re.fullmatch(r"[\w.]+:[\w.]+", name):
        known = [*AGENTS, *sorted(installed)]
        raise ConfigError(
            f"no agent is called {name!r}{did_you_mean(name, known)}: use {', '.join(known)}, or "
            "MODULE:CLASS for one of your own"
        )


def _factory(name: str) -> Callable[[AgentOptions], Any]:
    _check_kind(name)
    installed = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not installed and "" not in sys.path:
        sys.path.append("")  # the current folder, which a console script does not look in
    entry = installed[0] if installed else EntryPoint(name, name, ENTRY_POINT_GROUP)
    try:
        factory: Callable[[AgentOptions], Any] = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--agent {name} cannot be loaded: {error}") from error
    return factory


def _source(factory: Callable[..., Any]) -> dict[str, str]:
    """Return a hash of the file that an agent comes from: a run is not continued by another."""
    try:
        file = inspect.getsourcefile(factory)
    except TypeError:  # a partial, or built in
        file = None
    code = Path(file).read_bytes() if file else b""
    return {"code_sha256": hashlib.sha256(code).hexdigest()[:16]} if code else {}


def _model(options: AgentOptions) -> str:
    if options.model is None:
        raise ConfigError(f"--agent {options.agent} needs --model, a folder or a Hugging Face id")
    return options.model


def _rendering(options: AgentOptions) -> Any:
    return import_module("agents.policy").RenderOptions(
        options.dialect, options.tool_role, options.system, options.stop_strings
    )


def _details(options: AgentOptions) -> dict[str, Any]:
    """Return what identifies a model that runs here. The engine is named where it is not ours."""
    model = Path(_model(options))
    details: dict[str, Any] = {"dtype": options.dtype, **_wording(options)}
    if model.is_dir():
        details["model_sha256"] = folder_hash(model)
    else:
        details["model"] = options.model
    return details | ({} if options.agent == "transformers" else {"engine": options.agent})


def _wording(options: AgentOptions) -> dict[str, Any]:
    """Return the settings of the conversation that differ from the defaults."""
    given = {name: getattr(options, name) for name in ("dialect", "system", "stop_strings")}
    said = {name: value for name, value in given.items() if value}
    return said | ({} if options.tool_role == "user" else {"tool_role": options.tool_role})


AGENTS: dict[str, Opener] = {
    "oracle": _oracle,
    "transformers": _here,
    "vllm": _here,
    "openai": _openai,
    "replay": _replay,
}


def folder_hash(folder: Path) -> str:
    """Return a hash of a model folder's weights and configuration, 16 hex digits.

    Reads everything: about a second per gigabyte.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") or file.name == "config.json":
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _sampling(options: AgentOptions, samples: int) -> SamplingParams:
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if samples == 1 else 1.0
    if temperature == 0 and samples > 1 and options.agent in MODEL_KINDS:
        raise ConfigError(
            f"{samples} greedy samples would all be the same: set --temperature, or one sample"
        )
    return SamplingParams(temperature, options.top_p, options.max_turn_tokens, options.max_tokens)
