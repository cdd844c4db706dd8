"""Trains: `python -m alphallm.train --config=configs/game24_cpu.py --workdir=runs/x [--config.FIELD=VALUE ...]`.

The same command again continues the run from its last complete checkpoint. SIGTERM, or Ctrl-C, saves and ends it with
status 75. With several hosts, start it on each with --distributed.
"""

import math

from absl import flags

from alphallm.config import apply_overrides, load_config, run_main
from alphallm.errors import UserError


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_string("config", "", "The experiment: a Python file with get_config().")
    flags.DEFINE_string("workdir", "", "The run's folder: config, metrics, samples and checkpoints.")
    flags.DEFINE_integer(
        "cpu_devices", 0, "On a CPU, as how many devices to use it; 0 is one a core. Accelerators are not touched."
    )
    flags.DEFINE_string(
        "distributed", "", "Several processes: auto (SLURM, Open MPI, GKE, Cloud TPU), or HOST:PORT,ID,COUNT."
    )


def main(arguments: list[str], overrides: dict[str, str]):
    if arguments:
        raise UserError(
            f"{arguments[0]!r} is not an option: give --config=FILE, --workdir=FOLDER, --config.FIELD=VALUE."
        )
    options = flags.FLAGS
    if not options.config or not options.workdir:
        raise UserError(
            "Give --config=FILE and --workdir=FOLDER: --config=configs/debug.py --workdir=runs/debug is quick."
        )
    config = apply_overrides(load_config(options.config), overrides)
    # They take seconds to import, which a wrong option need not wait for.
    from alphallm.training.parallel import keep_freed_memory, num_cores, use_cores_as_devices

    keep_freed_memory()
    cores = 1 if options.distributed else num_cores()  # Several processes may share a machine.
    use_cores_as_devices(options.cpu_devices or best_device_count(config, cores))
    # After the devices are chosen: JAX reads them once, when it is first used.
    from alphallm.training import hosts
    from alphallm.training.loop import train

    hosts.start(options.distributed)

    train(config, options.workdir)


def best_device_count(config, cores: int) -> int:
    """The most devices, up to one a core, that the config's batches divide by."""
    training, parts = config.training, config.optimizer.micro_batches
    batches = math.gcd(
        training.problems_per_iteration, config.warm_start.batch_size // parts, training.trees_per_step // parts
    )
    return max(count for count in range(1, max(1, cores) + 1) if batches % count == 0)


if __name__ == "__main__":
    define_flags()
    run_main(main, takes_overrides=True)
