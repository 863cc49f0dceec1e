import pytest

from mathenv.grading import grade_answer
from mathenv.grading.structure import (
    as_intervals,
    is_equation,
    read_shape,
    split_assignment,
    split_top,
    unfold,
)
from mathenv.types import GradeStatus


@pytest.mark.parametrize(
    ("text", "kind", "items"),
    [
        ("1, 2, and 3", "list", ("1", "2", "3")),
        ("x=1 \\text{ or } x=2", "list", ("x=1", "x=2")),
        ("(1,2),(3,4)", "list", ("(1,2)", "(3,4)")),
        ("\\{1,\\{2,3\\}\\}", "set", ("1", "\\{2,3\\}")),
        ("{1,2}", "set", ("1", "2")),
        ("\\{5\\}", "set", ("5",)),
        ("(0,)", "tuple", ("0",)),
        ("[0,1)", "tuple", ("0", "1")),
        ("\\langle 1,2\\rangle", "tuple", ("1", "2")),
        ("[1,2]\\cup(3,4)", "union", ("[1,2]", "(3,4)")),
        ("1:2:3", "ratio", ("1", "2", "3")),
        ("1\\pm\\sqrt2", "list", ("1+\\sqrt2", "1-\\sqrt2")),
        ("\\pm 5", "list", ("5", "- 5")),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "matrix", ("1", "2", "3", "4")),
        ("([\\begin{array}{cc}1&2\\end{array}])", "matrix", ("1", "2")),
        ("\\begin{cases}x=1\\\\y=2\\end{cases}", "list", ("x=1", "y=2")),
        ("Matrix([[1,2],[3,4]])", "matrix", ("1", "2", "3", "4")),
        ("x \\in (1,2]", "tuple", ("1", "2")),
        ("\\text{1 and 2}", "list", ("1", "2")),
    ],
)
def test_shapes(text, kind, items):
    shape = read_shape(text)
    assert shape is not None
    assert (shape.kind, shape.items) == (kind, items)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "(x+1)",
        "(a+b)(c+d)",
        "f(1,2)",
        "\\gcd(4,6)",
        "\\{x \\mid x>2\\}",
        "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}",
        "\\text{Alice and Bob}",
        "((",
        ")",
        "",
    ],
)
def test_single_values_have_no_shape(text):
    assert read_shape(text) is None


def test_splitting_respects_brackets_and_words():
    assert split_top("a,(b,c),d", ",") == ("a", "(b,c)", "d")
    assert split_top("floor and band", ",") == ("floor", "band")
    assert split_top("x<1 or x>2", "or") == ("x<1", "x>2")
    assert split_top("x<1 and x>2", "or") == ("x<1 and x>2",)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("x = 5", ("x", "5")),
        ("5 = x", ("x", "5")),
        ("f(x) = 2x", ("f(x)", "2x")),
        ("(p,q) = (3,2)", ("(p,q)", "(3,2)")),
        ("x_1 = 3", ("x_1", "3")),
        ("2x + z = 1", None),
        ("x = y = 2", None),
        ("5", None),
    ],
)
def test_assignments(text, pair):
    assert split_assignment(text) == pair


def test_tuples_of_names_unfold():
    assert unfold("(x,y) = (1,2)") == "x = 1, y = 2"
    assert unfold("(x,y) = 3") == "(x,y) = 3"


def test_equations_are_more_than_assignments():
    assert is_equation("2x + z = 1")
    assert not is_equation("z = 2")
    assert not is_equation("3 + 5 = 8")


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("x < 2", "(-\\infty, 2)"),
        ("x \\geq 2", "[2, \\infty)"),
        ("2 \\geq x > 1", "(1, 2]"),
        ("1 < x \\leq 2", "(1, 2]"),
        ("x < 1 or x > 3", "(-\\infty, 1) \\cup (3, \\infty)"),
        ("x < 1 or y > 3", "x < 1 or y > 3"),
        ("1 < x > 0", "1 < x > 0"),
        ("x + y < 2", "x + y < 2"),
    ],
)
def test_inequalities_as_intervals(text, intervals):
    assert as_intervals(text) == intervals


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("\\{(x+1)^2, \\sin^2 y\\}", "\\{1-\\cos^2 y, x^2+2x+1\\}", True),
        ("\\{(x+1)^2, \\sin^2 y\\}", "\\{1+\\cos^2 y, x^2+2x+1\\}", False),
        ("(1_2, 3_4)", "(1_2, 3_5)", False),
        ("((1,2),\\{3,4\\})", "((1,2),\\{4,3\\})", True),
        ("((1,2),\\{3,4\\})", "((2,1),\\{4,3\\})", False),
        ("\\{1,1,2\\}", "\\{1,2,2\\}", False),
        ("(0.5, 50\\%)", "(\\frac12, 0.5)", True),
    ],
)
def test_parts_go_through_all_tiers(gold, answer, equal):
    result = grade_answer(gold, answer)
    assert result.correct is equal
    assert result.tier == "structure"


def test_a_wrong_part_decides_before_a_costly_one():
    heavy = "\\int_0^1 \\frac{\\sqrt{\\sin(x^5)+\\cos(x^7)}}{1+x^{x}} dx"
    result = grade_answer("(\\pi, 2)", f"({heavy}, 3)")
    assert result.status is GradeStatus.INCORRECT


def test_sets_of_many_sets_reach_a_limit_not_a_hang():
    gold = ",".join(f"\\{{x,y,{n}\\}}" for n in range(90))
    answer = ",".join(f"\\{{x,z,{n}\\}}" for n in range(90))
    assert grade_answer(gold, answer).status in (GradeStatus.LIMIT, GradeStatus.INCORRECT)
