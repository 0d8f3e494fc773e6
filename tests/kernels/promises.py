"""What every implementation of paged attention promises (`api`), as tests that an implementation's file inherits.

A subclass of `Promises` whose name begins with `Test` says how its implementation runs and on which cases. Pools are
poisoned: whatever no row may look at is NaN, so that each comparison also says what was not read. A layer's pages lie
behind those of another layer wherever a test compares bits. Next: `test_paged_attention` (XLA), `test_tpu_interpret`,
`test_gpu_interpret`, which add what is an implementation's own.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.pallas.paged_attention import api, arg_specs, reference
from kernels.pallas.paged_attention.arg_specs import Shape

F32_TOLERANCE = 2e-6
BF16_TOLERANCE = 2e-2  # results of order 1, rounded to 8 bits
KINDS = ("decode", "prefill")

Arguments = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call to make.

    Attributes:
      kind: `decode` or `prefill`.
      shape: of its arguments.
      quantised: the 8-bit type of its pages; None where they hold the numbers.
      sizes: what its implementation takes beyond the contract.
    """

    kind: str
    shape: Shape
    quantised: str | None = None
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, seed: int) -> Arguments:
        """Positional arguments, by name and in order, and `kv_scales` last where pages have them."""
        args = getattr(arg_specs, f"make_{self.kind}")(self.shape, seed)
        if self.quantised is not None:
            args["kv_pages"], args["kv_scales"] = arg_specs.quantised(args["kv_pages"], self.quantised)
        return args

    def want(self, args: Arguments) -> np.ndarray:
        """The oracle's answer."""
        return called(getattr(reference, f"{self.kind}_attention"), args, **self.shape.options)

    @property
    def tolerance(self) -> float:
        """How far an answer may be from the oracle's."""
        return BF16_TOLERANCE if self.shape.dtype == "bfloat16" else F32_TOLERANCE


def called(attention: Callable, args: Arguments, **options) -> Any:
    """`attention` of arguments that `Case.make` made."""
    scales = {name: args[name] for name in args if name == "kv_scales"}
    return attention(*(args[name] for name in args if name not in scales), **scales, **options)


def of_kind(kind: str, shapes: Mapping[str, Shape], **fields) -> dict[str, Case]:
    """A case for each shape."""
    return {f"{kind}-{name}": Case(kind=kind, shape=shape, **fields) for name, shape in shapes.items()}


def second_row_of(shape: Shape) -> dict[str, tuple[Case, list[int]]]:
    """`Promises.neighbours` of a shape's decode and of its prefill."""
    return {kind: (Case(kind=kind, shape=shape), [1]) for kind in KINDS}


def padded(args: Arguments, *, pages: int, table_pages: int, tokens: int) -> Arguments:
    """The same call with more pool, table and padding tokens: cases of one padded size compile once."""
    kv_pages, table, q = args["kv_pages"], args["page_table"], args["q"]
    args["kv_pages"] = np.pad(kv_pages, ((0, pages - len(kv_pages)), *[(0, 0)] * 4), constant_values=np.nan)
    args["page_table"] = np.pad(table, ((0, 0), (0, table_pages - table.shape[1])), constant_values=-1)
    if "cu_q_lens" in args:
        args["q"] = np.pad(q, ((0, tokens - len(q)), (0, 0), (0, 0)), constant_values=np.nan)
    return args


def chunks_shape(chunks: Iterable[tuple[int, int]], **fields) -> Shape:
    """A prefill of chunks, each given as (positions before it, its tokens)."""
    kv_lens, q_lens = zip(*((past + new if new else 0, new) for past, new in chunks), strict=True)
    return Shape(kv_lens=kv_lens, q_lens=q_lens, **fields)


class Promises:
    """The tests.

    Attributes:
      cases: compared with the oracle.
      edges: a decode with rows of 0, 1, 15, 16 and 17 positions.
      neighbours: calls that are compared, bit by bit, with themselves: whose pages have other names, and which of whose
        rows are alone.
    """

    cases: ClassVar[Mapping[str, Case]]
    edges: ClassVar[Case]
    neighbours: ClassVar[Mapping[str, tuple[Case, Iterable[int]]]]

    @staticmethod
    def run(case: Case, args: Arguments, **options) -> np.ndarray:
        """The implementation's answer, in float64, after whatever it can say of how it came about."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc) -> None:
        """A test for each case of the tables that it names."""
        if "rows" in metafunc.fixturenames:
            metafunc.parametrize(("case", "rows"), self.neighbours.values(), ids=self.neighbours)
        elif "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases.values(), ids=self.cases)

    def test_it_matches_the_oracle_on_a_poisoned_pool(self, case: Case):
        args = case.make(seed=1)
        np.testing.assert_allclose(self.run(case, args), case.want(args), atol=case.tolerance, rtol=0)

    def test_the_poison_reaches_the_result_when_a_length_is_wrong(self):
        """The test above can fail: one position too many and the result is NaN."""
        args = self.edges.make(seed=1) | {"kv_lens": np.array([0, 2, 16, 16, 18], np.int32)}
        assert np.isnan(self.run(self.edges, args)).any(axis=(1, 2)).tolist() == [False, True, True, False, True]

    def test_a_row_has_the_same_bits_when_its_neighbours_are_gone(self, case: Case, rows: Iterable[int]):
        args, first_page = behind_a_layer(case.make(seed=5))
        together = self.run(case, args, first_page=first_page)
        assert np.isfinite(together).all()
        for row in rows:
            mine = own_results(args, row)
            got = self.run(case, without_neighbours(args, row), first_page=first_page)
            there = mine if case.kind == "decode" else slice(mine.stop - mine.start)
            np.testing.assert_array_equal(got[there], together[mine])
            got[there] = 0
            assert not got.any()

    def test_renaming_pages_or_moving_them_to_another_layer_changes_no_bit(self, case: Case, rows: Iterable[int]):
        args, first_page = behind_a_layer(case.make(seed=6))
        want = self.run(case, args, first_page=first_page)
        assert np.isfinite(want).all()
        got = self.run(case, in_the_first_layer_by_other_names(args), first_page=jnp.int32(0))
        np.testing.assert_array_equal(got, want)


class KernelPromises(Promises):
    """And what a chip's kernel promises besides.

    Attributes:
      implementation: its name. Its interpreted form has one that ends in `_interpret`.
      by_name: cases that are run by that name; the first is a decode.
    """

    implementation: ClassVar[str]
    by_name: ClassVar[Sequence[Case]]

    def test_the_contract_reaches_the_kernel_with_its_own_block_sizes(self):
        for case in self.by_name:
            args = case.make(seed=9)
            attention = getattr(api, f"{case.kind}_attention")
            options = case.shape.options | {"implementation": f"{self.implementation}_interpret"}
            got = np.asarray(called(attention, args, **options), np.float64)
            np.testing.assert_allclose(got, case.want(args), atol=case.tolerance, rtol=0)

    def test_without_its_chip_it_is_refused_and_not_replaced(self):
        case = self.by_name[0]
        args = map(jnp.asarray, case.make(seed=9).values())
        with pytest.raises(ValueError, match="interpret mode"):
            api.decode_attention(*args, **case.shape.options, implementation=self.implementation)


def behind_a_layer(args: Arguments) -> tuple[Arguments, jnp.ndarray]:
    """The same call on a pool where another layer's pages, all NaN, come first, and its first page."""
    kv_pages = args["kv_pages"]
    return args | {"kv_pages": np.concatenate([np.full_like(kv_pages, np.nan), kv_pages])}, jnp.int32(len(kv_pages))


def in_the_first_layer_by_other_names(args: Arguments) -> Arguments:
    """What `behind_a_layer` made, with the two layers the other way round and the pages in another order."""
    other_layer, kv_pages = np.split(args["kv_pages"], 2)
    pages, page_table = len(kv_pages), args["page_table"].copy()
    order = np.random.default_rng(7).permutation(pages)
    renamed = np.empty_like(kv_pages)
    renamed[order] = kv_pages
    inside = (page_table >= 0) & (page_table < pages)
    page_table[inside] = order[page_table[inside]]
    return args | {"kv_pages": np.concatenate([renamed, other_layer]), "page_table": page_table}


def own_results(args: Arguments, row: int) -> slice:
    """Where a row's results are."""
    if "cu_q_lens" not in args:
        return slice(row, row + 1)
    return slice(*args["cu_q_lens"][row : row + 2].tolist())


def without_neighbours(args: Arguments, row: int) -> Arguments:
    """The call with all rows but one empty; a chunk's queries come first then."""
    only = np.arange(len(args["kv_lens"])) == row
    alone = args | {"kv_lens": np.where(only, args["kv_lens"], 0)}
    if "cu_q_lens" not in args:
        return alone
    q_lens = np.where(only, np.diff(args["cu_q_lens"]), 0)
    cu_q_lens = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    return alone | {"cu_q_lens": cu_q_lens, "q": np.roll(args["q"], -own_results(args, row).start, axis=0)}
