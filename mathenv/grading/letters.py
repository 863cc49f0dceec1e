r"""What letters and commands stand for: functions, symbols, accents, fonts, words."""

from __future__ import annotations


def names(text: str) -> list[str]:
    """Return the words of a text: long lists of names are easier to read as one."""
    return text.split()


_TRIGONOMETRIC = "sin cos tan cot sec csc sinh cosh tanh coth sech csch"
# The spellings of functions that can be evaluated, and the name of each.
FUNCTIONS: dict[str, str] = {
    **{name: name for name in f"{_TRIGONOMETRIC} ln log exp max min gcd lcm sgn Re Im".split()},
    **{f"arc{name}": f"arc{name}" for name in _TRIGONOMETRIC.split()},
    **{f"ar{name}": f"arc{name}" for name in ("sinh", "cosh", "tanh", "coth")},
    **{f"a{name}": f"arc{name}" for name in _TRIGONOMETRIC.split()},
    **{"lg": "lg", "tg": "tan", "ctg": "cot", "cosec": "csc", "sign": "sgn", "erf": "erf"},
    **{"arctg": "arctan", "plainlog": "ln"},
}
# Functions of which only the name is compared.
OPAQUE_FUNCTIONS = frozenset(
    names("det dim ker deg arg Pr tr rank span sup lim limsup liminf conj adj Var Cov Arg Tr lb")
) - {"lim"}
LIMITS = frozenset("\\" + name for name in names("sum prod int oint iint iiint lim limsup liminf"))
SYMBOLS = frozenset(
    "\\" + name
    for name in names(
        "pi alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi varphi "
        "omega psi kappa eta zeta xi varepsilon vartheta varrho varsigma varpi chi iota "
        "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon upsilon Phi Psi Omega infty hbar "
        "ell nabla partial emptyset aleph top"
    )
)
ACCENTS = frozenset(
    "\\" + name
    for name in names(
        "vec hat bar dot ddot tilde overline widehat overrightarrow widetilde overleftarrow"
    )
)
# Fonts; True for those in which a letter is another symbol.
FONTS: dict[str, bool] = {
    **{f"\\{font}": False for font in names("mathrm mathit mathbf boldsymbol operatorname mathsf")},
    **{f"\\{font}": True for font in ["mathbb", "mathcal", "mathfrak", "mathscr"]},
}
FUNCTION_LETTERS = frozenset("fghFGHPQpqWTLuvOo") | {
    "\\phi",
    "\\varphi",
    "\\psi",
    "\\sigma",
    "\\tau",
    "\\Gamma",
    "\\zeta",
    "\\Phi",
    "\\delta",
}
_NAMED_LETTERS = frozenset(
    names("pi theta alpha beta gamma delta lambda mu omega phi sigma rho tau epsilon infty")
)
# Without a backslash, `log` is Python's.
_PLAIN_SPELLINGS = {"log": "plainlog", "oo": "infty", "inf": "infty", "infinity": "infty"}
_SMALL_WORDS = frozenset(names("or if as is no to of in at it on we"))
_VOWELS = frozenset("aeiouAEIOU")


def letters_of(run: str, after_number: bool = False) -> list[str] | None:
    """Split letters written together into factors; None where they are a word.

    `sin` is a function, `xyz` and `nRT` are products. `Amy`, `east` and `ABC` are words or names,
    whose letters must not change places.
    """
    if run in _PLAIN_SPELLINGS:
        return ["\\" + _PLAIN_SPELLINGS[run]]
    if run in FUNCTIONS or run in OPAQUE_FUNCTIONS or run in _NAMED_LETTERS:
        return ["\\" + run]
    if len(run) <= 2:
        return None if run.lower() in _SMALL_WORDS and not after_number else list(run)
    if looks_like_a_word(run):
        return None
    return list(run)


def looks_like_a_word(run: str) -> bool:
    """Say whether letters written together are a word or a name rather than a product."""
    if len(run) < 2:
        return False
    if len(run) == 2:
        return run.lower() in _SMALL_WORDS
    if run.isupper() or len(run) > 4:
        return True
    in_order = run.islower() and list(run) == sorted(set(run)) and len(run) == 3
    return not _VOWELS.isdisjoint(run) and not in_order
