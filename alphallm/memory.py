"""Plans memory: `python -m alphallm.memory --config=configs/gsm8k_qwen2p5_0p5b.py --device=v5e`.

Prints what a config's run needs on one device: parameters, average, optimizer, replay, the search's pages, and the peak
of each compiled function, from XLA's own analysis of what this machine compiles (another device's compiler may lay
things out otherwise); then the most problems and simulations that fit into the device. Nothing of the run's size is
allocated. --measure runs the functions once and prints the peak of this process beside the plan.
"""

import dataclasses
import gc
import math
import os
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, load_config, run_main
from alphallm.errors import UserError

# GiB of memory of one device as JAX counts them: a core of a TPU v2 or v3, a chip of the others.
DEVICES = {
    "t4": 15, "l4": 22, "v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "a100-40": 40, "a100-80": 80,
    "h100": 80, "h200": 141,
}  # fmt: skip
GIB = 2**30
USABLE = 0.92  # of a device's memory: the runtime keeps some for itself.


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_string("config", "", "The experiment: a Python file with get_config().")
    flags.DEFINE_string("device", "", f"What it is to run on, of {', '.join(DEVICES)}; by default this machine.")
    flags.DEFINE_integer("num_devices", 1, "Over how many devices a batch is divided.")
    flags.DEFINE_bool("measure", False, "Also run each function once here, and print the peak.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or not options.config:
        raise UserError("Give --config=FILE, and --config.FIELD=VALUE for what is to differ from it.")
    if options.device and options.device not in DEVICES:
        raise UserError(f"Unknown device {options.device!r}: give one of {', '.join(DEVICES)}, or none.")
    config = apply_overrides(load_config(options.config), overrides)
    # They take seconds to import, which a wrong option need not wait for.
    from alphallm.display import print_table
    from alphallm.training.parallel import use_cores_as_devices

    use_cores_as_devices(1)

    plan = Plan(share_of(config, options.num_devices))
    print_table(f"Memory of one device, in GiB: {options.config}", plan.table())
    if options.measure:
        print_table("Measured on this machine, in GiB", plan.measure())
    limit = DEVICES[options.device] * GIB * USABLE if options.device else host_memory() * USABLE
    where = options.device or "this machine"
    fits = "fits into" if plan.peak <= limit else "does not fit into"
    print(f"The peak, {plan.peak / GIB:.2f} GiB, {fits} the {limit / GIB:.1f} GiB that {where} has for it.")
    for sentence in plan.largest(limit, options.num_devices):
        print(sentence)


def share_of(config: Any, num_devices: int) -> Any:
    """The config of one device's share of the batches."""
    batches = {
        "training.problems_per_iteration": config.training.problems_per_iteration,
        "warm_start.batch_size": config.warm_start.batch_size,
    }
    for name, value in batches.items():
        if num_devices < 1 or value % num_devices:
            raise UserError(f"--num_devices={num_devices} must divide {name}, which is {value}.")
    return apply_overrides(config, {name: value // num_devices for name, value in batches.items()})


def host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclasses.dataclass(frozen=True)
class Need:
    """What a compiled function needs, in bytes."""

    arguments: int
    results: int  # those that do not take an argument's place
    temporary: int

    @property
    def peak(self) -> int:
        return self.arguments + self.results + self.temporary


class Plan:
    """What a config's functions need on one device. Compiles them, and allocates none of their arguments."""

    def __init__(self, config: Any):
        import jax

        from alphallm.training.loop import Trainer
        from alphallm.training.signatures import signatures

        # Weights to start from have the shapes of random ones.
        self.config = dataclasses.replace(config, init_from="")
        self.trainer = Trainer(self.config)
        self.state = jax.eval_shape(self.trainer.initial_state)
        self._signatures: dict[str, Any] = signatures(self.trainer, self.state)
        self.needs = {name: need(function, *given) for name, (function, given) in self._signatures.items()}

    @property
    def peak(self) -> int:
        """Of the function that needs most; what it is not given stays on the device too."""
        learner = self.state.learner
        kept = size_of(self.state)
        given = {"self-play": (learner.weights, self.state.replay), "learn": self.state, "warm start": learner}
        return max(each.peak + kept - size_of(given[name]) for name, each in self.needs.items())

    def table(self) -> list[dict[str, object]]:
        learner = self.state.learner
        parts = {
            "trained parameters": size_of(learner.params), "frozen parameters": size_of(learner.frozen),
            "average of the trained": size_of(learner.average), "optimizer": size_of(learner.optimizer),
            "replay": size_of(self.state.replay),
        }  # fmt: skip
        rows: list[dict[str, object]] = [{"part": name, "GiB": size / GIB} for name, size in parts.items()]
        rows.append({"part": "pages of the search, within self-play", "GiB": self.pages / GIB})
        for name, each in self.needs.items():
            said = f"{name}: arguments {each.arguments / GIB:.3f}, results {each.results / GIB:.3f}, activations"
            rows.append({"part": said, "GiB": each.temporary / GIB})
            rows.append({"part": f"{name}: together", "GiB": each.peak / GIB})
        rows.append({"part": "peak of the run", "GiB": self.peak / GIB})
        return rows

    @property
    def pages(self) -> int:
        """Bytes of the keys and values of all nodes."""
        import jax.numpy as jnp

        model, search = self.config.model, self.config.search
        numbers = 2 * model.num_layers * model.num_kv_heads * model.head_dim * self.trainer.task.max_step
        nodes = self.config.training.problems_per_iteration * (search.num_simulations + 1)
        return numbers * nodes * jnp.dtype(model.dtype).itemsize

    def largest(self, limit: float, num_devices: int) -> list[str]:
        """The most problems and the most simulations that fit, in sentences; from what twice as many would need."""
        found = []
        for name, of in (
            ("training.problems_per_iteration", self.config.training.problems_per_iteration),
            ("search.num_simulations", self.config.search.num_simulations),
        ):
            more = Plan(apply_overrides(self.config, {name: 2 * of}))
            each = (more.peak - self.peak) / of
            scale = num_devices if name.startswith("training") else 1
            if each <= 0:
                found.append(f"{name}: twice as many do not raise the peak, which another function sets.")
                continue
            most = math.floor(of + (limit - self.peak) / each)
            least = f"at most about {most * scale}" if most > 0 else "not even 1"
            found.append(f"{name}: {each / GIB:.4f} GiB each, {least} with all else as it is.")
        return found

    def measure(self) -> list[dict[str, object]]:
        """Runs every function once on zeros: the peak of this process above what it held before."""
        import jax

        rows = []
        for name, (function, given) in self._signatures.items():
            compiled = function.lower(*given).compile()
            gc.collect()
            before = reset_peak()
            filled = jax.tree.map(_zeros, given)
            jax.block_until_ready(filled)
            jax.block_until_ready(compiled(*filled))
            rows.append({"function": name, "planned": self.needs[name].peak / GIB, "measured": (peak() - before) / GIB})
            del filled
        return rows


def need(function: Any, *given: Any) -> Need:
    analysis = function.lower(*given).compile().memory_analysis()
    return Need(
        arguments=analysis.argument_size_in_bytes,
        results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        temporary=analysis.temp_size_in_bytes,
    )


def size_of(tree: Any) -> int:
    """Bytes of arrays, or of their shapes."""
    import jax

    def size(leaf: Any) -> int:
        dtype = leaf.dtype
        width = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
        return math.prod(leaf.shape) * width

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def _zeros(shape: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from alphallm.training import parallel

    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return parallel.replicate_key(jax.random.key(0))
    # Ones, so that problems have a prompt; and where pmap wants them, so that no copy is made.
    return parallel.pmap(lambda _: jnp.ones(shape.shape[1:], shape.dtype))(jnp.zeros(1))


def reset_peak() -> int:
    """Begins a new peak of this process's memory; what it holds now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    define_flags()
    run_main(main, takes_overrides=True)
