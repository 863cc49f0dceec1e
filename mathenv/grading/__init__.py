r"""Is a final answer right? `grade(gold, response)` gives a `Grade`.

Cascade: extract the box, caps, strings, exact numbers, words, then math-verify in a
killable worker process. Importing this package loads neither sympy nor math-verify.
"""

from mathenv.grading.extract import extract_answer
from mathenv.grading.grader import TIERS, Tier, grade, grade_answer
from mathenv.grading.symbolic import close

__all__ = ["TIERS", "Tier", "close", "extract_answer", "grade", "grade_answer"]
