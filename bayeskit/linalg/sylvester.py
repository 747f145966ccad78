r"""Systems with a Kronecker sum of general square matrices: Sylvester's equation in any dimension.

.. math::
    \Bigl(\sum_i I \otimes \dots \otimes A_i \otimes \dots \otimes I + c I\Bigr) x = b

By complex Schur forms :math:`A_i = U_i T_i U_i^H` and back substitution over the last axis, every
entry of which is a system of one dimension less, shifted by a diagonal entry of the last
:math:`T`. R. H. Bartels and G. W. Stewart, "Solution of the matrix equation AX + XB = C",
Communications of the ACM, 1972.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Inexact

from bayeskit.linalg import safe
from bayeskit.linalg.contract import kronecker_multiply

_SYMMETRIC = 1e-10  # asymmetry that is rounding, relative to the largest entry


class SchurForm(NamedTuple):
    """Unitary ``U`` and upper triangular ``T`` with ``A = U T U^H``.

    Attributes
    ----------
    unitary, triangle : complex arrays (n, n)
    diagonal : bool
        Whether ``T`` is diagonal.
    """

    unitary: Complex[Array, "n n"]
    triangle: Complex[Array, "n n"]
    diagonal: Bool[Array, ""]


def schur_form(matrix: Inexact[Array, "n n"]) -> SchurForm:
    """Complex Schur form of a matrix, by eigenvectors where it is symmetric up to rounding.

    The small asymmetry is then left out: systems are solved to ten digits, for iterative
    refinement to improve.
    """

    def eigenvectors():
        values, vectors = safe.eigh(matrix)
        triangle = jnp.diag(values).astype(complex)
        return SchurForm(vectors.astype(complex), triangle, jnp.asarray(True))

    def triangular():
        return SchurForm(*safe.schur(matrix), jnp.asarray(False))

    size = jnp.max(jnp.abs(matrix))
    asymmetry = jnp.max(jnp.abs(matrix - jnp.conj(matrix.T)))
    return jax.lax.cond(asymmetry <= _SYMMETRIC * size, eigenvectors, triangular)


def solve_kronecker_sum(
    forms: Sequence[SchurForm], tensor: Inexact[Array, "..."], shift: Any = 0.0
) -> Complex[Array, "..."]:
    """Solve with a Kronecker sum of matrices plus a multiple of the identity.

    Parameters
    ----------
    forms : sequence of SchurForm
        One an axis, of sizes (N_1, …, N_I).
    tensor : array (N_1, …, N_I)
    shift : scalar

    Returns
    -------
    complex array (N_1, …, N_I)
        Real up to rounding for real matrices and right-hand sides.

    Notes
    -----
    Cost ``O(Σ_i N_i · ∏_j N_j)``: in matrix products where all triangles are diagonal, else in
    ``∏_{i > 1} N_i`` triangular solves one after the other; in real numbers where eigenvalues are
    real.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg.sylvester import schur_form, solve_kronecker_sum
    >>> forms = [schur_form(jnp.array([[2.0, 1.0], [0.0, 3.0]])), schur_form(jnp.eye(1))]
    >>> solve_kronecker_sum(forms, jnp.array([[4.0], [4.0]])).real.tolist()
    [[1.0], [1.0]]
    """
    diagonal = jnp.all(jnp.stack([form.diagonal for form in forms]))

    def solved(unitaries, triangles):
        adjoints = [jnp.conj(unitary.T) for unitary in unitaries]
        rotated = kronecker_multiply(adjoints, tensor.astype(unitaries[0].dtype))

        def divided():
            total = shift
            for axis, triangle in enumerate(triangles):
                others = [i for i in range(len(triangles)) if i != axis]
                total = total + jnp.expand_dims(jnp.diagonal(triangle), others)
            return rotated / total

        found = jax.lax.cond(diagonal, divided, lambda: _solve_triangles(triangles, rotated, shift))
        return kronecker_multiply(unitaries, found)

    unitaries = [form.unitary for form in forms]
    triangles = [form.triangle for form in forms]
    if any(jnp.iscomplexobj(each) for each in (tensor, shift)):
        return solved(unitaries, triangles)
    # Real eigenvalues need no complex arithmetic, which costs four times as much.
    real = jnp.all(jnp.stack([jnp.all(part.imag == 0) for part in (*unitaries, *triangles)]))

    def in_real():
        parts = [u.real for u in unitaries], [t.real for t in triangles]
        return solved(*parts).astype(unitaries[0].dtype)

    return jax.lax.cond(real, in_real, lambda: solved(unitaries, triangles))


def _solve_triangles(triangles, tensor, shift):
    *others, last = triangles
    if not others:
        shifted = last + shift * jnp.eye(len(last), dtype=last.dtype)
        lower = jnp.conj(shifted.T)
        return safe.solve_triangular(lower, tensor[:, None], adjoint=True)[:, 0]

    def substitute(solved, j):
        right = tensor[..., j] - solved @ last[j]
        found = _solve_triangles(others, right, shift + last[j, j])
        return solved.at[..., j].set(found), None

    order = jnp.arange(len(last))[::-1]
    return jax.lax.scan(substitute, jnp.zeros_like(tensor), order)[0]
