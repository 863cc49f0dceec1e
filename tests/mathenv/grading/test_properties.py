"""Properties of verdicts on generated answers."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathenv.grading import POLICIES, grade, grade_answer
from mathenv.grading.extract import extract_answer
from mathenv.grading.normalize import normalize
from mathenv.grading.policy import find_policy
from mathenv.types import GradeStatus

# Symbolic comparisons take milliseconds of another process: few examples, no deadline.
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.integers(-999, 9999).map(str) | st.decimals(-99, 99, allow_nan=False, places=2).map(
    str
)
ATOMS = NUMBERS | st.sampled_from(["x", "y", "\\pi", "\\sqrt{2}", "a_1", "n"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-"), inner).map(lambda p: f"({p[0]}){p[1]}({p[2]})"),
        st.tuples(inner, inner).map(lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(inner, st.integers(2, 4)).map(lambda p: f"({p[0]})^{{{p[1]}}}"),
        inner.map(lambda t: f"\\sqrt{{{t}}}"),
        inner.map(lambda t: f"\\sin({t})"),
    ),
    max_leaves=5,
)
ANSWERS = st.one_of(
    EXPRESSIONS,
    st.lists(EXPRESSIONS, min_size=2, max_size=4).map(", ".join),
    st.lists(EXPRESSIONS, min_size=2, max_size=3).map(lambda t: f"({', '.join(t)})"),
    st.lists(EXPRESSIONS, min_size=1, max_size=3).map(lambda t: f"\\{{{', '.join(t)}\\}}"),
    st.tuples(NUMBERS, NUMBERS).map(lambda p: f"[{p[0]}, {p[1]})"),
    st.lists(NUMBERS, min_size=4, max_size=4).map(
        lambda t: "\\begin{{pmatrix}}{}&{}\\\\{}&{}\\end{{pmatrix}}".format(*t)
    ),
)


@few
@given(ANSWERS)
def test_an_answer_equals_itself_however_it_is_spaced(text):
    assert grade_answer(text, text).correct
    spaced = text.replace("+", " + ").replace(",", " ,\\; ").replace("(", "\\left( ")
    spaced = spaced.replace(")", " \\right)") if spaced.count("(") == spaced.count(")") else text
    assert grade_answer(text, f"$ {spaced} $").correct


@few
@given(ANSWERS, ANSWERS)
def test_correct_both_ways_or_in_none(first, second):
    forth, back = grade_answer(first, second), grade_answer(second, first)
    settled = (GradeStatus.CORRECT, GradeStatus.INCORRECT)
    if forth.status in settled and back.status in settled:
        assert forth.correct is back.correct


@few
@given(st.lists(EXPRESSIONS, min_size=2, max_size=4, unique=True), st.randoms())
def test_lists_and_sets_have_no_order(items, rng):
    shuffled = rng.sample(items, len(items))
    assert grade_answer(", ".join(items), ", ".join(shuffled)).correct
    assert grade_answer(f"\\{{{', '.join(items)}\\}}", ", ".join(shuffled)).correct


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_tuples_have_an_order(items, rng):
    shuffled = rng.sample(items, len(items))
    gold, answer = str(tuple(items)), str(tuple(shuffled))
    assert grade_answer(gold, answer).correct is (items == shuffled)
    assert grade_answer(gold, answer, "strict,order=unordered").correct


@few
@given(EXPRESSIONS, st.integers(1, 99))
def test_a_shifted_expression_is_never_correct(text, shift):
    assert not grade_answer(text, f"{text}+{shift}").correct


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120), st.sampled_from(["5", "\\text{red}", "", "(1,2)", "\\{1,2\\}"]))
def test_no_unicode_text_crashes_any_policy(text, gold):
    for policy in (*POLICIES, "strict,fallback=text,boxes=all,decimal_comma=true"):
        if policy != "math_verify":  # needs its worker for each text
            result = grade(gold, text, policy)
            assert result.correct is (result.status is GradeStatus.CORRECT)
            assert result.status is not GradeStatus.INFRA


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_no_unicode_text_crashes_the_worker(text):
    for gold, policy in (("x+1", "strict"), ("x+1", "math_verify"), (text, "strict")):
        result = grade(gold, f"\\boxed{{{text}}}", policy)
        assert result.status is not GradeStatus.INFRA


@given(st.text(max_size=200))
def test_extraction_never_raises(text):
    for change in ("", ",boxes=all", ",fallback=text", ",fallback=number"):
        answer = extract_answer(text, find_policy(f"strict{change}"))
        assert answer is None or answer.strip()


@given(st.text(max_size=200))
def test_normalization_is_stable(text):
    once = normalize(text)
    assert len(once) <= 12 * len(text) + 12
