"""Runs a fuzz target: coverage-guided by atheris, or by plain mutation where atheris is not installed.

A target is a function of bytes that returns whatever is allowed and raises for what is not. Seeds are made by code, so
nothing is kept in the repository; an input that fails is written to a folder, and given again with --replay.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Target = Callable[[bytes], None]

MAX_BYTES = 1 << 16
_VALUE = re.compile(rb'"[^"\\\n]{0,60}"|-?\d[\d.eE+-]{0,30}|\b(?:null|true|false)\b|[\w-]+')
_CHILD = "RAY_APP_FUZZ_CHILD"  # environment: this process is the one that libFuzzer ends


class FuzzFailure(AssertionError):
    """An input on which a target failed."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        self.data = data
        super().__init__(f"{type(error).__name__}: {str(error)[:300]} on {data[:200]!r} ({len(data)} bytes)")


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """What is imported within is watched by atheris, if it runs the show."""
    if os.environ.get(_CHILD):
        import atheris

        with atheris.instrument_imports(include=["ray_app"]):
            yield
    else:
        yield


def mutate(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A seed with one to six changes; the first two bytes, which say how the rest is read, change rarely."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(0 if rng.random() < 0.1 else min(2, len(data)), len(data) + 1)
        what = rng.randrange(9)
        if what == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            data[at:at] = rng.choice(tokens)
        elif what == 3:
            del data[at : at + rng.choice((1, 2, 4, 16, 64))]
        elif what == 4:  # say a part of it again, or elsewhere
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 4, 16, 128))] * rng.choice((1, 1, 2, 50))
        elif what == 5:  # the head of this one and the tail of another
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        elif what == 6:
            token = rng.choice(tokens)
            data[at : at + len(token)] = token
        elif values := list(_VALUE.finditer(data)):  # most changes of JSON and CSV only break the syntax
            value = rng.choice(values)
            data[value.start() : value.end()] = rng.choice((*tokens, rng.choice(values)[0]))
    return bytes(data[:MAX_BYTES])


def replay(
    target: Target, seeds: Sequence[bytes], tokens: Sequence[bytes], *, inputs: int | None = None,
    seconds: float | None = None, seed: int = 0,
) -> int:  # fmt: skip
    """Give the seeds as they are, then mutations of them, until so many inputs or seconds; returns how many.

    Raises:
        FuzzFailure: on the first input that the target does not survive.
    """
    rng, end, count = random.Random(seed), None if seconds is None else time.monotonic() + seconds, 0
    while not ((inputs is not None and count >= inputs) or (end is not None and time.monotonic() > end)):
        data = seeds[count] if count < len(seeds) else mutate(rng, seeds, tokens)
        try:
            target(data)
        except BaseException as error:
            raise FuzzFailure(data, error) from error
        count += 1
    return count


def main(program: str, target: Target, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """The program of a target; its last line of stdout is one JSON document."""
    parser = argparse.ArgumentParser(description=f"fuzz {Path(program).stem}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("auto", "atheris", "plain"), default="auto")
    parser.add_argument("--failures", type=Path, default=Path(tempfile.gettempdir()) / "ray_app_fuzz")
    parser.add_argument("--replay", type=Path, help="give this one input, and stop")
    args = parser.parse_args()
    args.failures.mkdir(parents=True, exist_ok=True)
    if args.replay is not None:
        target(args.replay.read_bytes())
        return
    engine = args.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "plain"
    if engine == "atheris" and os.environ.get(_CHILD):
        _child(target, args)
    name = Path(program).stem
    found = _atheris(program, seeds, tokens, args) if engine == "atheris" else _plain(name, target, seeds, tokens, args)
    print(json.dumps({"fuzz": name, "engine": engine, "seconds": args.seconds, "seed": args.seed} | found))
    sys.exit(1 if found["failed"] else 0)


def _plain(
    name: str, target: Target, seeds: Sequence[bytes], tokens: Sequence[bytes], args: argparse.Namespace
) -> dict:
    began, count, failed = time.monotonic(), 0, None

    def counted(data: bytes) -> None:
        nonlocal count
        count += 1
        target(data)

    try:
        replay(counted, seeds, tokens, seconds=args.seconds, seed=args.seed)
    except FuzzFailure as failure:
        failed = args.failures / f"{name}-{args.seed}-{count}"
        failed.write_bytes(failure.data)
        print(f"{failure}\n{failed}", file=sys.stderr)
    return {"inputs": count, "failed": failed and str(failed), "took_sec": round(time.monotonic() - began, 1)}


def _atheris(program: str, seeds: Sequence[bytes], tokens: Sequence[bytes], args: argparse.Namespace) -> dict:
    """Run ourselves as a child, which libFuzzer ends with `exit`, and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i, data in enumerate(seeds):
            (corpus / f"seed-{i:04d}").write_bytes(data)
        words = Path(folder) / "tokens"
        words.write_text("".join(f'"{_escaped(token)}"\n' for token in tokens))
        child = [
            sys.executable, program, f"--seconds={args.seconds}", f"--seed={args.seed}", "--engine=atheris",
            f"--failures={args.failures}",
        ]  # fmt: skip
        began = time.monotonic()
        env = os.environ | {_CHILD: f"{corpus}:{words}"}
        done = subprocess.run(child, env=env, capture_output=True, text=True, errors="replace")
        took = time.monotonic() - began
    counts = [int(n) for n in re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)]
    failed = re.findall(r"Test unit written to (\S+)", done.stderr)
    if failed or done.returncode != 0:
        print(done.stderr[-4000:], file=sys.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "inputs": counts[-1] if counts else None, "coverage": int(coverage[-1]) if coverage else None,
        "failed": failed[-1] if failed else (None if done.returncode == 0 else f"exit status {done.returncode}"),
        "took_sec": round(took, 1),
    }  # fmt: skip


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _child(target: Target, args: argparse.Namespace) -> None:
    import atheris

    corpus, words = os.environ[_CHILD].split(":")
    options = [
        f"-max_total_time={int(args.seconds)}", f"-seed={args.seed}", f"-max_len={MAX_BYTES}", f"-dict={words}",
        f"-artifact_prefix={args.failures}/", "-print_final_stats=1", "-rss_limit_mb=4096", "-timeout=30",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, corpus], target)
    atheris.Fuzz()
