# Models that the user wrote in Julia: `pysciml.julia_function`.

# What stands for the file's name in the positions of the user's code.
const USER_FILE = "julia_function"
const USER_SPACE = Ref{Module}()
const USER_LINES = Dict{Symbol, Vector{String}}()

# The user's functions live in a module of their own, where packages can be loaded with `using`.
function user_space()
    if !isassigned(USER_SPACE)
        USER_SPACE[] = Module(:PySciMLUser)
        Core.eval(USER_SPACE[], :(using LinearAlgebra))
    end
    return USER_SPACE[]
end

"""
    Native{Role, F}

One role of a function `f!(du, u, p, t)`: itself, or a derivative by ForwardDiff. `t` and the
parameters are taken as they are, so that dual numbers go through.
"""
struct Native{Role, F} <: Function
    f::F
end

"""
    native(text, role, T) -> KernelSource

The role of the function that `text` evaluates to. Texts that are equal are evaluated once.
"""
function native(text::AbstractString, role::Symbol, ::Type{T}) where {T}
    f = lock(SOURCES_LOCK) do
        get!(() -> evaluate(String(text)), SOURCES, "native " * text)
    end
    return KernelSource(Native{role, typeof(f)}(f), (0, 0, 0), T[], Int[], Bool[])
end

function evaluate(text::String)
    file = Symbol(USER_FILE, length(USER_LINES) + 1)
    USER_LINES[file] = split(text, '\n')
    f = Core.eval(user_space(), Meta.parseall(text; filename = String(file)))
    f isa Function || error(
        "the text of a julia_function is to be a function (du, u, p, t) -> ... that fills du, " *
            "but its value is of type $(typeof(f))"
    )
    any(m -> m.nargs == 5 || m.isva, methods(f)) || error(
        "a julia_function is called with four arguments, as in (du, u, p, t) -> ..., but this " *
            "one has no such method"
    )
    return f
end

# Where in the user's code an error came from, as a text; empty where it did not.
function user_line()
    for frame in stacktrace(catch_backtrace())
        file = Symbol(basename(String(frame.file)))  # Julia puts "./" before a name without a folder
        haskey(USER_LINES, file) || continue
        lines = USER_LINES[file]
        1 <= frame.line <= length(lines) || continue
        return " (line $(frame.line) of the julia_function: $(strip(lines[frame.line])))"
    end
    return ""
end

(n::Native{:value})(ws, out, u, p, t, c) = (n.f(out, u, p, t); nothing)

function (n::Native{:jac_u})(ws, out, u, p, t, c)
    ForwardDiff.jacobian!(out, (du, x) -> n.f(du, x, p, t), similar(u), u)
    return nothing
end
function (n::Native{:jac_p})(ws, out, u, p, t, c)
    isempty(p) || ForwardDiff.jacobian!(out, (du, x) -> n.f(du, u, x, t), similar(u), p)
    return nothing
end
function (n::Native{:jac_t})(ws, out, u, p, t, c)
    ForwardDiff.derivative!(out, (du, s) -> n.f(du, u, p, s), similar(u), t)
    return nothing
end
function (n::Native{:jvp_u})(ws, out, v, u, p, t, c)
    ForwardDiff.derivative!(out, (du, a) -> n.f(du, u .+ a .* v, p, t), similar(u), zero(t))
    return nothing
end

# w' f as a number, in the type that its inputs have
function weighted(n::Native, w, u, p, t)
    du = zeros(promote_type(eltype(u), eltype(p), typeof(t)), length(u))
    n.f(du, u, p, t)
    return dot(w, du)
end
function (n::Native{:vjp_u})(ws, out, w, u, p, t, c)
    ForwardDiff.gradient!(out, x -> weighted(n, w, x, p, t), u)
    return nothing
end
function (n::Native{:vjp_p})(ws, out, w, u, p, t, c)
    isempty(p) || ForwardDiff.gradient!(out, x -> weighted(n, w, u, x, t), p)
    return nothing
end
function (n::Native{:vjp_up})(ws, out, w, u, p, t, c)
    Native{:vjp_u, typeof(n.f)}(n.f)(ws, view(out, 1:length(u)), w, u, p, t, c)
    Native{:vjp_p, typeof(n.f)}(n.f)(ws, view(out, (length(u) + 1):length(out)), w, u, p, t, c)
    return nothing
end
function (n::Native{:vjp_t})(ws, out, w, u, p, t, c)
    out[1] = ForwardDiff.derivative(s -> weighted(n, w, u, p, s), t)
    return nothing
end
