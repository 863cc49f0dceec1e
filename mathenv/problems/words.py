"""`words`: procedural multi-step word problems with reference solutions.

A problem is a short program (a start value and 1 to 5 operations, the difficulty level)
told as a story. Splits are disjoint by construction: a problem's split is a hash of its
program, numbers included and wording excluded, so no split can hold another's problem
under other names. `words_ood` is out of distribution: sentence templates, names and
things that `words` never uses, numbers from 100 to 999, and 6 to 7 operations.

A reference solution uses several code cells, two operations in each, and carries its
value from cell to cell in a variable, so that later turns depend on interpreter state.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mathenv.errors import ConfigError
from mathenv.types import Problem

SPLITS = ("train", "validation", "test")
LEVELS = (1, 2, 3, 4, 5)
OOD_LEVELS = (6, 7)
MAX_VALUE = 999
OOD_MAX_VALUE = 99_999


@dataclass(frozen=True, slots=True)
class Operation:
    """One step. A template tells it, `code` updates the variable `{v}`.

    Templates mention `{a}` before `{b}`, as the code does.
    """

    name: str
    templates: tuple[str, ...]
    code: str
    final: bool = False  # may only stand last: it changes what is asked


@dataclass(frozen=True, slots=True)
class Step:
    """An operation with its numbers."""

    operation: Operation
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Program:
    """What a story computes: the split and the answer depend on this alone."""

    start: int
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        return f"{self.start}" + "".join(f"|{s.operation.name},{s.a},{s.b}" for s in self.steps)


@dataclass(frozen=True, slots=True)
class World:
    """The wording and the ranges that problems are drawn from."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    starts: tuple[str, ...]
    operations: tuple[Operation, ...]
    distractors: tuple[str, ...]
    levels: tuple[int, ...]
    low: int
    high: int
    factors: tuple[int, int]
    max_value: int


_OPERATIONS = (
    Operation(
        "add",
        (
            "{P} finds {a} more {t}.",
            "{Q} gives {P} {a} {t}.",
            "Then {P} buys {a} {t}.",
            "{P} picks up another {a} {t}.",
        ),
        "{v} = {v} + {a}",
    ),
    Operation(
        "subtract",
        (
            "{P} gives {a} {t} to {Q}.",
            "{P} loses {a} {t}.",
            "Then {P} sells {a} {t}.",
            "{Q} takes {a} of the {t}.",
        ),
        "{v} = {v} - {a}",
    ),
    Operation(
        "add_groups",
        (
            "{P} buys {a} boxes with {b} {t} each.",
            "{a} friends each bring {P} {b} {t}.",
            "{P} gets {a} {t} a day for {b} days.",
        ),
        "{v} = {v} + {a} * {b}",
    ),
    Operation(
        "subtract_groups",
        (
            "{P} gives {a} {t} to each of {b} friends.",
            "{P} packs {a} bags of {b} {t} and sends them to {Q}.",
            "{P} uses {a} {t} a day for {b} days.",
        ),
        "{v} = {v} - {a} * {b}",
    ),
    Operation(
        "multiply",
        (
            "A week later {P} has {a} times as many {t}.",
            "{P} trades every one of the {t} for {a} new {t}.",
        ),
        "{v} = {v} * {a}",
    ),
    Operation(
        "divide",
        (
            "{P} splits the {t} evenly into {a} piles and keeps one pile.",
            "{P} shares the {t} equally with others, so that {a} people have the same number.",
        ),
        "{v} = {v} // {a}",
    ),
    Operation(
        "half",
        ("{P} sells half of the {t}.", "Half of the {t} get lost."),
        "{v} = {v} // 2",
    ),
    Operation(
        "together_more",
        ("{Q} has {a} more {t} than {P} has now.",),
        "{v} = {v} + {v} + {a}",
        final=True,
    ),
    Operation(
        "together_times",
        ("{Q} has {a} times as many {t} as {P} has now.",),
        "{v} = {v} + {v} * {a}",
        final=True,
    ),
)

_OOD_TEMPLATES = {
    "add": ("Another {a} {t} arrive for {P}.", "{P} is handed {a} extra {t} by {Q}."),
    "subtract": ("{P} throws away {a} {t}.", "{a} of the {t} break, to the sorrow of {P}."),
    "add_groups": ("{P} collects {a} {t} from every one of {b} shelves.",),
    "subtract_groups": ("Into each of {a} crates {P} puts {b} {t} and ships them.",),
    "multiply": ("The number of {t} that {P} owns grows to {a} times what it was.",),
    "divide": ("Only one {t_one} in {a} survives the winter.",),
    "half": ("{P} hands one half of all {t} over to {Q}.",),
    "together_more": ("{Q} owns the same number of {t} as {P} plus {a}.",),
    "together_times": ("For every one of the {t} that {P} now has, {Q} has {a}.",),
}

WORDS = World(
    names=("Mia", "Leo", "Ana", "Tom", "Eva", "Sam", "Zoe", "Ben", "Ida", "Max"),
    things=("apples", "cards", "coins", "books", "shells", "pens", "stamps", "marbles"),
    starts=(
        "{P} has {n} {t}.",
        "{P} starts with {n} {t}.",
        "There are {n} {t} on the desk of {P}.",
    ),
    operations=_OPERATIONS,
    distractors=(
        "{Q} is {n} years old.",
        "{Q} has {n} {o}.",
        "It takes {n} minutes to walk home.",
    ),
    levels=LEVELS,
    low=2,
    high=60,
    factors=(2, 9),
    max_value=MAX_VALUE,
)

WORDS_OOD = World(
    names=("Priya", "Omar", "Greta", "Hugo", "Noor", "Felix"),
    things=("bricks", "tickets", "lamps", "ropes", "seeds"),
    starts=("In the store of {P} there are {n} {t}.", "{P} inherits {n} {t}."),
    operations=tuple(
        Operation(o.name, _OOD_TEMPLATES[o.name], o.code, o.final) for o in _OPERATIONS
    ),
    distractors=(
        "The road to the house of {Q} is {n} miles long.",
        "{Q} paid {n} dollars for {o}.",
    ),
    levels=OOD_LEVELS,
    low=100,
    high=999,
    factors=(2, 19),
    max_value=OOD_MAX_VALUE,
)


def load(
    split: str = "test",
    *,
    count: int = 1000,
    start: int = 0,
    seed: int = 0,
    levels: Sequence[int] | None = None,
    ood: bool = False,
) -> tuple[Problem, ...]:
    """Return problems number `start` to `start + count` of a split's endless sequence.

    The sequence depends on `seed`, `levels` and `ood` alone and repeats no program, so
    disjoint ranges of it are disjoint sets of problems.

    Raises:
        ConfigError: unknown split or level, or a negative range.
    """
    world = WORDS_OOD if ood else WORDS
    chosen = tuple(levels) if levels else world.levels
    if split not in SPLITS:
        raise ConfigError(f"words has the splits {', '.join(SPLITS)}, not {split!r}")
    if not set(chosen) <= set(world.levels):
        raise ConfigError(f"levels must be among {world.levels}, got {chosen}")
    if count < 0 or start < 0:
        raise ConfigError(f"count and start must not be negative, got {count} and {start}")
    problems = []
    for index, problem in enumerate(_sequence(split, seed, chosen, ood)):
        if index >= start + count:
            break
        if index >= start:
            problems.append(problem)
    return tuple(problems)


def split_of(program: Program) -> str:
    """Return the only split in which this program may occur (80/10/10)."""
    bucket = hashlib.sha256(program.key.encode()).digest()[0]
    return "train" if bucket < 205 else "validation" if bucket < 230 else "test"


def _sequence(split: str, seed: int, levels: tuple[int, ...], ood: bool) -> Iterator[Problem]:
    world = WORDS_OOD if ood else WORDS
    source = "words_ood" if ood else "words"
    rng = random.Random(f"{source}/{split}/{seed}/{levels}")
    seen: set[str] = set()
    index = 0
    while True:
        level = levels[index % len(levels)]
        program = _draw_program(rng, world, level)
        if split_of(program) != split or program.key in seen:
            continue
        seen.add(program.key)
        yield _tell(rng, world, program, f"{source}/{split}/{seed}/{index}", source, split)
        index += 1


def _draw_program(rng: random.Random, world: World, level: int) -> Program:
    start = value = rng.randint(world.low, world.high)
    steps: list[Step] = []
    while len(steps) < level:
        last = len(steps) == level - 1
        operation = rng.choice(world.operations)
        if operation.final and not last:
            continue
        step = _draw_step(rng, world, operation)
        result = apply(value, step)
        if result is None or not 1 <= result <= world.max_value:
            continue
        value = result
        steps.append(step)
    return Program(start, tuple(steps))


def _draw_step(rng: random.Random, world: World, operation: Operation) -> Step:
    factor = rng.randint(*world.factors)
    number = rng.randint(world.low, world.high)
    match operation.name:
        case "add" | "subtract" | "together_more":
            return Step(operation, number, 0)
        case "add_groups" | "subtract_groups":
            return Step(operation, factor, rng.randint(*world.factors))
        case "half":
            return Step(operation, 2, 0)
        case _:
            return Step(operation, min(factor, 5), 0)


def apply(value: int, step: Step) -> int | None:
    """Return the value after a step, None where the story would not make sense."""
    a, b = step.a, step.b
    match step.operation.name:
        case "add":
            return value + a
        case "subtract":
            return value - a
        case "add_groups":
            return value + a * b
        case "subtract_groups":
            return value - a * b
        case "multiply":
            return value * a
        case "divide" | "half":
            return value // a if value % a == 0 else None
        case "together_more":
            return value + value + a
        case "together_times":
            return value + value * a
    raise AssertionError(step.operation.name)


def _tell(
    rng: random.Random, world: World, program: Program, id_: str, source: str, split: str
) -> Problem:
    person, other = rng.sample(world.names, 2)
    thing, other_thing = rng.sample(world.things, 2)
    words = {"P": person, "Q": other, "t": thing, "t_one": thing[:-1], "o": other_thing}
    sentences = [rng.choice(world.starts).format(n=program.start, **words)]
    sentences += [
        rng.choice(step.operation.templates).format(a=step.a, b=step.b, **words)
        for step in program.steps
    ]
    level = len(program.steps)
    if level >= 3 and rng.random() < 0.3:
        distractor = rng.choice(world.distractors).format(
            n=rng.randint(world.low, world.high), **words
        )
        sentences.insert(rng.randint(1, len(sentences)), distractor)
    together = program.steps[-1].operation.final
    question = (
        f"How many {thing} do {person} and {other} have together?"
        if together
        else f"How many {thing} does {person} have now?"
    )
    value = program.start
    for step in program.steps:
        result = apply(value, step)
        assert result is not None
        value = result
    return Problem(
        id=id_,
        question=" ".join([*sentences, question]),
        answer=str(value),
        source=source,
        split=split,
        level=str(level),
        solution=_cells(program, thing),
    )


def _cells(program: Program, variable: str) -> tuple[str, ...]:
    lines = [step.operation.code.format(v=variable, a=step.a, b=step.b) for step in program.steps]
    cells = []
    for first in range(0, len(lines), 2):
        cell = lines[first : first + 2]
        if first == 0:
            cell.insert(0, f"{variable} = {program.start}")
        cells.append("\n".join([*cell, variable]))
    return tuple(cells)
