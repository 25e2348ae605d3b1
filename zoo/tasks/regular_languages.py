"""Arithmetic modulo a number, and boards of pieces that move: small automata, whose states a model has to follow.

Deletang et al. (2023), Neural Networks and the Chomsky Hierarchy, arXiv 2207.02098; Grazzi et al. (2025), Unlocking
State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537. The simplest of them, parity, is
``zoo.tasks.Parity``; with more than two symbols, and groups that do not commute, ``zoo.tasks.GroupWords``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

OPERATORS = ("+", "-", "*")


def _check_lengths(time, min_time):
    check_positive("time", time)
    if min_time is not None:
        check_positive("min_time", min_time)
        if min_time > time:
            raise ValueError(f"min_time={min_time} is larger than time={time}")


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(Task):
    """Sums, differences and products of digits modulo m, with products first: 1 + 2 * 2 - 4 modulo 5 is 1.

    A regular language: the state is the value of the finished terms, the sign and the value of the unfinished one.

    Tokens: digits 0 .. m - 1, then +, -, *. Batch: ``inputs`` int32 [time], digits and operators in turn, padded with 0;
    ``targets`` int32 [time], at every digit the value of the expression that ends there; ``mask`` is True at digits, or with
    ``last_only`` at the last one; ``lengths``. Chance is 1 / m (a little more where products make 0 likelier).

    Attributes:
      time: most tokens of an expression.
      min_time: fewest; None: always ``time``. Lengths are odd: even ones are one less.
      modulus: m.
      last_only: only the value of the whole counts, as in the papers; or every digit's.
    """

    time: int = 21
    min_time: int | None = None
    modulus: int = 5
    last_only: bool = False

    def __post_init__(self):
        _check_lengths(self.time, self.min_time)
        check_positive("modulus", self.modulus)

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(OPERATORS)

    def spell(self, tokens) -> str:
        """Tokens as text that Python's eval understands."""
        return " ".join(OPERATORS[t - self.modulus] if t >= self.modulus else str(t) for t in map(int, tokens))

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        m = self.modulus
        key_length, key_digits, key_operators = jax.random.split(key, 3)
        most, least = (self.time + 1) // 2, ((self.min_time or self.time) + 1) // 2
        count = jax.random.randint(key_length, (), least, most + 1)  # of digits
        digits = jax.random.randint(key_digits, (most,), 0, m)
        operators = jax.random.randint(
            key_operators, (most,), 0, len(OPERATORS)
        )  # the i-th stands before the i-th digit

        def read(state, now):
            total, term = state  # of the finished terms; the unfinished one with its sign
            digit, operator, first = now
            product = (operator == 2) & ~first
            signed = jnp.where((operator == 1) & ~first, -digit, digit)
            state = jnp.where(product, total, total + term) % m, jnp.where(product, term * digit, signed) % m
            return state, (state[0] + state[1]) % m

        start = jnp.zeros((), digits.dtype), jnp.zeros((), digits.dtype)
        _, values = jax.lax.scan(read, start, (digits, operators, jnp.arange(most) == 0))
        place = jnp.arange(self.time)
        index, is_digit = (place + 1) // 2, place % 2 == 0
        valid = place < 2 * count - 1
        # A digit's index is half its place; the operator at place 2 i - 1 is the i-th.
        inputs = jnp.where(is_digit, digits[place // 2], m + operators[jnp.minimum(index, most - 1)])
        mask = is_digit & valid & ((place == 2 * count - 2) if self.last_only else True)
        return Batch(
            jnp.where(valid, inputs, 0), jnp.where(is_digit & valid, values[place // 2], 0), mask, 2 * count - 1
        )


@dataclasses.dataclass(frozen=True)
class BracketArithmetic(Task):
    """Nested expressions modulo m, where brackets stand around every operation: ((3 + 4) - (-2)).

    Needs a stack: a deterministic context-free language. An expression of n tokens is, by n: a digit (1), minus a digit (2),
    a bracketed digit (3), a bracketed negative digit (4), and else (left operator right) with the length of the left
    uniform.

    Tokens: digits 0 .. m - 1, then +, -, *, ( and ). Batch: ``inputs`` int32 [time], padded with 0; ``targets`` int32
    [time], the value at the last token, 0 elsewhere; ``mask`` True at the last token; ``lengths``. Chance is 1 / m (a little
    more where products make 0 likelier).

    Attributes:
      time: most tokens of an expression.
      min_time: fewest; None: always ``time``.
      modulus: m.
    """

    time: int = 21
    min_time: int | None = None
    modulus: int = 5

    def __post_init__(self):
        _check_lengths(self.time, self.min_time)
        check_positive("modulus", self.modulus)

    @property
    def vocab_size(self) -> int:
        return self.modulus + len(OPERATORS) + 2

    def spell(self, tokens) -> str:
        """Tokens as text that Python's eval understands."""
        signs = (*OPERATORS, "(", ")")
        return " ".join(signs[t - self.modulus] if t >= self.modulus else str(t) for t in map(int, tokens))

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_length, key_tokens = jax.random.split(key)
        length = jax.random.randint(key_length, (), self.min_time or self.time, self.time + 1)
        tokens = self._write(key_tokens, length)
        value = self._read(tokens, length)
        last = jnp.arange(self.time) == length - 1
        return Batch(tokens, jnp.where(last, value, 0), last, length)

    def _write(self, key, length):
        """Unfolds the expression from a stack of what is still to be written: n > 0 an expression of n tokens, -t token t.

        Every step pops one entry, writes one token and pushes up to four entries.
        """
        m, depth = self.modulus, 2 * self.time + 8
        minus, opening, closing = m + 1, m + 3, m + 4

        def step(carry, key):
            stack, top = carry
            here = stack[jnp.maximum(top - 1, 0)]
            keys = jax.random.split(key, 3)
            digit = jax.random.randint(keys[0], (), 0, m)
            operator = m + jax.random.randint(keys[1], (), 0, len(OPERATORS))
            left = jax.random.randint(keys[2], (), 1, jnp.maximum(here - 3, 2))
            form = jnp.where(here < 0, 0, jnp.minimum(here, 5))  # 0: a token, 1 .. 4: as long, 5: an operation
            written = jnp.array([-here, digit, minus, opening, opening, opening])[form]
            pushed = jnp.array([
                [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [-closing, 1, 0, 0], [-closing, 2, 0, 0],
                [-closing, here - 3 - left, -operator, left],
            ])[form]  # fmt: skip
            count = jnp.array([0, 0, 1, 2, 2, 4])[form]
            empty = top == 0
            stack = jax.lax.dynamic_update_slice(stack, pushed, (jnp.maximum(top - 1, 0),))
            return (stack, jnp.where(empty, 0, top - 1 + count)), jnp.where(empty, 0, written)

        start = jnp.zeros(depth, jnp.int32).at[0].set(length)
        _, tokens = jax.lax.scan(step, (start, jnp.int32(1)), jax.random.split(key, self.time))
        return tokens

    def _read(self, tokens, length):
        """The value, by a stack of values and a stack of (operator, sign) at every open bracket."""
        m = self.modulus

        def step(carry, now):
            values, operators, top, negative, after_value = carry
            token, valid = now
            is_digit, is_open, is_close = token < m, token == m + 3, token == m + 4
            is_operator = ~is_digit & ~is_open & ~is_close
            # an operator waits, at the depth of its bracket, for the value on its right
            opened = jnp.where(is_open, top + 1, top)
            operators = jnp.where(is_open, operators.at[opened].set(-1), operators)
            operators = jnp.where(is_operator & after_value, operators.at[top].set(token - m), operators)
            negative = jnp.where(is_operator, ~after_value, negative & ~is_digit)
            minus_digit = jnp.where(carry[3], -token, token)
            new = jnp.where(is_close, values[top], minus_digit) % m
            at = jnp.where(is_close, top - 1, top)
            operator = operators[at]
            joined = jnp.array([values[at] + new, values[at] - new, values[at] * new, new])[operator] % m
            has_value = is_digit | is_close
            values = jnp.where(has_value, values.at[at].set(joined), values)
            operators = jnp.where(has_value, operators.at[at].set(-1), operators)
            top = jnp.where(is_close, at, opened)
            new_carry = (values, operators, top, negative, has_value)
            return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new_carry, carry), None

        depth = self.time + 2
        start = (
            jnp.zeros(depth, jnp.int32), jnp.full(depth, -1, jnp.int32), jnp.int32(0), jnp.bool_(False), jnp.bool_(False)
        )  # fmt: skip
        (values, *_), _ = jax.lax.scan(step, start, (tokens, jnp.arange(self.time) < length))
        return values[0]


@dataclasses.dataclass(frozen=True)
class BoardTracking(Task):
    """Pieces on a board are moved one by one: who stands on the square that is named?

    The board begins with piece i on square i, for i < pieces; other squares are empty. A move is two tokens, from and to,
    two different squares; what stands on the first goes to the second, and what stood there is taken off. Moving from an
    empty square changes nothing. As with the moves of a game of chess written as squares, without its rules (Toshniwal et
    al. 2022, Chess as a Testbed for Language Model State Tracking, arXiv 2102.13249).

    Tokens: squares 0 .. squares - 1. Batch: ``inputs`` int32 [2 moves]; ``targets`` int32 [2 moves]: at the first square of
    a move the piece that stands there (0 for none, else i + 1), at the second the piece that stands there after the move.

    Attributes:
      squares: of the board.
      pieces: at the start, at most ``squares``.
      moves: of an example.
    """

    squares: int = 16
    pieces: int = 8
    moves: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.squares < 2 or self.pieces > self.squares:
            raise ValueError(
                f"need 2 <= squares and pieces <= squares, got squares={self.squares}, pieces={self.pieces}"
            )

    @property
    def vocab_size(self) -> int:
        """Squares, and answers, of which there are ``pieces + 1``."""
        return max(self.squares, self.pieces + 1)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_from, key_step = jax.random.split(key)
        start = jax.random.randint(key_from, (self.moves,), 0, self.squares)
        end = (start + jax.random.randint(key_step, (self.moves,), 1, self.squares)) % self.squares
        board = jnp.where(jnp.arange(self.squares) < self.pieces, jnp.arange(self.squares) + 1, 0)

        def move(board, squares):
            piece = board[squares[0]]
            moved = board.at[squares[1]].set(piece).at[squares[0]].set(0)
            board = jnp.where(piece > 0, moved, board)
            return board, jnp.stack([piece, board[squares[1]]])

        moves = jnp.stack([start, end], axis=1)
        _, answers = jax.lax.scan(move, board, moves)
        return Batch(moves.reshape(-1), answers.reshape(-1))
