"""Two-turn worlds small enough to know the best policy: what the losses converge to.

Every trajectory is `question, first action, observation, second action`, one token each. The
policy is a softmax table over the next token, one row per history, observations included:
a language model predicts them too. Its optimum is the backward recursion of proposition 1.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from learners.losses import dpo
from learners.preferences import action_sample, completion_sample
from mathenv.types import (
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)

ETA = 0.5
QUESTION, FIRST, SEEN, SECOND = (0,), (1, 2, 3), (4, 5), (6, 7, 8)
VOCABULARY = 9


@dataclass(frozen=True)
class World:
    """`chance[a][o]` is the probability of observation o after action a; `utility` of a whole."""

    chance: dict[int, dict[int, float]]
    utility: dict[tuple[int, int, int], float]

    @property
    def sequences(self):
        return [s for s in itertools.product(FIRST, SEEN, SECOND) if self.chance[s[0]][s[1]] > 0]


def world(chance):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(len(FIRST) * len(SEEN) * len(SECOND), generator=generator).tolist()
    return World(chance, dict(zip(itertools.product(FIRST, SEEN, SECOND), values, strict=True)))


# What the tool prints follows from the action, but the model does not know it beforehand.
DETERMINISTIC = world({1: {4: 1.0, 5: 0.0}, 2: {4: 0.0, 5: 1.0}, 3: {4: 1.0, 5: 0.0}})
STOCHASTIC = world({1: {4: 0.7, 5: 0.3}, 2: {4: 0.2, 5: 0.8}, 3: {4: 0.5, 5: 0.5}})


def trajectory(sequence):
    a, o, b = sequence
    kinds = (SpanKind.PROMPT, SpanKind.SAMPLED, SpanKind.OBSERVATION, SpanKind.SAMPLED)
    spans = tuple(Span(kind, int(t > 2), t, t + 1) for t, kind in enumerate(kinds))
    return Trajectory(
        Problem("p", "?", "4"),
        "current",
        0,
        0,
        (Turn(str(a), observation=str(o)), Turn(str(b))),
        StopReason.ANSWERED,
        Grade(True, GradeStatus.CORRECT),
        TokenRecord((0, a, o, b), spans),
    )


class Table(torch.nn.Module):
    """A softmax over the next token for every history."""

    def __init__(self, seed=None):
        super().__init__()
        rows = [(0,), *((0, a) for a in FIRST), *((0, a, o) for a in FIRST for o in SEEN)]
        self.rows = {row: i for i, row in enumerate(rows)}
        logits = torch.zeros(len(rows), VOCABULARY, dtype=torch.float64)
        if seed is not None:
            logits.normal_(generator=torch.Generator().manual_seed(seed))
        allowed = {1: FIRST, 2: SEEN, 3: SECOND}
        for row, i in self.rows.items():
            off = torch.ones(VOCABULARY, dtype=torch.bool)
            off[list(allowed[len(row)])] = False
            logits[i, off] = -math.inf
        self.free = torch.nn.Parameter(logits.clone().nan_to_num(neginf=0.0))
        self.register_buffer("support", torch.where(logits.isinf(), logits, 0.0))

    def log_table(self):
        return (self.free + self.support).log_softmax(-1)

    def probability(self, history):
        return self.log_table()[self.rows[history]].exp()

    def logps(self, samples):
        """Summed log-probs over each sample's mask. Shape: (n,)."""
        table = self.log_table()
        terms = [
            sum(table[self.rows[s.ids[:t]], s.ids[t]] for t, on in enumerate(s.mask) if on)
            for s in samples
        ]
        return torch.stack(terms)


def optimum(world, reference):
    """Proposition 1: pi(a | s) ~ pi_ref(a | s) exp(Q(s, a) / eta), backwards."""
    policy, value = {}, {}
    for a, o in itertools.product(FIRST, SEEN):
        weights = {
            b: reference.probability((0, a, o))[b].item() * math.exp(world.utility[a, o, b] / ETA)
            for b in SECOND
        }
        total = sum(weights.values())
        value[a, o] = ETA * math.log(total)
        policy[0, a, o] = {b: w / total for b, w in weights.items()}
    q = {a: sum(p * value[a, o] for o, p in world.chance[a].items()) for a in FIRST}
    weights = {a: reference.probability((0,))[a].item() * math.exp(q[a] / ETA) for a in FIRST}
    policy[(0,)] = {a: w / sum(weights.values()) for a, w in weights.items()}
    surprise = {(a, o): value[a, o] - q[a] for a, o in value}  # term (C) of equation 13
    return policy, surprise


def converge(world, reference, to_sample, surprise=None):
    """Minimise the population loss: every pair in both orders, by its chance under the BT model."""
    sequences = world.sequences
    samples = [to_sample(trajectory(s)) for s in sequences]
    utility = torch.tensor([world.utility[s] for s in sequences], dtype=torch.float64)
    w, r = torch.tensor([*itertools.permutations(range(len(samples)), 2)]).T
    chance = torch.sigmoid(utility[w] - utility[r])
    c = torch.zeros_like(utility)
    if surprise:
        c = torch.tensor([surprise[s[:2]] for s in sequences], dtype=torch.float64)
    ref = reference.logps(samples).detach()
    policy = Table()
    policy.load_state_dict(reference.state_dict())
    optimizer = torch.optim.LBFGS(
        policy.parameters(),
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        logps = policy.logps(samples)
        losses = dpo(logps[w], logps[r], ref[w], ref[r], eta=ETA, margin=c[w] - c[r])
        value = (chance * losses).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert torch.cat([p.grad.flatten() for p in policy.parameters()]).abs().max() < 1e-7
    return policy


def distance(world, policy, best):
    """Largest difference of a probability in a history that can be reached."""
    reachable = [(0,), *{(0, a, o) for a, o, _ in world.sequences}]
    found = {row: policy.probability(row) for row in reachable}
    return max(abs(found[row][a].item() - p) for row in reachable for a, p in best[row].items())


@pytest.fixture(scope="module")
def reference():
    return Table(seed=1)


def test_mdpo_on_all_pairs_converges_to_the_optimal_policy(reference):
    best, _ = optimum(DETERMINISTIC, reference)
    assert distance(DETERMINISTIC, reference, best) > 0.1
    policy = converge(DETERMINISTIC, reference, action_sample)
    assert distance(DETERMINISTIC, policy, best) < 1e-5
    for a in FIRST:  # what the model expects to see was no target and has not moved
        assert torch.equal(policy.probability((0, a)), reference.probability((0, a)))


def test_the_unmasked_loss_does_not(reference):
    """It spends reward on predicting observations: the policy it finds is another."""
    best, _ = optimum(DETERMINISTIC, reference)
    policy = converge(DETERMINISTIC, reference, completion_sample)
    assert distance(DETERMINISTIC, policy, best) > 0.02
    moved = [policy.probability((0, a)) - reference.probability((0, a)) for a in FIRST]
    assert max(m.abs().max().item() for m in moved) > 0.02


def test_the_unmasked_loss_does_where_observations_tell_nothing(reference):
    """With one possible observation, expected with certainty, the masks make no difference."""
    silent = World({a: {4: 1.0, 5: 0.0} for a in FIRST}, DETERMINISTIC.utility)
    certain = Table()
    certain.load_state_dict(reference.state_dict())
    certain.support[[certain.rows[0, a] for a in FIRST], 5] = -math.inf
    best, _ = optimum(silent, certain)
    policy = converge(silent, certain, completion_sample)
    assert distance(silent, policy, best) < 1e-5


def test_with_stochastic_observations_equation_14_needs_its_margin(reference):
    """Term (C) of equation 13 vanishes for a deterministic tool, and is the margin otherwise."""
    best, surprise = optimum(STOCHASTIC, reference)
    assert distance(STOCHASTIC, converge(STOCHASTIC, reference, action_sample), best) > 1e-3
    with_margin = converge(STOCHASTIC, reference, action_sample, surprise)
    assert distance(STOCHASTIC, with_margin, best) < 1e-5
    _, none = optimum(DETERMINISTIC, reference)
    assert max(abs(none[s[:2]]) for s in DETERMINISTIC.sequences) < 1e-12
