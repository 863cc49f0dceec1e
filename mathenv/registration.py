"""The Gymnasium ids. They exist as soon as `mathenv` is imported.

Gymnasium 1.x has no entry-point group for environments: `import mathenv` registers, or
`gym.make("mathenv:MathTool-v0")`, which imports it.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

ENV_ID = "MathTool-v0"


def register_envs() -> None:
    """Register every id of this package. Calling it again changes nothing."""
    if ENV_ID not in registry:
        # No max_episode_steps: the horizon is the environment's own and ends an episode
        # with a stop reason; `TimeLimit` would only set `truncated`.
        register(
            id=ENV_ID,
            entry_point="mathenv.env:MathToolEnv",
            vector_entry_point="mathenv.vector:MathToolVectorEnv",
        )
