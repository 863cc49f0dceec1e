r"""Is a final answer right? `grade(gold, response)` gives a `Grade`.

Cascade: extract the box, caps, strings, exact numbers, words, algebra at rational points, parts
one by one, then math-verify in a killable, confined worker process. What counts as equal is a
`GradePolicy`. Importing this package loads neither sympy nor math-verify.
"""

from mathenv.grading.batch import PolicyGrader, agrade, grade_many, grader_for
from mathenv.grading.extract import extract_answer
from mathenv.grading.grader import TIERS, Tier, grade, grade_answer
from mathenv.grading.policy import MATH_VERIFY, PAPER, POLICIES, STRICT, GradePolicy, find_policy
from mathenv.grading.symbolic import close
from mathenv.grading.trail import ExplainedGrade, Step

__all__ = [
    "MATH_VERIFY",
    "PAPER",
    "POLICIES",
    "STRICT",
    "TIERS",
    "ExplainedGrade",
    "GradePolicy",
    "PolicyGrader",
    "Step",
    "Tier",
    "agrade",
    "close",
    "extract_answer",
    "find_policy",
    "grade",
    "grade_answer",
    "grade_many",
    "grader_for",
]
