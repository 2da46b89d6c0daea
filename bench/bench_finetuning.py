"""Fine-tuning under folds against training from a container: see `bench.bench_training`."""

from bench.bench_training import TUNING as STAGE
from bench.bench_training import measure_tuning as measure

__all__ = ["STAGE", "measure"]
