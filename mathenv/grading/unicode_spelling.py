"""Mathematics in Unicode, as people and models type it, written as LaTeX."""

from __future__ import annotations

import re
import unicodedata

from mathenv.grading.letters import names

_GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi "
    "omicron pi rho varsigma sigma tau upsilon phi chi psi omega"
)
_CAPITALS = names("Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega")
_COMMANDS = {
    **{"×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot", "±": "pm", "∓": "mp"},
    **{"∞": "infty", "∪": "cup", "∩": "cap", "∈": "in", "∉": "notin", "≤": "leq", "≥": "geq"},
    **{"⩽": "leq", "⩾": "geq", "≠": "neq", "≈": "approx", "≡": "equiv", "∅": "emptyset"},
    **{"∠": "angle", "△": "triangle", "→": "to", "⇒": "implies", "∖": "setminus", "∂": "partial"},
    **{"∇": "nabla", "∑": "sum", "∏": "prod", "∫": "int", "⌊": "lfloor", "⌋": "rfloor"},
    **{"⌈": "lceil", "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "∘": "circ", "⊂": "subset"},
    **{"⊆": "subseteq", "∧": "land", "∨": "lor", "¬": "neg", "ϕ": "phi", "φ": "varphi"},
    **{"ϵ": "epsilon", "ε": "varepsilon", "ℓ": "ell", "ħ": "hbar", "‖": "|", "∆": "Delta"},
    **{"Ω": "Omega", "µ": "mu", "∝": "propto", "∥": "parallel", "⊥": "perp"},
}
_CHARACTERS = {
    **{"−": "-", "–": "-", "‒": "-", "‐": "-", "÷": "/", "∕": "/", "⁄": "/", "∗": "*", "∣": "|"},
    **{"′": "'", "’": "'", "″": "''", "％": "%", "\u00a0": " ", "\u202f": " ", "\u2009": " "},
    **{"ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}"},
    **{"ℂ": "\\mathbb{C}", "…": "\\ldots ", "⋯": "\\ldots ", "º": "°", "\u2212": "-"},
}
_TABLE = str.maketrans(
    {
        **{chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK) if name != "omicron"},
        **{char: f"\\{name} " for char, name in zip("ΓΔΘΛΞΠΣΥΦΨΩ", _CAPITALS, strict=True)},
        **{char: f"\\{name} " for char, name in _COMMANDS.items()},
        **_CHARACTERS,
    }
)
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇᵏᵐᵗ", "0123456789+-=()nixyabkmt", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖᵢⱼₓₐₘₜ", "0123456789+-=()nkijxamt", strict=True))
_RAISED = re.compile(f"[{re.escape(''.join(_SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{re.escape(''.join(_SUBSCRIPTS))}]+")
_VULGAR = re.compile("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒]")
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[a-zA-Z]|π)|(?=[({]))")


def to_ascii(text: str) -> str:
    """Write a text in LaTeX: raised digits, roots, fractions, Greek letters and signs.

    A root sign belongs to the whole number behind it: √57 is the root of 57.
    """
    text = _RAISED.sub(lambda m: f"^{{{''.join(_SUPERSCRIPTS[c] for c in m[0])}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{''.join(_SUBSCRIPTS[c] for c in m[0])}}}", text)
    text = _VULGAR.sub(_fraction, text)
    text = _ROOT.sub(_root, text)
    text = "".join(f"\\sqrt{_ROOTS[c]} " if c in _ROOTS else c for c in text)
    text = text.translate(_TABLE)
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    degree, inside = _ROOTS[match[1]], match[2]
    if inside:
        return f"\\sqrt{degree}{{{inside}}}"
    return "cbrt" if degree == "[3]" else "sqrt" if not degree else "\\sqrt[4]"
