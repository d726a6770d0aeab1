"""Deals cases from a seed, and runs them one by one on a cluster that stays."""

import os
import random
import shutil
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from checks import Verdict, compare, published_half
from cluster import Cluster, wait_until
from drivers import Driver, run_fault_free, start_forkserver
from injections import FAULTS, Scene, end_driver, may_mount, mount_disk, unmount_disk
from other_cases import OTHERS, Others
from records import HARNESS_FAILED, Record
from s3_proxy import KEYS, S3Proxy, s3_proxy
from world import LEDGERS, STAGES, World, make_world

from ray_app.base.storage import Storage

_DISTURBED_SEC, _ALONE_SEC = 240, 180  # a stage takes seconds; this is a hang


class Runner:
    """Makes the fault-free run, and then case after case.

    A case is a function of seed and number: the pairs of fault and stage are shuffled anew for each round through them.

    Args:
        folder: For all that is written.
        seed: Of the cases.
        only: Kinds of fault, with commas between; None: all.
        pairs: (fault, stage) to choose from; None: all.
    """

    def __init__(
        self, folder: Path, seed: int, only: str | None = None, pairs: list[tuple[str, str]] | None = None
    ) -> None:
        self.folder, self.seed = folder, seed
        self.left_out: list[str] = []
        every = [(name, stage) for name, fault in FAULTS.items() for stage in fault.stages]
        every += [(name, "app" if name.startswith("serve") else "label") for name in OTHERS]
        self.deck = [pair for pair in pairs or every if only is None or pair[0] in only.split(",")]
        assert self.deck, f"no such fault: {only}; there are {sorted({name for name, _ in every})}"
        self.made_in_sec = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "Runner":
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _prepare(self) -> None:
        os.environ.update(KEYS)  # the cluster's workers need them too
        self.folder.mkdir(parents=True, exist_ok=True)
        self.context = start_forkserver()
        self.cluster = self._stack.enter_context(Cluster())
        if not may_mount(self.folder):
            self.left_out.append("full_disk and read_only: this machine lets nobody mount a file system")
            self.deck = [pair for pair in self.deck if pair[0] not in ("full_disk", "read_only")]
        self.proxy: S3Proxy | None = None
        started = time.monotonic()
        last = max(STAGES.index("embed" if stage == "app" else stage) for _, stage in self.deck)
        self.world: World = make_world(self.folder / "world", self._fault_free, STAGES[: last + 1])
        self.made_in_sec = time.monotonic() - started
        self.others = self._stack.enter_context(Others(self.folder / "others", self.world))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def deal(self, number: int) -> tuple[str, str, random.Random]:
        """Fault, stage and random numbers of a case."""
        round_number, place = divmod(number, len(self.deck))
        deck = sorted(self.deck)
        random.Random(f"{self.seed}-{round_number}").shuffle(deck)
        deck.sort(key=lambda pair: pair[0] in OTHERS)  # the app is started once for all of its cases
        return *deck[place], random.Random(f"{self.seed}-{number}")

    def run_case(self, number: int) -> Record:
        """Inject, repair, run again, compare."""
        fault, stage, rng = self.deal(number)
        record = Record(number=number, fault=fault, stage=stage)
        started = time.monotonic()
        folder = self.folder / f"case-{number}"
        try:
            if fault in OTHERS:
                self.others.run(record, rng, folder)
            else:
                self.others.stop()
                self._inject(record, rng, folder)
        except Exception as error:  # noqa: BLE001 the cases after it are still worth running
            traceback.print_exc()
            record.outcome = HARNESS_FAILED
            record.verdict.wrong.append(f"{HARNESS_FAILED}: {type(error).__name__}: {error}")
        record.sec = time.monotonic() - started
        return record

    def _inject(self, record: Record, rng: random.Random, folder: Path) -> None:
        fault, stage = FAULTS[record.fault](), record.stage
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        disk = folder / "disk"
        self.cluster.heal()
        if fault.storage == "disk":
            mount_disk(disk)
        scene = Scene(rng=rng, stage=stage, cluster=self.cluster, run=(disk if disk.exists() else folder) / "run")
        try:
            self.world.copy_before(stage, scene.run)
            fault.prepare(scene)
            output = str(scene.run)
            if fault.storage == "s3":
                scene.proxy = self._s3()
                scene.proxy.upload(scene.run, f"case-{record.number}")
                output = scene.proxy.uri(f"case-{record.number}")
            self._disturb(record, fault, scene, output, folder)
            fault.repair(scene)
            if fault.storage == "s3":
                hit = scene.requests_hit
                record.target = f"{record.target}, {hit} requests" if hit else ""
            store = Storage(output)
            half = published_half(store, stage)
            if record.outcome != "went on":
                again = self._start(scene, output, folder / "again")
                code = again.wait(_ALONE_SEC)
                self.world.seconds[stage] = max(again.stage_sec, self.world.seconds[stage] / 2)
                if code != 0:
                    end = "hung" if code is None else f"ended with {code}"
                    record.verdict = Verdict(wrong=[f"the rerun {end}: {_last_line(again.log)}"])
                    return
            record.verdict = compare(self.world, store, stage)
            record.verdict.wrong += [f"after the fault: {what}" for what in half]
            if record.outcome == "hung":
                record.verdict.wrong.append(f"hung for {_DISTURBED_SEC} s: {record.message}")
        finally:
            end_driver(scene.driver)
            fault.repair(scene)
            if fault.storage == "disk":
                unmount_disk(disk)
            if record.good:
                shutil.rmtree(folder, ignore_errors=True)

    def _disturb(self, record: Record, fault: Any, scene: Scene, output: str, folder: Path) -> None:
        """Start the stage, inject at its moment, wait for its end."""
        reached, record.moment = self._moment(scene)
        scene.driver = driver = self._start(scene, output, folder / "disturbed")
        wait_until(lambda: driver.begun or driver.ended, 120)
        began = time.monotonic()
        wait_until(lambda: reached() or driver.ended, 120)
        if not driver.ended:
            record.target = fault.inject(scene)
        code = driver.wait(_DISTURBED_SEC)
        if code == 0:  # how long it takes on the machine as busy as it is now
            self.world.seconds[scene.stage] = max(time.monotonic() - began, self.world.seconds[scene.stage] / 2)
        names = {None: "hung", 0: "went on", 2: "stopped"}
        record.outcome = names.get(code, "killed" if code is not None and code < 0 else "crashed")
        if record.outcome in ("stopped", "crashed", "hung"):
            record.message = _last_line(driver.log)

    def _moment(self, scene: Scene) -> tuple[Any, str]:
        """When to inject, as a function that says whether it is time, and in words."""
        stage, share = scene.stage, scene.rng.random()
        if stage in LEDGERS and scene.proxy is None and scene.rng.random() < 0.7:
            num_blocks, ledger = self.world.num_blocks[stage], scene.run / "ledger" / LEDGERS[stage]
            block = 1 + int(share * (num_blocks - 1))
            return lambda: len(list(ledger.rglob("[!.]*.parquet"))) >= block, f"at block {block} of {num_blocks}"
        lasts = self.world.seconds[stage]
        wait = share * 0.9 * lasts
        begun: list[float] = []

        def reached() -> bool:
            begun[:] = begun or [time.monotonic()]
            return time.monotonic() - begun[0] >= wait

        return reached, f"after {wait:.2f} of {lasts:.2f} s"

    def _start(self, scene: Scene, output: str, folder: Path) -> Driver:
        env = self.cluster.env | KEYS | scene.env
        return Driver(self.context, scene.stage, self.world.config, [f"output={output}"], folder, env)

    def _fault_free(self, stage: str, overrides: list[str]) -> None:
        folder, config = self.folder / "fault-free" / stage, self.folder / "world" / "config.yaml"
        shutil.rmtree(folder, ignore_errors=True)
        run_fault_free(self.context, stage, config, overrides, folder, self.cluster.env | KEYS)

    def _s3(self) -> S3Proxy:
        if self.proxy is None:
            self.proxy = self._stack.enter_context(s3_proxy())
        return self.proxy


def _last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing"])[-1]
