"""The kernel of `triton`: a program for each row reads its logits twice or three times and writes their gradient over them.

As `limbeck.objectives.response._divergences` has it, for classes c of a row: p of the target, q of the student, m between them; terms, and pulls s, whose
gradient is T (s - q sum(s)). Numbers are float32; a log-sum-exp is kept as its largest logit and the logarithm of the rest, which loses nothing.
"""

# A kernel's parameters are pointers, numbers and compile-time constants: types say the latter alone.
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

__all__ = ["FORWARD_KL", "JSD", "REVERSE_KL", "SKEW_KL", "SKEW_REVERSE_KL", "TOTAL_VARIATION", "rows"]

FORWARD_KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
SKEW_KL = tl.constexpr(3)
SKEW_REVERSE_KL = tl.constexpr(4)
TOTAL_VARIATION = tl.constexpr(5)


@triton.jit
def _more(top, rest, x):
    """Add a part of a row to a log-sum-exp so far: its largest, and the sum of the others over that."""
    new = tl.maximum(top, tl.max(x, 0))
    safe = tl.where(new == float("-inf"), 0.0, new)
    return new, rest * tl.exp(top - safe) + tl.sum(tl.exp(x - safe), 0)


@triton.jit
def _weighed(weight, value):
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def _parts(p, q, log_p, log_q, share, kind: tl.constexpr):
    """Terms and pulls of a part of a row."""
    if kind == FORWARD_KL:
        terms = _weighed(p, log_p - log_q)
        pull = -p
    elif kind == REVERSE_KL:
        terms = _weighed(q, log_q - log_p)
        pull = terms
    elif kind == JSD:
        log_m = tl.log(share * p + (1 - share) * q)
        pull = (1 - share) * _weighed(q, log_q - log_m)
        terms = share * _weighed(p, log_p - log_m) + pull
    elif kind == SKEW_KL:
        gap = log_p - tl.log(share * p + (1 - share) * q)
        pull = (share - 1) * _weighed(q, tl.exp(gap))
        terms = _weighed(p, gap)
    elif kind == SKEW_REVERSE_KL:
        gap = log_q - tl.log(share * q + (1 - share) * p)
        pull = _weighed(q, gap - share * tl.exp(gap))
        terms = _weighed(q, gap)
    else:
        terms = tl.abs(p - q) / 2
        pull = tl.where(q > p, q / 2, tl.where(q < p, -q / 2, 0.0))
    return terms, pull


@triton.jit
def _target(a, y, at, inside, toward, moves: tl.constexpr):
    """The target's logits: the teacher's, or those on the way to them from the student's `a`."""
    b = tl.load(y + at, mask=inside, other=float("-inf")).to(tl.float32)
    if moves:
        b = (1 - toward) * a + tl.where(toward == 0.0, 0.0, toward * b)
    return b


@triton.jit
def rows(
    logits, theirs, labels, weights, losses, stride, their_stride, classes, temperature, hard, toward, cap, share,
    kind: tl.constexpr, taught: tl.constexpr, moves: tl.constexpr, labelled: tl.constexpr, weighs: tl.constexpr, capped: tl.constexpr,
    learns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z, y, each = logits + row * stride, theirs + row * their_stride, tl.arange(0, block)
    never = float("-inf")
    q_top, p_top, one_top, q_rest, p_rest, one_rest = never, never, never, 0.0, 0.0, 0.0
    for start in range(0, classes, block):
        at = start + each
        inside = at < classes
        a = tl.load(z + at, mask=inside, other=never)
        q_top, q_rest = _more(q_top, q_rest, a / temperature)
        if labelled:
            one_top, one_rest = _more(one_top, one_rest, a)
        if taught:
            p_top, p_rest = _more(p_top, p_rest, _target(a, y, at, inside, toward, moves) / temperature)
    q_rest, soft = tl.log(q_rest), temperature * (1 - hard)
    loss = 0.0 * (q_top + q_rest)  # what is no number stays that
    label = 0
    if labelled:
        label = tl.load(labels + row)
        one_rest = tl.log(one_rest)
        loss += hard * (one_top - tl.load(z + label) + one_rest)
    total = 0.0
    if taught:
        p_rest = tl.log(p_rest)
        nothing = 0.0 * (p_top + p_rest)
        terms, pulls = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
        for start in range(0, classes, block):
            at = start + each
            inside = at < classes
            a = tl.load(z + at, mask=inside, other=never)
            b = _target(a, y, at, inside, toward, moves)
            log_q, log_p = a / temperature - q_top - q_rest, b / temperature - p_top - p_rest
            term, pull = _parts(tl.exp(log_p), tl.exp(log_q), log_p, log_q, share, kind)
            terms += tl.where(inside, term, 0.0)
            pulls += tl.where(inside, pull, 0.0)
        loss += temperature * soft * tl.sum(terms, 0) + nothing
        total = tl.sum(pulls, 0) + nothing
    weight = 1.0
    if weighs:
        weight = tl.load(weights + row)
    tl.store(losses + row, loss * weight)
    if learns:
        for start in range(0, classes, block):
            at = start + each
            inside = at < classes
            a = tl.load(z + at, mask=inside, other=never)
            gradient = tl.zeros([block], tl.float32)
            if taught:
                b = _target(a, y, at, inside, toward, moves)
                log_q, log_p = a / temperature - q_top - q_rest, b / temperature - p_top - p_rest
                q = tl.exp(log_q)
                _, pull = _parts(tl.exp(log_p), q, log_p, log_q, share, kind)
                gradient += soft * (pull - q * total)
            if labelled:
                gradient += hard * (tl.exp(a - one_top - one_rest) - tl.where(at == label, 1.0, 0.0))
            if capped:
                gradient *= 1 - (a / cap) * (a / cap)
            tl.store(z + at, gradient * weight, mask=inside)
