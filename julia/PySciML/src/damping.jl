# How often intervals are cut so that modes which decay are gone by the beginning of the mesh.
#
# The Radau rule takes a mode z = h lambda with a negative real part through an interval by R(z) in
# place of exp(z): small, but for large -z no more than about 3 / |z|. What is left of a cotangent is
# damped by the intervals between it and the beginning, and does no harm where these are many, as where
# a stiff solution was followed. A solution at rest, or one that is a line, is followed in a few steps
# as long as it likes, and there the modes have to be taken through rightly.

# The rule's stability function (Hairer and Wanner, "Solving Ordinary Differential Equations II",
# section IV.3).
radau_factor(z) = (1 + z * (2 + z / 4) / 5) / (1 - z * (3 - z * (3 - z / 3) / 4) / 5)

"""
    parts_for_damping(lambda, mesh, tol)

How many parts the mesh's last interval needs, so that the mode, of eigenvalue `lambda`, is right to
`tol` at the beginning of the mesh; one where it is right to `SLACK` times that.
"""
function parts_for_damping(lambda, mesh, tol::T) where {T}
    count = length(mesh) - 1
    z = (mesh[end] - mesh[end - 1]) * lambda
    exact, left = exp(z), one(T)
    error = abs(radau_factor(z) - exact)
    for i in (count - 1):-1:1
        error * left > SLACK * tol || return 1
        left *= abs(radau_factor((mesh[i + 1] - mesh[i]) * lambda))
    end
    error * left > SLACK * tol || return 1
    parts = 1
    while parts < MOST_PARTS && abs(radau_factor(z / parts)^parts - exact) * left > tol
        parts += max(parts ÷ 2, 1)
    end
    return parts
end
