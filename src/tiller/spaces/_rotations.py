"""Rotations of neighbouring coordinates, angles, and bases with orthonormal columns.

Both of IPGO's rotations turn pairs of coordinates by one angle, so they cost a few operations a
number. As matrices they would be d x d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotated(v: Tensor, angles: Tensor) -> Tensor:
    """R2(theta_2) R1(theta_1) applied to each column of v [..., d, m]; angles [..., 2], radians.

        R1 turns the pairs (1, 2), (3, 4) .. (d - 1, d),
        R2 turns the pairs (2, 3), (4, 5) .. (d, 1), around the end.

    Each is orthogonal, so columns keep their lengths and their angles to each other. d is even.

    Example:
        >>> v = torch.tensor([[[1.0], [0.0], [0.0], [0.0]]])
        >>> quarter = torch.tensor([[math.pi / 2, 0.0]])
        >>> [round(number) for number in rotated(v, quarter).flatten().tolist()]
        [0, 1, 0, 0]

    Source: IPGO, equations 3 to 5.
    """
    first, second = angles[..., 0], angles[..., 1]
    turned = _pairs_turned(v, first)
    # The pairs (2, 3) .. (d, 1) are the pairs (1, 2) .. (d - 1, d) one place further on.
    return _pairs_turned(turned.roll(-1, dims=-2), second).roll(1, dims=-2)


def _pairs_turned(v: Tensor, angle: Tensor) -> Tensor:
    """The pairs (1, 2), (3, 4) .. of v [..., d, m] turned by angle [...]: equations 3 and 4."""
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    odd, even = v[..., 0::2, :], v[..., 1::2, :]  # the paper counts coordinates from 1
    turned = torch.stack([cos * odd - sin * even, sin * odd + cos * even], dim=-2)
    return turned.flatten(-3, -2)


def wrapped(angles: Tensor, half: float = math.pi) -> Tensor:
    """The same directions in (-half, half], where a whole turn is 2 half.

    Example:
        >>> wrapped(torch.tensor([0.5, 1.5, -1.0]), half=1.0).tolist()
        [0.5, -0.5, 1.0]
    """
    inside = (angles > -half) & (angles <= half)  # left alone bit by bit
    turns = torch.ceil((angles - half) / (2 * half))
    return torch.where(inside, angles, (angles - 2 * half * turns).clamp(-half, half))


def nearest_orthonormal(basis: Tensor) -> Tensor:
    """The nearest matrices with orthonormal columns to basis [..., d, m], or rows where m > d.

    The polar factor U V^T of the singular value decomposition U S V^T: of all such matrices the
    one at the smallest distance (Fan and Hoffman 1955), and so a retraction: to first order in a
    move it is the move along the manifold. It treats all columns alike, which QR does not.
    """
    try:
        left, _, right = torch.linalg.svd(basis, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # all values nearly coincide
        return _by_eigenvectors(basis)
    nearest: Tensor = left @ right
    return nearest


def _by_eigenvectors(basis: Tensor) -> Tensor:
    """The same as B (B^T B)^(-1/2), from a symmetric problem, which repeated values do not stop."""
    if basis.shape[-2] < basis.shape[-1]:
        return _by_eigenvectors(basis.mT).mT
    wide = basis.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    root = vectors * values.clamp(min=torch.finfo(wide.dtype).eps).rsqrt()[..., None, :]
    nearest: Tensor = (wide @ root @ vectors.mT).to(basis.dtype)
    return nearest
