"""Trajectories and pairs in the formats that other trainers read, and back.

    openai   one conversation a line: `messages` as in OpenAI's chat format (`weight` 1 on what
             the model wrote), the same mask per message, and where tokens were recorded
             `input_ids` with `assistant_masks` per token (as TRL's SFTTrainer takes them)
    trl      one preference a line: `prompt`, `chosen`, `rejected` as messages (TRL's DPOTrainer)
    kto      one trajectory a line: `prompt`, `completion`, `label` (TRL's KTOTrainer)

TRL has no mask for the last two: it also trains on the interpreter's messages in them.

A message of the interpreter is a user turn with an `output` block, as the paper has it. Each
row also holds, under `mathenv`, what the format has no place for; with it a row comes back as
it was, without it a conversation is graded anew and needs an `answer`. The messages count: a
row whose messages were edited no longer fits its tokens and is refused.

What comes back are trajectories, not pairs: learners pair right with wrong ones of a problem
themselves (`preferences`), as each has rules of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from learners.preferences import Pair
from mathenv.env import read_turn
from mathenv.errors import DataError
from mathenv.grading import grade
from mathenv.protocol import output_block
from mathenv.store import from_json, to_json
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    StopReason,
    Trajectory,
    Turn,
)

Message = dict[str, Any]
Row = dict[str, Any]
Format = Literal["openai", "trl", "kto"]

_BEFORE, _AFTER = output_block("\0").split("\0")
_RAISED = re.compile(r"[A-Za-z_.]*(?:Error|Exception|Interrupt|Exit)\b.*")


def to_messages(trajectory: Trajectory) -> list[Message]:
    """Return the conversation: question, turns, and the interpreter's outputs as user turns."""
    messages = [{"role": "user", "content": trajectory.problem.question}]
    for index, turn in enumerate(trajectory.turns):
        messages.append({"role": "assistant", "content": turn.action})
        if index + 1 < len(trajectory.turns):
            messages.append({"role": "user", "content": output_block(turn.observation)})
    return messages


def openai_row(trajectory: Trajectory) -> Row:
    """Return one trajectory as an OpenAI conversation with masks.

    `mask` has one value per message, `assistant_masks` one per token of `input_ids`: 1 where
    the model wrote it.
    """
    messages = to_messages(trajectory)
    written = [message["role"] == "assistant" for message in messages]
    for message, mine in zip(messages, written, strict=True):
        if mine:
            message["weight"] = 1
    row: Row = {"id": trajectory.key, "messages": messages, "mask": [int(m) for m in written]}
    if trajectory.tokens is not None:
        row["input_ids"] = list(trajectory.tokens.ids)
        row["assistant_masks"] = [int(sampled) for sampled in trajectory.tokens.action_mask]
    return {**row, "reward": trajectory.reward, "mathenv": _rest(trajectory)}


def trl_row(pair: Pair) -> Row:
    """Return one pair in TRL's conversational preference format.

    Raises:
        DataError: the two answer different questions.
    """
    winner, loser = pair
    chosen, rejected = to_messages(winner), to_messages(loser)
    if chosen[0] != rejected[0]:
        raise DataError(f"{winner.key} and {loser.key} answer different questions")
    return {
        "prompt": chosen[:1],
        "chosen": chosen[1:],
        "rejected": rejected[1:],
        "mathenv": {"chosen": _rest(winner), "rejected": _rest(loser)},
    }


def kto_row(trajectory: Trajectory) -> Row:
    """Return one trajectory in TRL's conversational unpaired format."""
    prompt, *completion = to_messages(trajectory)
    return {
        "prompt": [prompt],
        "completion": completion,
        "label": trajectory.grade.correct,
        "mathenv": _rest(trajectory),
    }


def trajectories_from(rows: Iterable[Mapping[str, Any]]) -> Iterator[Trajectory]:
    """Return the trajectories of rows in any of the formats, the members of pairs once each.

    Conversations of other origin need the reference answer in `answer` (and may have an `id`,
    else the row's number is the problem's): their last turn is graded, and an output that ends
    in an exception counts as an error.

    Raises:
        DataError: naming the row, where it is none of the formats, its messages were edited,
            it has neither `mathenv` nor `answer`, or its `id` was another conversation's.
    """
    seen: dict[str, Trajectory] = {}
    for number, row in enumerate(rows, start=1):
        try:
            found = _from_row(row, number)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        for trajectory in found:
            if trajectory.key not in seen:
                seen[trajectory.key] = trajectory
                yield trajectory
            elif seen[trajectory.key] != trajectory:
                raise DataError(
                    f"row {number}: an earlier row holds another conversation called "
                    f"{trajectory.key}: give each row an `id` of its own, or none"
                )


def _from_row(row: Mapping[str, Any], number: int) -> Sequence[Trajectory]:
    kept = row.get("mathenv")
    if "messages" in row:
        return [_trajectory(_messages(row, "messages"), kept, row, number, 0)]
    prompt = _messages(row, "prompt")
    if "completion" in row:
        return [_trajectory([*prompt, *_messages(row, "completion")], kept, row, number, 0)]
    return [
        _trajectory([*prompt, *_messages(row, side)], kept and kept.get(side), row, number, sample)
        for sample, side in enumerate(("chosen", "rejected"))
    ]


def _messages(row: Mapping[str, Any], column: str) -> list[Message]:
    messages = row.get(column)
    if not isinstance(messages, list) or not all(
        isinstance(m, Mapping) and isinstance(m.get("content"), str) and m.get("role")
        for m in messages
    ):
        raise DataError(f"{column!r} must be a list of messages with text, found {messages!r:.80}")
    return [dict(message) for message in messages]


def _trajectory(
    messages: list[Message], kept: Any, row: Mapping[str, Any], number: int, sample: int
) -> Trajectory:
    talk = [m for m in messages if m["role"] != "system"]
    roles = [m["role"] for m in talk]
    alternating = all(
        (role == "assistant") is bool(place % 2) and (place or role == "user")
        for place, role in enumerate(roles)
    )
    if not roles or not alternating:
        raise DataError(f"roles must alternate, a question first and a turn after it: {roles}")
    if kept is None:
        return _graded(talk, row, number, sample)
    try:
        rest = json.loads(kept)
    except (TypeError, ValueError):
        raise DataError("'mathenv' is damaged: it must be the text that the export wrote") from None
    if _digest(talk) != rest.pop("messages_sha256", None):
        raise DataError(
            "the messages were edited, tokens and verdict no longer fit: remove 'mathenv' from "
            "the row and give the reference answer in 'answer' to have it graded anew"
        )
    return _restored(talk, rest)


def _rest(trajectory: Trajectory) -> str:
    """What the messages do not say, as JSON text: one column type for every reader."""
    row = to_json(trajectory)
    row["problem"]["question"] = ""
    for turn in row["turns"]:
        turn["action"] = ""
    for turn in row["turns"][:-1]:
        turn["observation"] = ""
    row["messages_sha256"] = _digest(to_messages(trajectory))
    return json.dumps(row)


def _restored(messages: Sequence[Message], rest: dict[str, Any]) -> Trajectory:
    rest["problem"]["question"] = messages[0]["content"]
    for turn, message in zip(rest["turns"], messages[1::2], strict=True):
        turn["action"] = message["content"]
    for turn, message in zip(rest["turns"], messages[2::2], strict=False):
        turn["observation"] = _output(message)
    return from_json(rest)


def _graded(
    messages: Sequence[Message], row: Mapping[str, Any], number: int, sample: int
) -> Trajectory:
    """Make a trajectory of a conversation of other origin."""
    answer = row.get("answer")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise DataError("it has neither 'mathenv' nor the reference answer in 'answer'")
    actions = [message["content"] for message in messages[1::2]]
    outputs = [_output(message) for message in messages[2::2]]
    if not actions or len(outputs) >= len(actions):
        raise DataError("the conversation must end with a turn of the model")
    turns = [
        _turn(action, output) for action, output in zip(actions, [*outputs, None], strict=True)
    ]
    stop = read_turn(actions[-1], last=True).stop
    assert stop is not None
    verdict = grade(str(answer), actions[-1])
    if stop is not StopReason.ANSWERED:
        verdict = Grade(False, GradeStatus.NO_ANSWER)
    return Trajectory(
        problem=Problem(str(row.get("id", number)), messages[0]["content"], str(answer)),
        agent=str(row.get("model") or "imported"),
        sample=sample,
        seed=0,
        turns=tuple(turns),
        stop_reason=stop,
        grade=verdict,
    )


def _turn(action: str, output: str | None) -> Turn:
    code = read_turn(action, last=output is None).code
    if output is None:
        return Turn(action, code)
    lines = output.strip().splitlines()
    raised = bool(lines) and _RAISED.fullmatch(lines[-1]) is not None
    status = ExecutionStatus.ERROR if raised else ExecutionStatus.OK
    return Turn(action, code, output, ExecutionResult(status, output))


def _output(message: Message) -> str:
    text: str = message["content"]
    if text.startswith(_BEFORE) and text.endswith(_AFTER) and len(text) >= len(_BEFORE + _AFTER):
        return text[len(_BEFORE) : -len(_AFTER)]
    return text


def _digest(messages: Sequence[Message]) -> str:
    said = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
