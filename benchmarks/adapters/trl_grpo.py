r"""Our environment in another trainer's loop: TRL's GRPOTrainer plays episodes of `MathToolEnv`.

    python -m benchmarks.adapters.trl_grpo words --model DIR --out OUT --steps 100

or around a trainer of one's own:

    GRPOTrainer(..., reward_funcs=final_answer, train_dataset=prompt_dataset(problems),
                rollout_func=episode_rollouts(problems, ChatRenderer(tokenizer)))

TRL (1.16) hands each batch of prompts to `rollout_func` and takes token ids back, so it samples
nothing itself and needs no vLLM server: `agents.models.hf` samples from the trainer's
own weights, the code runs in our sandbox, and the next turn sees what it printed. Of the columns
given back, TRL multiplies `env_mask` into its loss mask (its name there is `tool_mask`): 1 where
the model sampled the token, 0 on the interpreter's output and the template's tokens between
turns. Other columns go to the reward functions, here the grade of the final answer.

An episode in which the machinery failed has the reward None, which TRL leaves out of its group's
mean and gives the advantage 0, and an all-zero mask. Temperature and top-p are those of the
`GRPOConfig`. Needs the packages trl, accelerate and datasets.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from agents.base import SamplingParams
from agents.collector import CollectConfig, Collector, Job
from agents.llm import LLMAgent, derive_seed
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from agents.rollout import play_jobs, run_blocking
from benchmarks.agent_options import InterpreterName
from benchmarks.runner import claim
from benchmarks.suites import find_suite
from mathenv.errors import ConfigError, DataError, MathEnvError
from mathenv.interpreter import Interpreter
from mathenv.protocol import ProtocolName
from mathenv.store import TrajectoryStore
from mathenv.types import Problem, Trajectory

Columns = dict[str, list[Any]]
RolloutFunc = Callable[[list[Any], Any], dict[str, Any]]


def prompt_dataset(problems: Iterable[Problem]) -> Dataset:
    """Return TRL's training set: one conversational prompt per problem, and its id."""
    rows = [
        {"prompt": [{"role": "user", "content": problem.question}], "problem": problem.id}
        for problem in problems
    ]
    return Dataset.from_list(rows)


def final_answer(*, env_reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """Return the grades of the final answers: 1, 0, or None where the episode does not count.

    A reward function of TRL; `env_reward` is a column of `episode_rollouts`.
    """
    return list(env_reward)


def episode_rollouts(
    problems: Sequence[Problem],
    renderer: ChatRenderer,
    *,
    max_turn_tokens: int = 512,
    max_tokens: int = 2048,
    collecting: CollectConfig | None = None,
    interpreter: str | Interpreter = "local",
    file: Callable[[Trajectory], None] | None = None,
) -> RolloutFunc:
    """Return TRL's `rollout_func`: one episode per prompt, sampled from the trainer's weights.

    Args:
        problems: those of the training set; a prompt's last message is the question of one.
        max_turn_tokens: most tokens of one turn.
        max_tokens: most tokens of a trajectory, prompt and outputs included.
        collecting: horizon, concurrency and deadlines. The trainer's seed takes the place of
            its own.
        interpreter: what runs the code.
        file: called with every episode that counts.

    Raises:
        DataError: two problems ask the same and have different answers. When called: a prompt
            is none of the questions.
        ConfigError: when called, the trainer is told to sample in a way that this engine cannot.
        InfraError: when called, the machinery failed in all episodes of a batch.
    """
    by_question = _by_question(problems)
    collecting = collecting or CollectConfig()
    batches: Counter[int] = Counter()

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        step = trainer.state.global_step
        name = f"step-{step}.{batches[step]}"
        batches[step] += 1
        jobs = _jobs(by_question, prompts, name)
        # Another process plays the same problems: its samples must differ.
        seed = derive_seed(trainer.args.seed, trainer.accelerator.process_index)
        sampling = _sampling(trainer, max_turn_tokens, max_tokens)
        with _engine(trainer, renderer.tokenizer) as engine:
            agent = LLMAgent(engine, renderer, sampling, name=name)
            with Collector([agent], replace(collecting, seed=seed), interpreter) as collector:
                trajectories = run_blocking(play_jobs(collector, jobs))
        for trajectory in trajectories:
            if trajectory.counts and file is not None:
                file(trajectory)
        return trl_columns(trajectories, renderer, at_temperature_1=sampling.temperature == 1)

    return rollout


def trl_columns(
    trajectories: Sequence[Trajectory], renderer: ChatRenderer, *, at_temperature_1: bool = True
) -> Columns:
    """Return the columns that TRL takes back, one row per trajectory.

    `prompt_ids`, and of the tokens after them `completion_ids`, `env_mask` (1 where sampled)
    and `logprobs` of the sampler (None where the token was not sampled, or unknown because it
    was sampled at another temperature than the recorded 1); `env_reward` is 1, 0 or None.
    """
    rows = [_row(trajectory, renderer, at_temperature_1) for trajectory in trajectories]
    names = ("prompt_ids", "completion_ids", "env_mask", "logprobs", "env_reward")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _row(
    trajectory: Trajectory, renderer: ChatRenderer, at_temperature_1: bool
) -> tuple[list[int], list[int], list[int], list[float | None], float | None]:
    tokens, reward = trajectory.tokens, trajectory.reward if trajectory.counts else None
    if reward is None or tokens is None or not any(tokens.action_mask):
        # Nothing to train on; TRL wants a token that ends the completion all the same.
        prompt = renderer.prompt_ids(trajectory.problem.question)
        return prompt, [renderer.end_id], [0], [None], reward
    start = tokens.prompt_length
    mask = [int(sampled) for sampled in tokens.action_mask[start:]]
    recorded = iter(tokens.logprobs)
    logprobs = [next(recorded, None) if mine and at_temperature_1 else None for mine in mask]
    return list(tokens.ids[:start]), list(tokens.ids[start:]), mask, logprobs, reward


def _by_question(problems: Iterable[Problem]) -> dict[str, Problem]:
    found: dict[str, Problem] = {}
    for problem in problems:
        first = found.setdefault(problem.question, problem)
        if first.answer != problem.answer:
            raise DataError(
                f"{first.id} and {problem.id} ask the same question and have different answers: "
                "leave one of them out"
            )
    return found


def _jobs(by_question: Mapping[str, Problem], prompts: Sequence[Any], name: str) -> list[Job]:
    """Return one job per prompt; equal prompts are numbered samples of a problem."""
    seen: Counter[str] = Counter()
    jobs = []
    for prompt in prompts:
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if question not in by_question:
            raise DataError(
                f"the prompt {question!r:.80} is no problem's question: make the training set "
                "with prompt_dataset"
            )
        jobs.append(Job(by_question[question], name, seen[question]))
        seen[question] += 1
    return jobs


@contextmanager
def _engine(trainer: Any, tokenizer: Any) -> Iterator[TransformersModel]:
    """Yield an engine over the trainer's weights as they are now, without dropout."""
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        training = model.training
        model.eval()
        engine = TransformersModel(model, tokenizer, name="the trainer's model")
        try:
            yield engine
        finally:
            engine.close()
            model.train(training)


def _sampling(trainer: Any, max_turn_tokens: int, max_tokens: int) -> SamplingParams:
    others = {
        "top_k": trainer.top_k not in (0, None),
        "min_p": trainer.min_p not in (0.0, None),
        "repetition_penalty": trainer.repetition_penalty != 1.0,
    }
    unknown = [name for name, given in others.items() if given]
    if unknown:
        raise ConfigError(f"GRPOConfig sets {', '.join(unknown)}: use temperature and top_p only")
    return SamplingParams(trainer.temperature, trainer.top_p, max_turn_tokens, max_tokens)


@dataclass(frozen=True, slots=True)
class TrainGRPO:
    """Train a model with TRL's GRPO on the episodes of a suite.

    Writes checkpoints and the episodes (rollouts-N, N the process) into a folder; the checkpoint
    of the last step is the trained model. Stopped and started again it goes on from the last one.

    Args:
        suite: gsm8k, math, words, ..., or the path of a .jsonl file.
        model: folder or Hugging Face id of the model to begin with.
        out: the folder.
        data: folder with the suite's rows, as in `mathenv bench`.
        split: which split.
        limit: draw this many problems.
        steps: updates of the weights.
        prompts: problems per step, on each process.
        generations: episodes per problem: the group whose mean is the baseline.
        lr: peak learning rate.
        beta: weight of the KL to the first model, 0 is none.
        temperature: of the sampling.
        horizon: most turns of an episode.
        protocol: how turns are read: as models write them (lenient), or the paper's format to
            the letter (paper).
        max_turn_tokens: most tokens of one turn.
        max_tokens: most tokens of a trajectory.
        save_steps: steps between checkpoints.
        seed: fixes every random choice.
        interpreter: what runs the code.
    """

    suite: Annotated[str, tyro.conf.Positional]
    model: str
    out: Path
    data: Path | None = None
    split: str = "train"
    limit: int | None = None
    steps: int = 100
    prompts: int = 8
    generations: int = 8
    lr: float = 1e-6
    beta: float = 0.0
    temperature: float = 1.0
    horizon: int = 6
    protocol: ProtocolName = "lenient"
    max_turn_tokens: int = 512
    max_tokens: int = 2048
    save_steps: int = 50
    seed: int = 0
    interpreter: InterpreterName = "local"

    def run(self) -> None:
        """Train to the last step, whose checkpoint is the trained model."""
        problems = find_suite(self.suite, self.split).load(data=self.data, limit=self.limit)
        claim(self.out, {**asdict(self), "data": str(self.data), "out": str(self.out)})
        rank = self.config().process_index
        with TrajectoryStore(self.out / f"rollouts-{rank}") as store:

            def file(trajectory: Trajectory) -> None:
                if trajectory.key not in store:  # a step after the last checkpoint, played again
                    store.append(trajectory)

            last = get_last_checkpoint(str(self.out))
            # At its last step TRL's trainer would make one more.
            if last != str(self.out / f"checkpoint-{self.steps}"):
                self.trainer(problems, file).train(resume_from_checkpoint=last)
        if rank == 0:
            print(f"trained: {self.out / f'checkpoint-{self.steps}'}")

    def trainer(
        self, problems: Sequence[Problem], file: Callable[[Trajectory], None] | None = None
    ) -> GRPOTrainer:
        """Return TRL's trainer with our rollouts and reward."""
        tokenizer = load_tokenizer(self.model)
        rollouts = episode_rollouts(
            problems,
            ChatRenderer(tokenizer),
            max_turn_tokens=self.max_turn_tokens,
            max_tokens=self.max_tokens,
            collecting=CollectConfig(horizon=self.horizon, protocol=self.protocol),
            interpreter=self.interpreter,
            file=file,
        )
        return GRPOTrainer(
            model=load_causal_lm(self.model),
            reward_funcs=final_answer,
            args=self.config(),
            train_dataset=prompt_dataset(problems),
            processing_class=tokenizer,
            rollout_func=rollouts,
        )

    def config(self) -> GRPOConfig:
        """Return TRL's settings."""
        gpu = torch.cuda.is_available()
        return GRPOConfig(
            output_dir=str(self.out),
            max_steps=self.steps,
            per_device_train_batch_size=self.generations,
            gradient_accumulation_steps=self.prompts,
            num_generations=self.generations,
            learning_rate=self.lr,
            beta=self.beta,
            temperature=self.temperature,
            max_completion_length=self.max_tokens,
            save_steps=self.save_steps,
            logging_steps=1,
            report_to=[],
            seed=self.seed,
            use_cpu=not gpu,
            bf16=gpu and torch.cuda.is_bf16_supported(),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong use or data."""
    try:
        tyro.cli(TrainGRPO, args=arguments, config=(tyro.conf.OmitArgPrefixes,)).run()
    except MathEnvError as error:
        print(f"trl_grpo: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
