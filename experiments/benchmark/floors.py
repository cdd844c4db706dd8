"""The least time that an iteration takes on published chips, and what they hold: from the formulas beside this file.

A replica on each chip, as the library has it; and, where that does not fit, what tensor parallelism would need.
"""

import dataclasses
from collections.abc import Iterator

from alphallm import memory
from experiments.benchmark import formulas
from experiments.benchmark.formulas import Work


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip; docs/scaling.md names where."""

    name: str  # as in alphallm.memory.DEVICES, which has the memory.
    flops: float  # a second, bfloat16 products.
    read: float  # bytes a second of its memory.
    group: int  # chips that fast links join: a TPU's slice, a GPU's host.
    inside: float  # bytes a second that a chip sends within its group, over all links, one way.
    outside: float  # the same between groups.

    @property
    def memory(self) -> float:
        """Bytes that a run may use, as the memory planner counts them."""
        return memory.DEVICES[self.name] * memory.GIB * memory.USABLE


CHIPS = (
    Chip("v5e", 197e12, 819e9, 256, 200e9, 3.125e9),
    Chip("v5p", 459e12, 2765e9, 6144, 600e9, 6.25e9),
    Chip("h100", 989e12, 3350e9, 8, 450e9, 50e9),
)


def all_reduce_seconds(chip: Chip, num_bytes: float, num_chips: int) -> float:
    """Of a ring within each group, and of one between groups in which each chip has its part of the sum to pass on."""
    inside = min(num_chips, chip.group)
    groups = -(-num_chips // chip.group)
    within = 2 * (inside - 1) / inside * num_bytes / chip.inside
    return within + 2 * (groups - 1) / groups * num_bytes / inside / chip.outside


def phases(work: Work) -> Iterator[tuple[int, float, int]]:
    """(times, FLOPs, bytes read) of each of the passes that self-play is made of."""
    yield 1, formulas.prefill_flops(work), formulas.weight_bytes(work)
    yield work.simulations, formulas.append_flops(work), formulas.append_read_bytes(work)
    for times, slots in ((1, work.prompt), (work.simulations, work.slots)):
        yield times * work.step, formulas.token_flops(work, slots), formulas.token_bytes(work, slots)


def self_play_seconds(work: Work, chip: Chip) -> float:
    return sum(times * max(flops / chip.flops, size / chip.read) for times, flops, size in phases(work))


def learn_seconds(work: Work, chip: Chip) -> float:
    return max(formulas.learn_flops(work) / chip.flops, formulas.learn_read_bytes(work) / chip.read)


def most_problems(work: Work, chip: Chip) -> int:
    """Problems a chip for which a replica fits, with as many rows in each part of a batch as now; 0 if none do."""
    least = work.problems // work.micro_batches
    number = 0
    while formulas.peak_bytes(with_problems(work, (number + 1) * least)) <= chip.memory:
        number += 1
    return number * least


def with_problems(work: Work, problems: int) -> Work:
    """The same with more or fewer problems a chip, and as many rows in each part of the learner's batch as before."""
    rows = work.rows * problems // work.problems
    parts = max(1, work.micro_batches * problems // work.problems)
    return dataclasses.replace(work, problems=problems, rows=rows, micro_batches=parts)


def break_even(work: Work, chip: Chip) -> int:
    """Problems a chip for which a token's products take as long as reading the weights."""
    one = formulas.token_flops(dataclasses.replace(work, problems=1), work.slots)
    return round(formulas.weight_bytes(work) / chip.read * chip.flops / one)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """All parameters trained on `num_chips`: tensor parallel within groups of `ways` chips, data parallel over groups.

    A group searches the problems of all its chips, and each chip holds its part of every matrix (in bfloat16), of the
    keys and values, and of the activations. The optimizer's state is divided over all chips (ZeRO, stage 1).
    """

    work: Work  # of one chip, as if it had a replica.
    chip: Chip
    num_chips: int
    ways: int

    @property
    def peak_bytes(self) -> float:
        work, model, ways = self.work, self.work.model, self.ways
        number = formulas.parameters(model, work.vocabulary)
        weights = 2 * number / ways
        state = 4 * formulas.FLOAT32 * number / self.num_chips + formulas.replay_bytes(work)
        # More ways than key-value heads hold some of them twice.
        copies = ways / min(ways, model.num_kv_heads)
        learning = formulas.FLOAT32 * number / ways + formulas.activation_bytes(work)
        return state + weights + max(copies * formulas.search_bytes(work), learning)

    @property
    def self_play_seconds(self) -> float:
        """At least, beside the messages: a chip does its part of the products, and reads its part of the weights."""
        work = self.work
        copies = self.ways / min(self.ways, work.model.num_kv_heads)
        total = 0.0
        for times, flops, size in phases(work):
            cached = size - formulas.weight_bytes(work)
            read = self.weight_bytes / self.ways + copies * cached
            total += times * max(flops / self.chip.flops, read / self.chip.read)
        return total

    @property
    def weight_bytes(self) -> int:
        """Read by a pass, of all ways together: two bytes a parameter."""
        model = self.work.model
        of_layers = model.num_layers * sum(formulas.matrices(model).values())
        return 2 * (of_layers + self.work.vocabulary * model.width)

    @property
    def messages(self) -> int:
        """All-reduces of self-play: one after a layer's attention and one after its other half, in every pass."""
        passes = 1 + self.work.simulations + formulas.decode_passes(self.work)
        return 2 * self.work.model.num_layers * passes if self.ways > 1 else 0

    @property
    def message_seconds(self) -> float:
        """Of these all-reduces by their bytes alone; each has a latency besides."""
        work = self.work
        positions = work.problems * work.prompt + work.simulations * work.problems * work.step
        positions += formulas.decode_passes(work) * work.problems * work.candidates
        return self._reduced_seconds(2 * positions)

    @property
    def learn_seconds(self) -> float:
        """Products, and the all-reduces of the activations: two a layer each for forward, again, and backward."""
        products = formulas.learn_flops(self.work) / self.chip.flops
        return products + self._reduced_seconds(6 * self.work.learner_steps * self.work.rows * self.work.row_tokens)

    @property
    def update_seconds(self) -> float:
        """Gradients to the chips that hold the optimizer's state for them, and new weights back."""
        groups = self.num_chips // self.ways
        number = formulas.parameters(self.work.model, self.work.vocabulary) / self.ways
        # An all-reduce of as many bytes as are scattered (four) and gathered (two), each one way.
        across = dataclasses.replace(self.chip, group=max(1, self.chip.group // self.ways))
        return self.work.learner_steps * all_reduce_seconds(across, number * (4 + 2) / 2, groups)

    def _reduced_seconds(self, positions_a_layer: int) -> float:
        """All-reduces over the ways of so many positions' activations in every layer, all chips' of the group."""
        model = self.work.model
        num_bytes = positions_a_layer * self.ways * model.width * self.work.width * model.num_layers
        return all_reduce_seconds(self.chip, num_bytes, self.ways)

    @property
    def seconds(self) -> float:
        return self.self_play_seconds + self.message_seconds + self.learn_seconds + self.update_seconds


def shard(work: Work, chip: Chip, num_chips: int) -> Sharded | None:
    """As many of the problems as fit, halved until they do, with the fewest ways.

    Ways are a power of two that divides the heads, within a group of chips.
    """
    problems = work.problems
    while problems:
        for ways in (2**i for i in range(13)):
            if ways <= min(num_chips, chip.group) and work.model.num_heads % ways == 0:
                found = Sharded(with_problems(work, problems), chip, num_chips, ways)
                if found.peak_bytes <= chip.memory:
                    return found
        problems //= 2
    return None


def gathered_seconds(work: Work, chip: Chip, num_chips: int) -> float:
    """Of self-play with all weights gathered for each pass (FSDP alone), by the links within a group."""
    passes = 1 + work.simulations + formulas.decode_passes(work)
    inside = min(num_chips, chip.group)
    return passes * Sharded(work, chip, num_chips, 1).weight_bytes * (inside - 1) / inside / chip.inside
