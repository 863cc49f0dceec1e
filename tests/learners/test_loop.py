"""One optimizer step: when results are read from the device, and what stops it."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from learners import KTOConfig, LearnerConfig, make_learner
from learners.numerics.logprobs import reference_logps
from learners.preferences import PairRules
from learners.training.loop import Frozen, Loop
from learners.training.parallel import Devices, Policy
from learners.training.schedule import TrainConfig
from mathenv.errors import TrainingError

PAIRS = PairRules(per_problem=2)
LEARNERS = {
    "mdpo": LearnerConfig(pairs=PAIRS),
    "mkto": KTOConfig(pairs=PAIRS, kl_sequences=4),  # with passes for its baseline
    "grpo": None,  # log-probs per token
    "sft": None,
}
BROKEN = 310  # a token that no made-up trajectory has
CONFIG = TrainConfig(lr=1e-2, token_budget=1)  # an example a pass


class Operations(TorchDispatchMode):
    """Names what torch computes, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    return [make_trajectory(f"p{p}", i < 2, sample=i) for p in range(4) for i in range(4)]


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def loop_of(name, model, config=CONFIG):
    learner = make_learner(name, *(x for x in [LEARNERS[name]] if x))
    devices = Devices()
    policy = Policy(model, devices, config)
    optimizer = torch.optim.SGD(policy.parameters)
    return learner, Loop(learner, policy, optimizer, devices, config, seed=0, steps=1)


def frozen_of(learner, examples, model):
    logps = reference_logps(model, examples, budget=10**6, per_token=learner.per_token)
    controls = [e.control for e in examples if e.control]
    return Frozen(logps, logps, controls)


@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_is_read_from_the_device_before_the_last_pass(name, trajectories, policy):
    """A read makes host and device wait for each other; once a step is enough."""
    learner, loop = loop_of(name, loaded(policy))
    examples, _ = learner.examples(trajectories, seed=0)
    frozen = frozen_of(learner, examples, loaded(policy))
    with Operations() as done:
        loop.step(1, examples, frozen)
    products = [i for i, name in enumerate(done.names) if name in ("mm", "addmm", "bmm")]
    reads = [i for i, name in enumerate(done.names) if name == "_local_scalar_dense"]
    assert len(products) > 3 * len(examples)  # passes there were
    assert reads
    assert reads[0] > products[-1]


@pytest.mark.parametrize("name", LEARNERS)
def test_one_broken_trajectory_of_many_passes_is_named_and_nothing_is_changed(
    name, trajectories, policy
):
    # A winner, so that SFT has it; in its prompt, so that no target is it.
    broken, *others = trajectories
    ids = (BROKEN, *broken.tokens.ids[1:])
    of_problem = [
        replace(t, tokens=replace(t.tokens, ids=(BROKEN, *t.tokens.ids[1:])))
        for t in others
        if t.problem.id == broken.problem.id
    ]
    broken = replace(broken, tokens=replace(broken.tokens, ids=ids))
    stored = [broken, *of_problem, *(t for t in others if t.problem.id != broken.problem.id)]
    model = loaded(policy)
    learner, loop = loop_of(name, model)
    examples, _ = learner.examples(stored, seed=0)
    frozen = frozen_of(learner, examples, loaded(policy))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[BROKEN] = float("nan")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match="not finite") as caught:
        loop.step(1, examples, frozen)
    named = re.findall(r"p\d+#\w+#\d+", str(caught.value))
    assert named
    assert {key.split("#")[0] for key in named} == {broken.problem.id}
    after = model.state_dict()
    assert all(
        torch.equal(after[k], v) or k.endswith("embed_tokens.weight") for k, v in before.items()
    )


def test_a_step_is_the_same_in_one_pass_and_in_many(trajectories, policy, reference):
    found = []
    for budget in (1, 10**6):
        learner, loop = loop_of("mdpo", loaded(policy), replace(CONFIG, token_budget=budget))
        examples, _ = learner.examples(trajectories, seed=0)
        found.append(loop.step(1, examples, frozen_of(learner, examples, loaded(reference))))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
