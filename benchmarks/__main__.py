"""Run the benchmarks: `python -m benchmarks --help`."""

from benchmarks.main import bench_app

bench_app(prog_name="python -m benchmarks")
