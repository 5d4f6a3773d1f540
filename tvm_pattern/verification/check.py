"""The check: run the model and what was made of it on the same inputs, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from ..frontend import ImportedModel
from .compare import Tolerance, is_finite_somewhere, tolerance_of
from .dense import DenseGraph
from .discrete import compare_operands, library_values, operands
from .errors import (
    CHECKED,
    LOCATING_ERRORS,
    OracleError,
    Verification,
    VerificationError,
    first_line,
    not_checked,
)
from .inputs import CheckInput, perturbed, positive_input, random_input
from .locate import Run, describe_binding, first_wrong_node, first_wrong_prefix
from .oracles import Oracle
from .sketch import Node, Sketch

# A model that moves this far for a change of its input within the tolerance cannot be checked.
_CHAOTIC = 0.25
# More random inputs, where those before left open whether a discrete output is right.
_MORE_SEEDS = (1, 2, 3)


class _NotCheckable(Exception):
    """Nothing can be said; the text is the reason."""


@dataclass
class Subject:
    """What is checked.

    Parameters
    ----------
    name : str
        ``library`` or ``imported graph``.
    run : callable
        Arrays -> outputs.
    library : Library, optional
        Where the values inside can be looked at.
    compile_and_run : callable, optional
        Compiles another module the same way, runs it on arrays, and returns its outputs.
    """

    name: str
    run: Run
    library: Any = None
    compile_and_run: Callable[[tvm.IRModule, Sequence[np.ndarray]], list[np.ndarray]] | None = None


@dataclass
class Check:
    """One check of a subject against an oracle."""

    imported: ImportedModel
    oracle: Oracle
    subject: Subject
    examples: Sequence[np.ndarray] | None
    notes: list[str] = field(default_factory=list)
    max_error: float = 0.0

    def __post_init__(self) -> None:
        library = self.subject.library
        growth = 1.0 if library is None else library.report.error_growth
        self.tolerance: Tolerance = tolerance_of(self.imported.mod, growth)
        self._graph: DenseGraph | None = None
        self._undecided: dict[int, str] = {}
        self._decided: set[int] = set()

    def result(self) -> Verification:
        """Compare on every input.

        Raises
        ------
        VerificationError
            If an output differs.
        """
        used: list[str] = []
        try:
            for given in self._inputs():
                if self._compare_on(given):
                    used.append(given.name)
            for seed in _MORE_SEEDS:
                if self._open():
                    given = random_input(self.imported.inputs, self.examples, seed)
                    self._compare_on(given)
                    used.append(given.name)
        except (_NotCheckable, OracleError) as reason:
            return not_checked(str(reason))
        if self._open():
            self._raise_undecided()
        if not used:
            return not_checked("the model gives nothing but NaN and Inf on every input tried")
        return Verification(
            CHECKED,
            subject=self.subject.name,
            oracle=self.oracle.name,
            tolerance=self.tolerance.value,
            max_error=self.max_error,
            basis=self.tolerance.basis,
            inputs=used,
            notes=list(dict.fromkeys(self.notes)),
        )

    def _inputs(self) -> list[CheckInput]:
        given = random_input(self.imported.inputs, self.examples, 0)
        if self.examples is None:
            return [given]
        return [CheckInput("the example inputs", tuple(self.examples)), given]

    def _open(self) -> bool:
        return bool(self._undecided.keys() - self._decided)

    def _compare_on(self, given: CheckInput) -> bool:
        """Compare all outputs on one input; False if there was nothing to compare."""
        want = self.oracle.run(given.arrays)
        if not is_finite_somewhere(want):
            given = positive_input(self.imported.inputs, given, 0)
            want = self.oracle.run(given.arrays)
        got = self.subject.run(given.arrays)
        self._check_shapes(got, want, given)
        errors = [self.tolerance.error(g, w) for g, w in zip(got, want, strict=True)]
        is_float = [self.tolerance.applies_to(w) for w in want]
        failing = [
            i for i, e in enumerate(errors) if e > (self.tolerance.value if is_float[i] else 0)
        ]
        if failing:
            failing = self._not_explained(given, want, errors, failing)
        good = [e for i, e in enumerate(errors) if i not in failing and is_float[i]]
        discrete = self._discrete_outputs()
        open_outputs = set(failing) & discrete
        if set(failing) - discrete:
            worst = max(set(failing) - discrete, key=lambda i: errors[i])
            self._raise_difference(given, got, want, worst, errors[worst])
        if open_outputs or any(not f and i in discrete for i, f in enumerate(is_float)):
            self._compare_before_steps(given, open_outputs)
        self._decided.update(discrete - open_outputs)
        for output in open_outputs:
            name = self.imported.outputs[output].name
            self._undecided[output] = (
                f"{name} differs in {np.mean(got[output] != want[output]):.2%} of its elements"
            )
        self.max_error = max([self.max_error, *good])
        return is_finite_somewhere(want)

    def _check_shapes(
        self, got: Sequence[np.ndarray], want: Sequence[np.ndarray], given: CheckInput
    ) -> None:
        shapes = [[list(a.shape) for a in arrays] for arrays in (got, want)]
        # Floats may be wider than the model's own, integers and booleans are what they are.
        kinds = [
            ["float" if a.dtype.kind == "f" else str(a.dtype) for a in arrays]
            for arrays in (got, want)
        ]
        if shapes[0] == shapes[1] and kinds[0] == kinds[1]:
            return
        texts = [", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays) for arrays in (got, want)]
        self._raise(
            f"it gives {texts[0]}, {self.oracle.name} gives {texts[1]}", given, float("inf")
        )

    def _not_explained(
        self,
        given: CheckInput,
        want: Sequence[np.ndarray],
        errors: Sequence[float],
        failing: Sequence[int],
    ) -> list[int]:
        """Outputs that differ for another reason than chance in the model, or rounding."""
        again = self.oracle.run_again(given.arrays)
        drawn = max(self.tolerance.error(again[i], want[i]) for i in failing)
        if drawn > self.tolerance.value:
            raise _NotCheckable(
                "the model itself is not deterministic: two of its runs on the same input differ by"
                f" {drawn:.2g} of an output's scale"
            )
        moved = self.oracle.run(perturbed(given, self.tolerance.value).arrays)
        left = []
        for i in failing:
            allowed = 2 * self.tolerance.error(moved[i], want[i])
            if errors[i] > allowed:
                left.append(i)
            elif self.tolerance.applies_to(want[i]) and allowed > _CHAOTIC:
                raise _NotCheckable(
                    "the model amplifies rounding: changing its input by"
                    f" {self.tolerance.value:.2g} of itself changes"
                    f" {self.imported.outputs[i].name} by {allowed / 2:.2g} of its scale"
                )
            elif self.tolerance.applies_to(want[i]):
                self.tolerance = self.tolerance.widened(
                    max(allowed, self.tolerance.value),
                    "the model's own change for inputs that differ by the tolerance",
                )
        return left

    # ---- discrete steps ----------------------------------------------------------------------

    def _discrete_outputs(self) -> set[int]:
        """Numbers of the outputs that depend on a discrete step."""
        return discrete_outputs(self.imported.mod)

    def _compare_before_steps(self, given: CheckInput, open_outputs: set[int]) -> None:
        nodes = self.oracle.trace(given.arrays)
        wanted = operands(nodes)
        sizes = {operand.value.size for operand in wanted}
        library = self.subject.library

        def of_library() -> list[Sketch]:
            return library_values(library, given.arrays, sizes)

        notes, wrong = compare_operands(
            wanted,
            self.tolerance.value,
            of_library if library is not None else None,
            lambda: self._values(given),
        )
        self.notes += notes
        if not wanted and open_outputs:
            self.notes.append("no float operand of a discrete operator was found")
        if wrong:
            self._raise(f"the operand of {wrong[0].of} differs", given, float("inf"), nodes=nodes)

    def _raise_undecided(self) -> None:
        texts = [self._undecided[i] for i in sorted(self._undecided.keys() - self._decided)]
        given = random_input(self.imported.inputs, self.examples, _MORE_SEEDS[-1])
        self._raise(f"{'; '.join(texts)}, on every input tried", given, float("inf"))

    # ---- differences -------------------------------------------------------------------------

    def _dense(self) -> DenseGraph:
        if self._graph is None:
            self._graph = DenseGraph(self.imported.mod, self.imported.layer_names)
        return self._graph

    def _values(self, given: CheckInput) -> list[Sketch]:
        return [v for node in self._dense().trace(given.arrays) for v in node.values]

    def _raise_difference(
        self,
        given: CheckInput,
        got: Sequence[np.ndarray],
        want: Sequence[np.ndarray],
        output: int,
        error: float,
    ) -> None:
        name = self.imported.outputs[output].name
        where = _worst_element(got[output], want[output])
        self._raise(f"{name} differs: {where}", given, error)

    def _raise(
        self, what: str, given: CheckInput, error: float, nodes: Sequence[Node] | None = None
    ) -> None:
        try:
            stage, node = self._locate(given, nodes)
            first = _first_that_differs(stage, node)
        except LOCATING_ERRORS as failure:
            stage, node = "", None
            first = f"which operator differs first could not be found ({first_line(failure)})"
        size = f"error {error:.2g} of the output's scale, " if np.isfinite(error) else ""
        raise VerificationError(
            f"the {self.subject.name} does not compute what the model computes, on"
            f" {given.name}: {what} ({size}tolerance {self.tolerance.value:.2g}; expected:"
            f" {self.oracle.name}); {first}; replace that operator, or pass verify=False"
            " (--no-verify) to accept the library as it is, and please report it",
            operator=node.op if node else "",
            layer=node.layer if node else "",
            stage=stage,
            error=error,
            tolerance=self.tolerance.value,
        )

    def _locate(self, given: CheckInput, nodes: Sequence[Node] | None) -> tuple[str, Node | None]:
        """Stage of the fault and the first operator that differs."""
        graph = self._dense()
        values: dict[int, Sketch] = {}
        every: list[Sketch] = []
        for number, traced in enumerate(graph.trace(given.arrays)):
            every += traced.values
            if len(traced.values) == 1:
                values[number] = traced.values[0]
        if nodes is None:
            nodes = self.oracle.trace(given.arrays)
        node = first_wrong_node(nodes, every, self.tolerance.value)
        if node is not None or self.subject.compile_and_run is None:
            return "import", node
        build = self.subject.compile_and_run
        mod, names = self.imported.mod, self.imported.layer_names
        wrong = first_wrong_prefix(
            mod, values, lambda cut: build(cut, given.arrays), self.tolerance.value
        )
        return "compile", None if wrong is None else describe_binding(mod, wrong, names)


def _first_that_differs(stage: str, node: Node | None) -> str:
    if node is None:
        return (
            "no single operator differs by itself; the fault shows only in the whole"
            if stage == "compile"
            else "the first operator that differs could not be located"
        )
    whose = "the imported graph" if stage == "import" else "the compiled code"
    return f"the first operator that differs in {whose} is {node}"


def _worst_element(got: np.ndarray, want: np.ndarray) -> str:
    """Where the difference is largest, and both values."""
    if want.dtype.kind != "f":
        index = tuple(int(i) for i in np.argwhere(got != want)[0])
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
        one_sided = np.isfinite(got) != np.isfinite(want)
        difference = np.where(one_sided, np.inf, np.nan_to_num(difference, posinf=0.0))
        index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), want.shape))
    return f"at {list(index)} it is {got[index]:.6g}, expected {want[index]:.6g}"


def discrete_outputs(mod: tvm.IRModule) -> set[int]:
    """Numbers of ``main``'s outputs that depend on a discrete operator."""
    from tvm import relax

    from .dense import node_of

    main = mod["main"]
    behind: set[Any] = set()
    for block in main.body.blocks:
        for binding in block.bindings:
            reads = relax.analysis.free_vars(binding.value)
            if node_of(binding, {}).discrete or any(v in behind for v in reads):
                behind.add(binding.var)
            if isinstance(binding.value, relax.Tuple) and binding.var == main.body.body:
                return {
                    i
                    for i, part in enumerate(binding.value.fields)
                    if any(v in behind for v in relax.analysis.free_vars(part))
                }
    result = main.body.body
    parts = result.fields if isinstance(result, relax.Tuple) else [result]
    return {
        i
        for i, part in enumerate(parts)
        if any(v in behind for v in relax.analysis.free_vars(part))
    }
