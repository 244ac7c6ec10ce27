"""Machines with less than they seem to have: control groups, no home, no place to write."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import manifest_world
from artel.node import child as children
from artel.node import preflight
from artel.node.child import Child, TrainerDied
from artel.node.trainer import launch
from artel.node.trainer.orders import Weighed
from artel.protocol.cgroup import Groups
from ledger_world import World
from places import ROOT
from trainer_world import death_of, started

MB = 1 << 20


def script(text: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program that finds our packages, with a bare environment."""
    return subprocess.run(
        [*prefix, sys.executable, "-P", "-c", text],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- control groups -------------------------------------------------------------------------------


def tree(folder: Path, own: str, files: dict[str, str]) -> Groups:
    """A tree of control groups in a folder."""
    root = folder / "cgroup"
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (folder / "self").write_text(own)
    return Groups(root, folder / "self", folder / "vmstat")


def test_no_groups_is_the_whole_machine(tmp_path: Path) -> None:
    groups = tree(tmp_path, "", {})
    assert groups.memory().limit is None
    assert groups.memory().free == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    assert groups.cores() == len(os.sched_getaffinity(0))
    assert groups.kills() is None
    (tmp_path / "vmstat").write_text("nr_free 3\noom_kill 7\n")
    assert groups.kills() == 7


VERSION_2 = {
    "a/b/memory.max": "max\n",
    "a/b/memory.current": f"{100 * MB}\n",
    "a/b/memory.events": "low 0\noom 1\noom_kill 3\n",
    "a/memory.max": f"{600 * MB}\n",
    "a/memory.current": f"{150 * MB}\n",
    "a/memory.stat": f"anon 1\ninactive_file {50 * MB}\nactive_file 9\n",
    "a/b/cpu.max": "max 100000\n",
    "a/cpu.max": "50000 100000\n",
}
VERSION_1 = {
    "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/a/memory.limit_in_bytes": f"{600 * MB}\n",
    "memory/a/memory.usage_in_bytes": f"{150 * MB}\n",
    "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MB}\n",
    "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
    "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
}
OF_2, OF_1 = "0::/a/b\n", "8:cpu,cpuacct:/a/b\n4:memory:/a/b\n0::/\n"


def below(prefix: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}/{name}": content for name, content in files.items()}


def inside(files: dict[str, str]) -> dict[str, str]:
    """The same as a container sees it: its group is what is mounted."""
    return {name.replace("a/", "", 1): text for name, text in files.items() if "b/" not in name}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        (OF_2, VERSION_2),
        (OF_2, below("unified", VERSION_2)),
        (OF_1, VERSION_1),
        ("0::/system.slice/docker-1234.scope\n", inside(VERSION_2)),
        ("0::/../../elsewhere\n", inside(VERSION_2)),
        ("4:memory:/docker/12\n8:cpu,cpuacct:/docker/12\n", inside(VERSION_1)),
    ],
)
def test_the_tightest_limit_of_all_groups_counts(
    own: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tree(tmp_path, own, files)
    assert groups.memory().limit == 600 * MB
    assert groups.memory().free == 500 * MB, "what is only cached can be taken"
    assert groups.cores() == 1
    if "b" in own.split("/"):
        assert groups.kills() == 3
    monkeypatch.setattr(preflight, "Groups", lambda: groups)
    found = preflight.memory(manifest_world.manifest(), Weighed(1000, 0))
    assert found.level == "problem", "torch alone takes more"
    assert "524.3 MB free" in found.text
    assert "629.2 MB" in found.text
    larger = preflight.memory(manifest_world.manifest(), Weighed(1000, 10**12))
    assert "about 2000.9 GB needed" in larger.text or "2001.0 GB" in larger.text


def test_a_quota_is_rounded_up_and_garbage_is_no_limit(tmp_path: Path) -> None:
    assert tree(tmp_path / "1", "0::/\n", {"cpu.max": "100001 100000"}).cores() == min(
        2, len(os.sched_getaffinity(0))
    )
    odd = {"cpu.max": "\xff x", "memory.max": "lots", "memory.events": "oom_kill\noom_kill x"}
    groups = tree(tmp_path / "2", "0::/\nnonsense\n:::\n", odd)
    assert groups.cores() == len(os.sched_getaffinity(0))
    assert (groups.memory().limit, groups.kills()) == (None, None)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A real group with a limit of 100 MB, where we may make one."""
    for root, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup") / root / f"artel-test-{uuid.uuid4().hex[:8]}"
        with suppress(OSError):
            folder.mkdir()
            try:
                (folder / file).write_text(str(100 * MB))
                yield folder
                return
            finally:
                folder.rmdir()
    pytest.skip("this machine lets us make no control groups")


def entered(group: Path, text: str) -> str:
    """A program that is in the group before it does anything else."""
    return f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n{text}"


def test_a_real_limit_is_seen(small_group: Path) -> None:
    done = script(
        entered(
            small_group,
            "from artel.protocol.cgroup import Groups\n"
            "m = Groups().memory()\nprint(m.free, m.limit)",
        )
    )
    free, limit = map(int, done.stdout.split())
    assert limit == 100 * MB, done.stderr
    assert 0 < free < 100 * MB


def test_a_trainer_that_the_kernel_kills_for_memory_says_so(
    small_group: Path, tmp_path: Path
) -> None:
    """The trainer's imports alone take more than its group may have."""
    done = script(
        entered(
            small_group,
            "import asyncio, pathlib\n"
            "from artel.node.supervisor import Trainer, TrainerDied\n"
            "async def main():\n"
            "    try:\n"
            f"        t = Trainer(pathlib.Path({str(tmp_path / 'log')!r}), 0)\n"
            "        await t.restart()\n"
            "        death = await t.child.dead\n"
            "    except TrainerDied as error:\n"
            "        death = error\n"
            "    print(death.diagnostics())\n"
            "asyncio.run(main())",
        )
    )
    assert "killed the trainer for lack of memory" in done.stdout, done.stdout + done.stderr
    assert "105 MB" in done.stdout


# --- a trainer's last words -----------------------------------------------------------------------


def broken(monkeypatch: pytest.MonkeyPatch, folder: Path, torch: str) -> None:
    """Trainers that find this instead of torch."""
    (folder / "torch.py").write_text(torch)
    before = launch._environment

    def environment(threads: int) -> dict[str, str]:
        found = before(threads)
        return found | {"PYTHONPATH": os.pathsep.join([str(folder), found["PYTHONPATH"]])}

    monkeypatch.setattr(launch, "_environment", environment)


async def dead(log: Path | None) -> TrainerDied:
    try:
        trainer = await started(log)
    except TrainerDied as death:
        return death
    try:
        return await asyncio.wait_for(death_of(trainer), 60)
    finally:
        await trainer.close()


async def test_a_trainer_never_ends_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "trainer.log"
    log.write_text("RuntimeError: what an earlier trainer said\n")
    broken(monkeypatch, tmp_path, "raise ImportError('no \\x1b]0;x\\x07 place for libtorch.so')")
    death = await dead(log)
    assert "exit code 1" in death.message
    assert "ImportError: no ?]0;x? place for libtorch.so" in death.message
    assert "earlier" not in death.message
    assert str(log) in death.hint


async def test_its_words_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import sys, os\nsys.stderr.write('y' * 100_000 + '\\n' + 'x\\n' * 10_000)\nos._exit(3)"
    broken(monkeypatch, tmp_path, text)
    death = await dead(tmp_path / "trainer.log")
    assert "exit code 3" in death.message
    assert len(death.message) < 800


@pytest.mark.parametrize(("before", "after", "certain"), [(3, 4, True), (3, 3, False)])
async def test_a_kill_is_told_from_a_kill_for_memory(
    before: int, after: int, certain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = VERSION_2 | {"a/b/memory.events": f"oom_kill {before}\n"}
    groups = tree(tmp_path, OF_2, own)
    monkeypatch.setattr(children, "Groups", lambda: groups)
    child = await Child.start(tmp_path / "trainer.log", 1)
    (tmp_path / "cgroup/a/b/memory.events").write_text(f"oom_kill {after}\n")
    os.kill(child.process.pid, signal.SIGKILL)
    death = await child.dead
    await child.end()
    assert ("memory" in death.message) is certain
    assert "memory" in death.hint
    assert "more memory" in death.hint


# --- nobody's home --------------------------------------------------------------------------------

NOBODY = """
import os, pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from artel import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def nobody(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of a user without HOME and without an entry in the list of users."""
    return subprocess.run(
        [sys.executable, "-P", "-c", NOBODY, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([group, "--help"] for group in ("demo", "node", "run", "coordinator", "ledger")),
        ["node", "start", "--help"],
        ["ledger", "me", "--help"],
    ],
)
def test_help_needs_no_home(arguments: list[str], tmp_path: Path) -> None:
    done = nobody(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_command_that_needs_a_home_says_which_option_names_one(tmp_path: Path) -> None:
    for arguments in (("node", "start", "--join", "x"), ("node", "status"), ("ledger", "me")):
        done = nobody(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "--home" in done.stderr
    World().write(tmp_path / "home", rounds=1)
    done = nobody("ledger", "status", "--home", "home", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = nobody("node", "status", "--home", "home", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    done = nobody("ledger", "status", "--home", "~nosuch/home", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# --- no place for compiled code -------------------------------------------------------------------

KERNEL = """
import sys, tempfile
from numba.core import caching
for name in ("InTreeCacheLocator", "UserWideCacheLocator"):
    setattr(getattr(caching, name), "from_function", classmethod(lambda *_: None))
{before}
import numpy as np
from artel.protocol.exchange import kernels, jit
made = [value for value in vars(kernels).values() if hasattr(value, "py_func")]
print(len(made), jit._private_cache(), tempfile.gettempdir() if {named} else "")
"""


def test_compiled_code_is_kept_in_a_private_folder(tmp_path: Path) -> None:
    done = script(KERNEL.format(before="", named=True), TMPDIR=str(tmp_path), HOME="/nonexistent")
    assert done.stdout.split()[1:] == ["True", str(tmp_path)], done.stderr
    (made,) = tmp_path.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert not done.stderr


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    (tmp_path / f"artel-kernels-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"artel-kernels-{os.getuid()}").chmod(0o777)
    done = script(KERNEL.format(before="", named=True), TMPDIR=str(tmp_path), HOME="/nonexistent")
    assert done.stdout.split()[1] == "False", done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_any_folder_it_is_compiled_anew_and_that_is_said_once() -> None:
    nowhere = "def none(): raise FileNotFoundError(2, 'no usable temporary directory')\n"
    done = script(KERNEL.format(before=nowhere + "tempfile.gettempdir = none", named=False))
    assert done.stdout.split()[1] == "False", done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "NUMBA_CACHE_DIR" in done.stderr


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="takes root, to become nobody"
)
def test_a_user_without_a_name_in_a_package_that_cannot_be_written(tmp_path: Path) -> None:
    """What a container does: a number for a user, no HOME, files of somebody else."""
    capability = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    prefix = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *capability)
    tmp_path.chmod(0o777)
    text = (
        "import os; os.chdir(os.environ['TMPDIR'])\n"
        "from artel.node.trainer import training\n"
        "import torch\n"
        "weight = torch.nn.Parameter(torch.ones(4))\n"
        "torch.optim.AdamW([weight]).step()\n"
        "import numpy as np\n"
        "from artel.protocol.exchange import kernels\n"
        "print('ready')"
    )
    done = script(text, *prefix, TMPDIR=str(tmp_path))
    assert done.stdout.split() == ["ready"], done.stderr
    assert not (tmp_path / "~").exists()
