"""Every operation in factor space against its dense twin, and the identities of the algebra."""

import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeskit import linalg
from bayeskit.linalg import KroneckerProduct, KroneckerSum, ShiftedKronecker, SumOfKroneckers

EPSILON = np.finfo(np.float64).eps

few = settings(max_examples=10, deadline=None, derandomize=True)
sizes = st.sampled_from([(3,), (1, 3), (3, 2, 2)])
shapes = st.sampled_from([((2, 3),), ((3, 1), (2, 3)), ((1, 2), (3, 2), (2, 2))])
# Of a factor: three of them stay below a condition number of 10⁶.
conditions = st.sampled_from([1.0, 10.0, 100.0])
seeds = st.integers(0, 2**16)


def kron(matrices):
    return functools.reduce(np.kron, matrices)


def kron_sum(matrices):
    identities = [np.eye(len(matrix)) for matrix in matrices]
    return sum(
        kron([*identities[:i], matrix, *identities[i + 1 :]]) for i, matrix in enumerate(matrices)
    )


def assert_close(actual, expected, condition=1.0):
    error = np.linalg.norm(np.asarray(actual) - expected)
    assert error <= 100 * EPSILON * condition * max(np.linalg.norm(expected), 1e-300)


def assert_solves_like_dense_twin(operator, dense, vector):
    condition = np.linalg.cond(dense)
    inverse = np.linalg.inv(dense)
    assert_close(linalg.solve(operator, jnp.asarray(vector)), inverse @ vector, condition)
    assert_close(linalg.diagonal_of_inverse(operator), np.diagonal(inverse), condition)
    expected = np.linalg.slogdet(dense)[1]
    assert abs(linalg.logdet(operator) - expected) <= 100 * EPSILON * condition * (
        len(dense) + abs(expected)
    )


def assert_multiplies_like_dense_twin(operator, dense, vector):
    np.testing.assert_allclose(
        operator.as_matrix(), dense, rtol=0, atol=100 * EPSILON * abs(dense).max()
    )
    assert_close(operator.mv(jnp.asarray(vector)), dense @ vector)
    assert_close(operator.T.as_matrix(), dense.T)
    assert_close(lineax.conj(operator).as_matrix(), dense.conj())
    assert (operator.out_size(), operator.in_size()) == dense.shape


def assert_has_diagonal_of_dense_twin(operator, dense):
    assert_close(linalg.diagonal(operator), np.diagonal(dense))
    scale = np.abs(np.diagonal(dense)).sum()
    assert abs(linalg.trace(operator) - np.trace(dense)) <= 100 * EPSILON * scale


@few
@given(shapes, st.booleans(), seeds)
def test_rectangular_product_equals_dense_twin(matrices, shapes, complex, seed):
    draw = matrices(seed, complex)
    factors = [draw.normal(*shape) for shape in shapes]
    operator, dense = KroneckerProduct(*map(jnp.asarray, factors)), kron(factors)
    assert_multiplies_like_dense_twin(operator, dense, draw.normal(dense.shape[1]))
    u, s, vh = linalg.svd(operator)
    assert_close((u.as_matrix() * s) @ vh.as_matrix(), dense)


@few
@given(sizes, st.booleans(), conditions, seeds)
def test_square_product_equals_dense_twin(matrices, sizes, complex, condition, seed):
    draw = matrices(seed, complex)
    factors = [draw.general(size, size, condition) for size in sizes]
    operator, dense = KroneckerProduct(*map(jnp.asarray, factors)), kron(factors)
    assert_solves_like_dense_twin(operator, dense, draw.normal(len(dense)))
    assert_has_diagonal_of_dense_twin(operator, dense)


@few
@given(sizes, st.booleans(), conditions, seeds)
def test_definite_product_equals_dense_twin(matrices, sizes, complex, condition, seed):
    draw = matrices(seed, complex)
    factors = [draw.definite(size, condition) for size in sizes]
    operator, dense = KroneckerProduct(*map(jnp.asarray, factors)), kron(factors)
    eigenvalues, eigenvectors = linalg.eigh(operator)
    basis = eigenvectors.as_matrix()
    assert_close((basis * eigenvalues) @ basis.conj().T, dense)
    lower = linalg.cholesky(operator)
    assert lineax.is_lower_triangular(lower)
    assert_close(lower.as_matrix() @ lower.as_matrix().conj().T, dense)


@few
@given(sizes, st.booleans(), conditions, seeds)
def test_sum_and_shift_equal_dense_twins(matrices, sizes, complex, condition, seed):
    draw = matrices(seed, complex)
    factors = [draw.definite(size, condition) for size in sizes]
    arrays = list(map(jnp.asarray, factors))
    twins = [
        (KroneckerSum(*arrays), kron_sum(factors)),
        (ShiftedKronecker(arrays, 0.1), kron(factors) + 0.1 * np.eye(np.prod(sizes))),
    ]
    for operator, dense in twins:
        vector = draw.normal(len(dense))
        assert_multiplies_like_dense_twin(operator, dense, vector)
        assert_has_diagonal_of_dense_twin(operator, dense)
        assert_solves_like_dense_twin(operator, dense, vector)
        eigenvalues, eigenvectors = linalg.eigh(operator)
        basis = eigenvectors.as_matrix()
        assert_close((basis * eigenvalues) @ basis.conj().T, dense)


@few
@given(sizes, st.booleans(), conditions, seeds)
def test_two_terms_equal_dense_twin(matrices, sizes, complex, condition, seed):
    draw = matrices(seed, complex)
    terms = [[draw.definite(size, c) for size in sizes] for c in (condition, 2.0)]
    operator = SumOfKroneckers([list(map(jnp.asarray, term)) for term in terms])
    dense = kron(terms[0]) + kron(terms[1])
    vector = draw.normal(len(dense))
    assert_multiplies_like_dense_twin(operator, dense, vector)
    assert_has_diagonal_of_dense_twin(operator, dense)
    assert_solves_like_dense_twin(operator, dense, vector)


def test_one_term_is_its_product(matrices):
    draw = matrices(0)
    factors = [draw.general(2, 2, 10.0), draw.general(3, 3, 10.0)]
    operator = SumOfKroneckers([factors])
    assert_solves_like_dense_twin(operator, kron(factors), draw.normal(6))


def test_indefinite_shifted_product_is_solved(matrices):
    draw = matrices(1)
    factors = [draw.hermitian(2), draw.hermitian(3)]
    dense = kron(factors) - 0.3 * np.eye(6)
    assert_solves_like_dense_twin(ShiftedKronecker(factors, -0.3), dense, draw.normal(6))


def test_tags_change_no_result(matrices):
    operator = KroneckerProduct(matrices(1).definite(2, 3.0), np.eye(3))
    tagged = lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)
    vector, key = jnp.arange(6.0), jax.random.key(0)
    np.testing.assert_array_equal(linalg.solve(tagged, vector), linalg.solve(operator, vector))
    np.testing.assert_array_equal(linalg.sample(tagged, key), linalg.sample(operator, key))
    assert linalg.logdet(tagged) == linalg.logdet(operator)
    assert linalg.trace(tagged) == linalg.trace(operator)


def test_vector_may_have_one_axis_a_factor(matrices):
    draw = matrices(2)
    operator = KroneckerProduct(draw.definite(2, 3.0), draw.definite(3, 3.0))
    tensor = jnp.asarray(draw.normal(2, 3))
    flat = linalg.solve(operator, tensor.reshape(-1))
    np.testing.assert_array_equal(linalg.solve(operator, tensor), flat.reshape(2, 3))


def test_product_of_products_is_product_of_factors(matrices):
    draw = matrices(3)
    a, b, c, d = (draw.normal(*shape) for shape in [(2, 3), (4, 2), (3, 2), (2, 3)])
    composed = (KroneckerProduct(a, b) @ KroneckerProduct(c, d)).as_matrix()
    assert_close(composed, KroneckerProduct(a @ c, b @ d).as_matrix())


def test_logdet_and_trace_factorise(matrices):
    draw = matrices(4)
    a, b = draw.definite(2, 5.0), draw.definite(3, 5.0)
    expected = 3 * np.linalg.slogdet(a)[1] + 2 * np.linalg.slogdet(b)[1]
    assert linalg.logdet(KroneckerProduct(a, b)) == pytest.approx(expected, rel=1e-13)
    assert linalg.trace(KroneckerProduct(a, b)) == pytest.approx(np.trace(a) * np.trace(b))
    assert linalg.trace(KroneckerSum(a, b)) == pytest.approx(3 * np.trace(a) + 2 * np.trace(b))


def test_exponential_of_sum_is_product_of_exponentials(matrices):
    draw = matrices(5)
    a, b = draw.hermitian(2), draw.hermitian(3)
    eigenvalues, basis = linalg.eigh(KroneckerSum(a, b))
    exponential = (basis.as_matrix() * jnp.exp(eigenvalues)) @ basis.as_matrix().T
    expm = jax.scipy.linalg.expm
    assert_close(exponential, np.kron(expm(a), expm(b)))


def test_nested_products_and_structured_factors_are_taken(matrices):
    draw = matrices(6)
    a, b = draw.definite(2, 3.0), draw.definite(2, 3.0)
    column = jnp.array([2.0, 0.5, 0.1])
    operator = KroneckerProduct(
        KroneckerProduct(a, b),
        linalg.SymmetricToeplitz(column),
        lineax.DiagonalLinearOperator(jnp.array([1.0, 2.0])),
    )
    dense = kron([a, b, linalg.SymmetricToeplitz(column).as_matrix(), np.diag([1.0, 2.0])])
    assert len(operator.factors) == 4
    assert_multiplies_like_dense_twin(operator, dense, draw.normal(24))
    assert_has_diagonal_of_dense_twin(operator, dense)
    assert_solves_like_dense_twin(operator, dense, draw.normal(24))
    lower = linalg.cholesky(operator).as_matrix()
    assert_close(lower @ lower.T, dense)


def definite_operators(draw):
    factors = [draw.definite(2, 4.0), draw.definite(3, 4.0)]
    others = [draw.definite(2, 2.0), draw.definite(3, 2.0)]
    return {
        "product": KroneckerProduct(*factors),
        "sum": KroneckerSum(*factors),
        "shifted": ShiftedKronecker(factors, 0.2),
        "two terms": SumOfKroneckers([factors, others]),
        "three terms": SumOfKroneckers([factors, others, factors]),
    }


@pytest.mark.parametrize(
    ("name", "complex"),
    [("three terms", False), *((n, True) for n in ["product", "sum", "shifted", "two terms"])],
)
def test_draws_have_the_operator_as_covariance(matrices, name, complex):
    operator = definite_operators(matrices(7, complex))[name]
    number = 20_000
    keys = jax.random.split(jax.random.key(0), number)
    draws = np.asarray(jax.vmap(lambda key: linalg.sample(operator, key))(keys))
    dense = np.asarray(operator.as_matrix())
    scale = np.sqrt(np.outer(np.diagonal(dense).real, np.diagonal(dense).real) * 2 / number)
    assert np.all(np.abs(draws.T @ draws.conj() / number - dense) < 5 * scale)
    if complex:  # circular: E x xᵀ = 0
        assert np.all(np.abs(draws.T @ draws / number) < 5 * scale)


def test_singular_covariance_is_drawn_from():
    rank_one = jnp.ones((3, 3))
    draw = linalg.sample(ShiftedKronecker([rank_one, jnp.eye(1)], 0.0), jax.random.key(1))
    np.testing.assert_allclose(draw, draw[0], rtol=1e-7)
    assert np.isfinite(draw).all()


@pytest.mark.parametrize("name", ["two terms", "three terms"])
def test_conjugate_gradients_of_lineax_solve(matrices, name):
    operator = definite_operators(matrices(8))[name]
    tagged = lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)
    vector = jnp.arange(1.0, 7.0)
    solution = lineax.linear_solve(tagged, vector, lineax.CG(rtol=1e-12, atol=1e-12)).value
    np.testing.assert_allclose(solution, np.linalg.solve(operator.as_matrix(), vector), rtol=1e-9)


def test_properties_for_lineax_follow_from_tags_and_factors(matrices):
    definite = lineax.MatrixLinearOperator(jnp.eye(2), lineax.positive_semidefinite_tag)
    negative = lineax.MatrixLinearOperator(-jnp.eye(2), lineax.negative_semidefinite_tag)
    lower = lineax.MatrixLinearOperator(jnp.tri(2), lineax.lower_triangular_tag)
    diagonal = lineax.DiagonalLinearOperator(jnp.array([1.0, 2.0]))
    band = lineax.TridiagonalLinearOperator(jnp.array([2.0, 3.0]), jnp.ones(1), jnp.ones(1))
    plain = jnp.eye(2)

    assert lineax.is_positive_semidefinite(KroneckerProduct(definite, definite))
    assert lineax.is_positive_semidefinite(KroneckerProduct(negative, negative))
    assert lineax.is_negative_semidefinite(KroneckerProduct(negative, definite))
    assert lineax.is_symmetric(KroneckerSum(definite, definite))
    assert not lineax.is_symmetric(KroneckerProduct(plain, plain))
    assert lineax.is_symmetric(KroneckerProduct(plain, tags=lineax.positive_semidefinite_tag))
    assert not lineax.is_symmetric(
        KroneckerProduct(1j * plain, tags=lineax.positive_semidefinite_tag)
    )
    assert lineax.is_symmetric(ShiftedKronecker([plain], 1.0))
    assert not lineax.is_positive_semidefinite(ShiftedKronecker([definite], -1.0))
    assert lineax.is_lower_triangular(KroneckerProduct(lower, diagonal))
    assert lineax.is_upper_triangular(KroneckerProduct(lower, diagonal).T)
    assert lineax.is_diagonal(SumOfKroneckers([[diagonal], [diagonal]]))
    assert not lineax.is_diagonal(KroneckerSum(lower, diagonal))
    operator = ShiftedKronecker([diagonal, band], 0.5)
    assert lineax.is_tridiagonal(operator)
    main, below, above = lineax.tridiagonal(operator)
    dense = np.diag(main) + np.diag(below, -1) + np.diag(above, 1)
    np.testing.assert_allclose(dense, operator.as_matrix())
    assert lineax.linearise(operator) is lineax.materialise(operator) is operator


@pytest.mark.parametrize("name", ["product", "two terms"])
def test_batches_of_operators_equal_single_ones(matrices, name):
    batch = [definite_operators(matrices(seed))[name] for seed in (9, 10)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    vectors = jnp.stack([jnp.ones(6), jnp.arange(6.0)])

    def everything(operator, vector):
        return (
            operator.mv(vector),
            linalg.solve(operator, vector),
            linalg.logdet(operator),
            linalg.diagonal_of_inverse(operator),
            linalg.sample(operator, jax.random.key(2)),
        )

    together = jax.jit(jax.vmap(everything))(stacked, vectors)
    for i, operator in enumerate(batch):
        jax.tree.map(
            lambda one, all, i=i: np.testing.assert_allclose(all[i], one, rtol=1e-10, atol=1e-10),
            everything(operator, vectors[i]),
            together,
        )


@pytest.mark.parametrize(
    ("name", "complex"),
    [("product", False), ("shifted", True), ("two terms", False)],
)
def test_single_precision_stays_single(matrices, name, complex):
    double = definite_operators(matrices(11, complex))[name]
    single = np.complex64 if complex else np.float32
    with jax.enable_x64(False):
        operator = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf).astype(single if leaf.ndim else np.float32)),
            double,
        )
        vector = jnp.ones(6, single)
        solution, logdet = linalg.solve(operator, vector), linalg.logdet(operator)
        draw = linalg.sample(operator, jax.random.key(0))
    assert solution.dtype == draw.dtype == single
    assert logdet.dtype == np.float32
    dense = np.asarray(double.as_matrix())
    np.testing.assert_allclose(solution, np.linalg.solve(dense, np.ones(6)), rtol=1e-3)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(dense)[1], rtol=1e-3, atol=1e-4)


def test_real_factors_multiply_and_solve_complex_vectors(matrices):
    operator = definite_operators(matrices(12))["shifted"]
    vector = jnp.arange(6.0) + 1j
    np.testing.assert_allclose(operator.mv(linalg.solve(operator, vector)), vector, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KroneckerProduct(), ValueError, "is empty; expected at least one"),
        (lambda: KroneckerProduct(np.eye(2), np.ones(3)), ValueError, r"factors\[1\].*\(3,\)"),
        (lambda: KroneckerProduct(np.ones((0, 2))), ValueError, r"\(0, 2\); expected a matrix"),
        (lambda: KroneckerSum(np.ones((2, 3))), ValueError, r"\(2, 3\); expected a square"),
        (lambda: ShiftedKronecker([np.tri(2)], 1.0), ValueError, "expected a Hermitian matrix"),
        (lambda: ShiftedKronecker([np.eye(2)], np.ones(2)), ValueError, "shift has shape"),
        (lambda: ShiftedKronecker([np.eye(2)], 1j), TypeError, "expected a real number"),
        (lambda: SumOfKroneckers([]), ValueError, "terms of SumOfKroneckers is empty"),
        (
            lambda: SumOfKroneckers([[np.eye(2)], [np.eye(3)]]),
            ValueError,
            r"terms\[1\].*\[\(3, 3\)\]; expected \[\(2, 2\)\]",
        ),
        (
            lambda: KroneckerProduct(np.eye(2)).mv(jnp.ones(3)),
            ValueError,
            r"vector has shape \(3,\); expected \(2,\)",
        ),
        (
            lambda: linalg.solve(KroneckerProduct(np.eye(2)), jnp.ones(3)),
            ValueError,
            r"vector has shape \(3,\); expected \(2,\)",
        ),
        (
            lambda: linalg.solve(KroneckerProduct(np.ones((2, 3))), jnp.ones(2)),
            ValueError,
            "use svd",
        ),
        (lambda: linalg.trace(KroneckerProduct(np.ones((2, 3)))), ValueError, "expected square"),
        (lambda: linalg.eigh(KroneckerProduct(np.tri(2))), ValueError, "expected a Hermitian"),
        (
            lambda: linalg.logdet(SumOfKroneckers([[np.eye(2)]] * 3)),
            TypeError,
            "sum of 3 Kronecker products has no form in factor space",
        ),
        (lambda: linalg.cholesky(KroneckerSum(np.eye(2))), TypeError, "trace and diagonal remain"),
        (lambda: linalg.svd(SumOfKroneckers([[np.eye(2)]] * 2)), TypeError, "has no form"),
        (
            lambda: linalg.kronecker_multiply([jnp.eye(2)], jnp.ones(3)),
            ValueError,
            r"tensor has shape \(3,\); expected its last axes to be \(2,\)",
        ),
        (
            lambda: lineax.tridiagonal(KroneckerProduct(np.eye(2))),
            ValueError,
            "expected a tridiagonal one",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()
