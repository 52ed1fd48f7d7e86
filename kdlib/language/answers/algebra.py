"""What SymPy says about formulas in LaTeX, which math-verify's parser reads. Runs in a process of its own.

`kdlib.language.answers.mathematics` starts it and says why. One JSON list
[node, node, seconds] a line in, true or false a line out.
"""

import contextlib
import functools
import json
import re
import signal
import sys
import warnings

from kdlib.language.answers.equality import Algebra, same

__all__ = ["serve"]

_DIGITS, _TINY, _MEMORY = 60, 1e-40, 2 * 2**30
_LARGEST_EXPONENT, _LARGEST_FACTORIAL = 10_000, 3_000
# Commands that the parser reads as they are meant; others (\mid, \pmod, \forall) it drops or misreads.
_READ = {
    "frac", "sqrt", "cdot", "times", "div", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin",
    "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp", "infty", "alpha", "beta", "gamma",
    "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "binom", "sum",
    "prod", "int", "lim", "rightarrow", "hat", "bar", "vec", "dot", "ddot", "tilde", "overline",
    "overrightarrow", "lfloor", "rfloor", "lceil", "rceil", "begin", "end", "mathbb", "emptyset", "ell",
    "det", "max", "min", "gcd", "lcm",
}  # fmt: skip
# A slash, a number, and a product without a sign: the parser would divide by all of it, but 4/3 \pi is
# \frac{4}{3}\pi. Where letters are divided, only behind a blank, for people write -b/2a for -\frac{b}{2a}.
_DIVISOR = re.compile(
    r"(?:(?<![\^0-9.])(?P<top>[0-9.]+)\s*/\s*(?P<one>[0-9.]+)(?=\s*[A-Za-z(\\])"
    r"|(?<=[0-9A-Za-z)}\]])\s*/\s*(?P<other>[0-9.]+)(?=\s+[A-Za-z(\\]))"
)
_CALLED = {
    "f", "g", "h", "F", "G", "H", "P", "T", "u", "v", "y", "N",
}  # fmt: skip


class SymPy(Algebra):
    """Answers by SymPy, which is imported when the first is made."""

    def __init__(self):
        import mpmath
        import sympy
        import sympy.physics.units  # noqa: F401  simplify imports it, and it makes names with sympify
        from latex2sympy2_extended import latex2sympy2, symbols
        from sympy.parsing import sympy_parser

        def number(text: str, *_args, **_kwargs):
            return sympy.Rational(text)

        def refused(*_args, **_kwargs):
            raise ValueError("text is not evaluated as code")

        # SymPy's parser and sympify of a string end in eval(). The LaTeX parser, an ANTLR grammar, calls them
        # for one thing, the digits of a number; here they read that and nothing else, without eval().
        sympy_parser.parse_expr, sympy_parser.eval_expr = number, refused
        symbols.sympy_singleton_map.clear()  # it takes both gamma and Gamma for Euler's constant
        symbols.sympy_singleton_map["pi"] = sympy.pi
        config = latex2sympy2.ConversionConfig(lowercase_symbols=False)

        class Parser(latex2sympy2._Latex2Sympy):
            def parse_number(self, text: str):
                return sympy.Rational(text.replace(",", ""))

            def convert_postfix_list(self, parts, i=0):
                """2\\frac{1}{2} is a mixed number, but 2(3) and 2(1/2) are products."""
                left, rest = super().convert_postfix_list(parts[i : i + 1]), parts[i + 1 :]
                if isinstance(left, list) or not rest:
                    return super().convert_postfix_list(parts, i)
                right = self.convert_postfix_list(rest)
                mixed = re.fullmatch(r"\\frac\{[0-9]+\}\{[0-9]+\}", rest[0].getText()) and len(rest) == 1
                if mixed and getattr(left, "is_Integer", False):
                    return left + right if left >= 0 else left - right
                matrix = getattr(left, "is_Matrix", False) or getattr(right, "is_Matrix", False)
                return (self.mat_mul_flat if matrix else self.mul_flat)(left, right)

            def convert_func(self, func):
                name = func.atom_expr_no_supexpr()
                if name and name.getText() not in _CALLED:
                    raise ValueError("neither a product nor a known function")
                return super().convert_func(func)

        self.sympy, self.mpmath, self._parser = sympy, mpmath, lambda: Parser(is_real=True, config=config)
        self._points = [sympy.Rational(*point) for point in _POINTS]
        self.parse = functools.lru_cache(maxsize=200)(self._parse)

    def _parse(self, formula: str):
        sympy = self.sympy
        commands = set(re.findall(r"\\([A-Za-z]+)", formula))
        formula = re.sub(
            r"([0-9.]+|\\?[A-Za-z]+|\([^()]*\))\s*\\degree", r"(\1\\cdot\\frac{\\pi}{180})", formula
        )
        if commands - _READ - {"degree"} or re.search(
            r"['\"!]{2}|'|\d\s+\d|(?<![a-z}])\d_|(?<!\\)\\\d|(?<![\\A-Za-z])[A-Za-z]\d", formula
        ):
            raise ValueError("not a formula that is surely read as it is meant")
        formula = _DIVISOR.sub(
            lambda found: rf"{found['top'] or ''}\cdot\frac{{1}}{{{found['one'] or found['other']}}}", formula
        )
        parsed = self._parser().parse(re.sub(r"(?<=\d)\s*\*\s*(?=\S)|\*", r"\\cdot ", formula))
        if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
            raise ValueError("no formula")
        for part in sympy.preorder_traversal(parsed):
            if (
                isinstance(part, sympy.Pow)
                and part.exp.is_number
                and abs(sympy.N(part.exp, 5)) > _LARGEST_EXPONENT
            ):
                raise ValueError("too large")
            if (
                isinstance(part, sympy.factorial)
                and part.args[0].is_number
                and sympy.N(part.args[0], 5) > _LARGEST_FACTORIAL
            ):
                raise ValueError("too large")
        if not parsed.has(sympy.Sum, sympy.Product):
            parsed = parsed.xreplace({sympy.Symbol("i", real=True): sympy.I})
        return parsed.doit()

    def equal(self, one: str, other: str) -> bool:
        return self._equal(self.parse(one), self.parse(other))

    def _equal(self, one, other) -> bool:
        sympy = self.sympy
        if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
            alike = getattr(one, "shape", 0) == getattr(other, "shape", 1)
            return alike and all(self._equal(a, b) for a, b in zip(one.flat(), other.flat(), strict=True))
        if isinstance(one, sympy.Set) and isinstance(other, sympy.Set):
            return one == other or one.symmetric_difference(other).is_empty is True
        if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr):
            return False
        if one.has(sympy.nan, sympy.zoo) or other.has(sympy.nan, sympy.zoo):
            return False
        if one == other:
            return True
        if one.is_Rational and other.is_Rational or one.is_infinite or other.is_infinite:
            return False
        ratios = [self._ratio(a, b) for a, b in self._at_points(one, other)]
        known = [ratio for ratio in ratios if ratio is not None]
        if any(abs(ratio - 1) > _TINY for ratio in known):
            return False
        return len(known) >= min(4, len(ratios)) or sympy.simplify(one - other) == 0

    def _at_points(self, *formulas):
        """The formulas with numbers for their letters, some times; once if there are none."""
        letters = sorted(set().union(*(formula.free_symbols for formula in formulas)), key=str)
        count = len(self._points)
        for turn in range(count if letters else 1):
            values = {
                letter: self._points[(turn + 5 * place) % count] + place
                for place, letter in enumerate(letters)
            }
            yield [formula.xreplace(values) for formula in formulas]

    def _ratio(self, one, other):
        """Of two numbers, a complex one; None where they have no value, or where both are zero."""
        sympy, mpmath = self.sympy, self.mpmath
        values = [sympy.N(formula, _DIGITS) for formula in (one, other)]
        if any(
            not value.is_number or value.has(sympy.Function, sympy.nan, sympy.zoo, sympy.oo)
            for value in values
        ):
            return None
        with mpmath.workdps(_DIGITS):
            top, bottom = (mpmath.mpc(*(str(part) for part in value.as_real_imag())) for value in values)
            if min(abs(top), abs(bottom)) > _TINY:
                return top / bottom
            return None if sympy.simplify(one - other) == 0 else mpmath.inf

    def proportional(self, one: tuple[str, str], other: tuple[str, str]) -> int:
        first, second = (self.parse(left) - self.parse(right) for left, right in (one, other))
        if not first.free_symbols or first.free_symbols != second.free_symbols:
            return 0
        ratios = [self._ratio(a, b) for a, b in self._at_points(first, second)]
        known = [ratio for ratio in ratios if ratio is not None]
        if len(known) < 4 or any(abs(ratio / known[0] - 1) > _TINY for ratio in known):
            return 0
        return 0 if abs(known[0].imag) > _TINY else 1 if known[0].real > 0 else -1

    def same_set(self, one: list, other: list) -> bool:
        one, other = self._set(one), self._set(other)
        return one == other or one.symmetric_difference(other).is_empty is True

    def _set(self, node: list):
        sympy = self.sympy
        match node:
            case ["leaf", formula, "", [], []]:
                found = self.parse(formula)
                if isinstance(found, sympy.Set):
                    return found
            case ["leaf", _, _, [], []]:
                return sympy.FiniteSet(self._number(node))
            case ["brackets", "{", _, items]:
                return sympy.FiniteSet(*map(self._number, items))
            case ["brackets", left, right, [start, end]]:
                return sympy.Interval(self._number(start), self._number(end), left == "(", right == ")")
            case ["operator", name, items]:
                sets = [self._set(item) for item in items]
                join = {r"\cup": sympy.Union, r"\cap": sympy.Intersection}.get(name)
                return join(*sets) if join else functools.reduce(lambda a, b: a - b, sets)
            case ["list", items]:
                return sympy.Union(
                    *(self._set(["relation", *item[1:3]] if item[0] == "chain" else item) for item in items)
                )
            case ["relation", relations, sides]:
                return self._solutions(relations, sides)
        raise ValueError("no set of numbers")

    def _number(self, node: list):
        if node[0] != "leaf" or node[3] or node[4]:
            raise ValueError("no number")
        return self.sympy.Rational(node[2]) if node[2] else self.parse(node[1])

    def _solutions(self, relations: list[str], sides: list):
        """Of a < x < b and its like."""
        sympy, everything = self.sympy, self.sympy.S.Reals
        values = [self._number(side) for side in sides]
        letters = [place for place, value in enumerate(values) if value.is_Symbol]
        if len(letters) != 1 or any(
            value.free_symbols for place, value in enumerate(values) if place != letters[0]
        ):
            raise ValueError("no bounds of a letter")
        for place, relation in enumerate(relations):
            if letters[0] not in (place, place + 1):
                raise ValueError("no bounds of a letter")
            below = (letters[0] == place) == (relation in ("<", r"\leq"))
            bound, open_ = values[place + (letters[0] == place)], relation in "<>"
            if relation == r"\neq":
                everything -= sympy.FiniteSet(bound)
            else:
                everything &= (
                    sympy.Interval(-sympy.oo, bound, True, open_)
                    if below
                    else sympy.Interval(bound, sympy.oo, open_, True)
                )
        return everything


_POINTS = ((37, 29), (-53, 31), (7, 3), (-2, 7), (11, 13), (-17, 5), (19, 8), (3, 41))


def serve() -> None:
    """Answers questions until the input ends; what else is printed goes nowhere."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    algebra = SymPy()
    for line in sys.stdin:
        one, other, seconds = json.loads(line)
        try:
            with _limited(seconds):
                equal = same(one, other, algebra)
        except Exception:  # whatever SymPy or the parser cannot do, or not in time, is not equal
            equal = False
        print(json.dumps(bool(equal)), file=answers, flush=True)


@contextlib.contextmanager
def _limited(seconds: float):
    """Raises TimeoutError after so many seconds of work, however busy the machine is; not on Windows."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_args):
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
